package hublink

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"

	"causeway/agent/config"
	"causeway/agent/identity"
)

// proxySettings are the variables of the environment that name a proxy for HTTPS.
var proxySettings = []string{"HTTPS_PROXY", "https_proxy"}

// ownProxy is the proxy that the service itself was given, by its configuration or, where that
// names none, by its environment. given is false if neither says anything.
func ownProxy(c config.Config) (choose func(*url.URL) (*url.URL, error), given bool) {
	if c.Proxy != nil {
		return func(*url.URL) (*url.URL, error) { return c.Proxy, nil }, true
	}
	for _, k := range proxySettings {
		given = given || os.Getenv(k) != ""
	}
	return func(u *url.URL) (*url.URL, error) { return http.ProxyFromEnvironment(&http.Request{URL: u}) }, given
}

// ProxyFor chooses the HTTP proxy for streams: the service's own, or else, in turn, that of the
// join, with which the hub was reached, and none.
func ProxyFor(c config.Config, j *identity.Joined) func(*url.URL) (*url.URL, error) {
	own, given := ownProxy(c)
	if given || j == nil || j.Proxy == "" {
		return own
	}
	kept, err := url.Parse(j.Proxy)
	if err != nil {
		return own
	}
	var turn atomic.Uint32
	return func(*url.URL) (*url.URL, error) {
		if turn.Add(1)%2 == 1 {
			return kept, nil
		}
		return nil, nil
	}
}

// ShownProxy is a proxy's URL without its password.
func ShownProxy(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "(no URL)"
	}
	return u.Redacted()
}

// Lacks says in one line what the join had to reach the hub with and the service has not;
// empty: nothing.
func Lacks(c config.Config, j *identity.Joined) string {
	if j == nil {
		return ""
	}
	var out []string
	if _, given := ownProxy(c); !given && j.Proxy != "" {
		p := ShownProxy(j.Proxy)
		out = append(out, fmt.Sprintf("the join went through the proxy %s (%s), which this service was not given: it is tried beside the direct way; write 'proxy: %s' into %s", p, j.From, p, config.DefaultPath))
	}
	if name, value, ok := strings.Cut(j.CA, "="); ok && os.Getenv(name) != value {
		out = append(out, fmt.Sprintf("the join judged the proxy's certificate by %s, which this service was not given; write Environment=%s into a drop-in of its unit", j.CA, j.CA))
	}
	if j.Interface != "" {
		if i, err := net.InterfaceByName(j.Interface); err != nil || i.Flags&net.FlagUp == 0 {
			out = append(out, fmt.Sprintf("the join went out by interface %s, which is not up now", j.Interface))
		}
	}
	return strings.Join(out, "; ")
}

// dnsNote says that hubs are reached, or sought, at the addresses of before, while DNS does not
// answer; empty: it does, or there is nothing to ask.
func (l *Link) dnsNote() string {
	if e := l.dnsError.Load(); e != nil {
		return fmt.Sprintf("%s; the addresses at which hubs answered before are used", *e)
	}
	return ""
}

// hubCause puts what keeps the hub away together.
func (l *Link) hubCause(cause string) string {
	for _, more := range []string{l.dnsNote(), Lacks(l.live.Now(), l.own.Now().Joined)} {
		if more != "" && cause != "" {
			cause += "; "
		}
		cause += more
	}
	return cause
}
