package join

import (
	"context"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"os"
	"sync"
	"time"

	"causeway/agent/identity"
)

// way is how a join reaches the hub. Its methods may be called concurrently.
type way struct {
	mu     sync.Mutex
	j      identity.Joined
	target string // host of Addr, as it was named
}

// how says what is known before anything is dialled.
func how(c Config) *way {
	w := &way{j: identity.Joined{Hub: c.Token.Addr}}
	w.target, _, _ = net.SplitHostPort(c.Token.Addr)
	proxy := c.Proxy
	if proxy == nil {
		proxy = http.ProxyFromEnvironment
	}
	u, err := proxy(&http.Request{URL: &url.URL{Scheme: "https", Host: c.Token.Addr}})
	if err != nil || u == nil {
		return w
	}
	w.j.Proxy, w.j.From, w.target = u.String(), c.ProxyFrom, u.Hostname()
	if w.j.From == "" {
		w.j.From = "HTTPS_PROXY of the join's environment"
	}
	for _, k := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR"} { // crypto/x509's
		if v := os.Getenv(k); v != "" && u.Scheme == "https" && w.j.CA == "" {
			w.j.CA = k + "=" + v
		}
	}
	return w
}

// trace notes over which connection requests go.
func (w *way) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if a, err := netip.ParseAddrPort(i.Conn.RemoteAddr().String()); err == nil {
			w.j.Addr = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		}
		if a, err := netip.ParseAddrPort(i.Conn.LocalAddr().String()); err == nil {
			w.j.Local = a.Addr().Unmap()
		}
	}})
}

// record is how the join went.
func (w *way) record() *identity.Joined {
	w.mu.Lock()
	defer w.mu.Unlock()
	j := w.j
	j.Time, j.Interface = time.Now().UTC(), interfaceOf(j.Local)
	return &j
}

// named returns the name that was dialled, if it was one, and the address to which it led.
func (w *way) named() (string, netip.Addr, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := netip.ParseAddr(w.target)
	return w.target, w.j.Addr.Addr(), err != nil && w.target != "" && w.j.Addr.IsValid()
}

// interfaceOf is the interface that has an address; empty: none.
func interfaceOf(a netip.Addr) string {
	l, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for _, i := range l {
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, x := range addrs {
			if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().Unmap() == a.WithZone("") {
				return i.Name
			}
		}
	}
	return ""
}
