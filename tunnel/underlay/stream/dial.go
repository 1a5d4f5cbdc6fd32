package stream

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"causeway/internal/retry"
	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
)

const (
	dialTimeout = 8 * time.Second // all of it
	maxHead     = 16 << 10        // of a proxy's or server's answer
)

// ErrRefused wraps errors that trying again soon will not cure.
var ErrRefused = errors.New("stream refused")

// Dialer makes streams to a hub. The zero value dials without mark and proxy.
type Dialer struct {
	Mark uint32 // SO_MARK of every socket, DNS included; 0: none
	// Proxy chooses the HTTP proxy to a hub's https URL; nil: none. Its errors
	// are not shown: they may quote a password.
	Proxy func(*url.URL) (*url.URL, error)
	// Lookup finds the addresses of hub and proxy; nil: DNS does.
	Lookup sock.Lookup
}

// Dial connects to a hub's HTTPS address, host:port, and calls the stream addr
// in this process. The errors are one line, and hold no password.
func (d Dialer) Dial(ctx context.Context, hostport string, addr netip.AddrPort) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	u := &url.URL{Scheme: "https", Host: hostport}
	var proxy *url.URL
	if d.Proxy != nil {
		var err error
		if proxy, err = d.Proxy(u); err != nil {
			return nil, fmt.Errorf("%w: the proxy setting (HTTPS_PROXY) is no URL; write http://HOST:PORT", ErrRefused)
		}
	}
	target := hostport
	if proxy != nil {
		target = proxyAddr(proxy)
	}
	conn, err := sock.DialTCP(ctx, d.Mark, d.Lookup, target)
	if err != nil {
		return nil, fmt.Errorf("dial stream: %w", err)
	}
	c, err := d.open(ctx, conn, proxy, hostport, addr)
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("dial stream to %s: no answer within %s", target, dialTimeout)
		}
		return nil, err
	}
	return c, nil
}

// open makes a stream of a connection to proxy or hub.
func (d Dialer) open(ctx context.Context, conn net.Conn, proxy *url.URL, hostport string, addr netip.AddrPort) (*Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	raw := &Raw{Conn: conn}
	if proxy != nil {
		if proxy.Scheme == "https" {
			t := tls.Client(conn, &tls.Config{ServerName: proxy.Hostname(), NextProtos: []string{"http/1.1"}})
			if err := t.HandshakeContext(ctx); err != nil {
				return nil, fmt.Errorf("%w: the proxy %s does not prove its name by TLS: %w", ErrRefused, proxy.Host, err)
			}
			raw.Conn = t
		}
		if err := connect(raw.Conn, proxy, hostport); err != nil {
			return nil, err
		}
	}
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	t := tls.Client(raw, &tls.Config{
		// Whoever ends TLS may be a load balancer or an intercepting proxy;
		// the hub proves itself by probes.
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, ServerName: host,
		// HTTP/2 has no upgrade.
		NextProtos: []string{"http/1.1"}, DynamicRecordSizingDisabled: true,
	})
	if err := t.HandshakeContext(ctx); err != nil {
		var rec tls.RecordHeaderError
		if errors.As(err, &rec) {
			err = fmt.Errorf("%w: %s does not speak TLS", ErrRefused, hostport)
		}
		return nil, fmt.Errorf("dial stream to %s: %w", hostport, err)
	}
	initial, err := upgrade(t, hostport)
	if err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	conn.SetDeadline(time.Time{})
	return newConn(t, raw, addr, true, initial), nil
}

func proxyAddr(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	if u.Scheme == "https" {
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return net.JoinHostPort(u.Hostname(), "80")
}

// connect asks an HTTP proxy for a connection to hostport.
func connect(conn io.ReadWriter, proxy *url.URL, hostport string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: hostport}, Host: hostport, Header: http.Header{}}
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("ask proxy %s: %w", proxy.Host, err)
	}
	br := bufio.NewReader(io.LimitReader(conn, maxHead))
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return fmt.Errorf("%w: proxy %s gives no HTTP answer", ErrRefused, proxy.Host)
	}
	resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusProxyAuthRequired:
		return fmt.Errorf("%w: proxy %s wants a user and password (HTTP status 407); write them into the proxy's URL", ErrRefused, proxy.Host)
	case resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Errorf("%w: proxy %s does not allow CONNECT to %s (HTTP status %d)", ErrRefused, proxy.Host, hostport, resp.StatusCode)
	case resp.StatusCode/100 != 2:
		return fmt.Errorf("proxy %s does not reach %s: %w", proxy.Host, hostport, retry.FromResponse(resp))
	case br.Buffered() > 0:
		return fmt.Errorf("%w: proxy %s speaks before it is asked", ErrRefused, proxy.Host)
	}
	return nil
}

// upgrade asks the hub for a WebSocket. It returns what came behind the answer.
func upgrade(t io.ReadWriter, hostport string) ([]byte, error) {
	var nonce [16]byte
	rand.Read(nonce[:]) // never fails since Go 1.24
	key := base64.StdEncoding.EncodeToString(nonce[:])
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: protocol.PathStreams}, Host: hostport, ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
			"Sec-Websocket-Key": {key}, "Sec-Websocket-Protocol": {protocol.StreamProtocol}}}
	if err := req.Write(t); err != nil {
		return nil, fmt.Errorf("dial stream to %s: %w", hostport, err)
	}
	br := bufio.NewReader(io.LimitReader(t, maxHead))
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		// The text may quote what came, as it came.
		return nil, fmt.Errorf("dial stream to %s: no HTTP answer: %s", hostport, protocol.OneLine(err.Error(), 200))
	}
	switch code := resp.StatusCode; {
	case retry.Status(code):
		return nil, fmt.Errorf("dial stream to %s: %w", hostport, retry.FromResponse(resp))
	case code != http.StatusSwitchingProtocols:
		return nil, fmt.Errorf("%w: %s answers with HTTP status %d; a load balancer or proxy between must let WebSockets through to %s", ErrRefused, hostport, code, protocol.PathStreams)
	case !hasToken(resp.Header, "Upgrade", "websocket") || resp.Header.Get("Sec-Websocket-Accept") != acceptKey(key) ||
		resp.Header.Get("Sec-Websocket-Protocol") != protocol.StreamProtocol:
		return nil, fmt.Errorf("%w: %s opens a WebSocket, but not a hub's", ErrRefused, hostport)
	}
	initial, err := br.Peek(br.Buffered())
	return initial, err
}

// acceptKey proves that a WebSocket was meant: RFC 6455, section 4.2.2.
func acceptKey(key string) string {
	h := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(h[:])
}

// hasToken reports whether a header that is a list has a value, in any case.
func hasToken(h http.Header, name, token string) bool {
	for _, l := range h.Values(name) {
		for v := range strings.SplitSeq(l, ",") {
			if strings.EqualFold(strings.TrimSpace(v), token) {
				return true
			}
		}
	}
	return false
}
