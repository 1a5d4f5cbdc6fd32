package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v4"
	"golang.org/x/sys/unix"

	"causeway/agent/config"
	"causeway/netns"
	"causeway/protocol"
	"causeway/tunnel"
	"causeway/tunnel/underlay/sock"
)

const (
	// resolveEvery is how often names of reachable hubs are looked up again,
	// resolveLost how often those of hubs that do not answer.
	resolveEvery = 5 * time.Minute
	resolveLost  = 15 * time.Second
	lookupWait   = 5 * time.Second
)

// resolveLoop keeps the tunnel's hubs what the hub list and DNS say. Addresses
// that were found once stay until others are found, and then while the hub answers there
// alone.
func (a *Agent) resolveLoop(ctx context.Context) error {
	b := backoff.NewExponentialBackOff(backoff.WithInitialInterval(500*time.Millisecond), backoff.WithMaxInterval(resolveLost), backoff.WithMaxElapsedTime(0))
	known := map[string][]netip.AddrPort{}
	var last string
	// Before the sockets are open the first handshake would be lost, and
	// WireGuard repeats it after 5 s only.
	select {
	case <-ctx.Done():
		return nil
	case <-a.tunnel.Ready():
	}
	// Streams need no DNS here, which may not answer: an HTTP proxy may be all
	// that there is.
	a.mu.Lock()
	list := a.hubs
	a.mu.Unlock()
	if err := a.tunnel.SetHubs(unresolved(list)); err != nil {
		a.log.Warn().Err(err).Msg("hubs cannot be set")
	}
	for {
		a.mu.Lock()
		list = a.hubs
		a.mu.Unlock()
		if err := list.ValidAt(a.time()); err != nil {
			a.log.Warn().Err(err).Msg("the hub list is used all the same, until a hub sends another")
		}
		hubs, err := a.resolve(ctx, list, known)
		if ctx.Err() != nil {
			return nil
		}
		if text := fmt.Sprint(hubs); text != last {
			if e := a.tunnel.SetHubs(hubs); e != nil {
				err = errors.Join(err, e)
			} else {
				last = text
			}
		}
		wait := resolveEvery
		switch {
		case err != nil:
			wait = b.NextBackOff()
			a.log.Warn().Err(err).Dur("retry_in", wait).Msg("not every hub could be set")
		case a.boundHub(0) == 0:
			b.Reset()
			wait = resolveLost
		default:
			b.Reset()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.listChanged:
		case <-time.After(wait):
		}
	}
}

// resolve looks up the UDP addresses of all hubs. Its error is the first name
// that did not resolve.
func (a *Agent) resolve(ctx context.Context, list protocol.HubList, known map[string][]netip.AddrPort) (out []tunnel.NodeHub, first error) {
	for _, h := range list.Hubs {
		t := tunnel.NodeHub{Number: h.Number, Key: h.WireGuardKey, Overlay: hubOverlay(list, h.Number), HTTPS: h.HTTPS}
		for _, hp := range h.UDP {
			as, err := a.resolveOne(ctx, hp)
			if err != nil {
				if first == nil {
					first = err
				}
			} else {
				known[hp] = keepAnswering(known[hp], as, a.tunnel.Ways(h.Number))
			}
			for _, ap := range known[hp] {
				if !slices.Contains(t.UDP, ap) {
					t.UDP = append(t.UDP, ap)
				}
			}
		}
		out = append(out, t)
	}
	return out, first
}

// keepAnswering is what a hub's name stands for now, with the addresses before at which the
// hub answers while it answers at none of the new: a wrong record shall not
// take a hub away that works.
func keepAnswering(before, now []netip.AddrPort, ways []protocol.Way) []netip.AddrPort {
	answers := func(x netip.AddrPort) bool {
		return slices.ContainsFunc(ways, func(w protocol.Way) bool { return w.Addr == x && w.Fresh() })
	}
	if slices.ContainsFunc(now, answers) {
		return now
	}
	out := slices.Clone(now)
	for _, x := range before {
		if answers(x) && !slices.Contains(now, x) {
			out = append(out, x)
		}
	}
	return out
}

// unresolved is the hubs without any name looked up.
func unresolved(list protocol.HubList) (out []tunnel.NodeHub) {
	for _, h := range list.Hubs {
		t := tunnel.NodeHub{Number: h.Number, Key: h.WireGuardKey, Overlay: hubOverlay(list, h.Number), HTTPS: h.HTTPS}
		for _, hp := range h.UDP {
			if ap, err := netip.ParseAddrPort(hp); err == nil {
				t.UDP = append(t.UDP, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
			}
		}
		out = append(out, t)
	}
	return out
}

// proxyFor chooses the HTTP proxy for streams: the config's, or the environment's.
func proxyFor(c config.Config) func(*url.URL) (*url.URL, error) {
	if c.Proxy != nil {
		return func(*url.URL) (*url.URL, error) { return c.Proxy, nil }
	}
	return func(u *url.URL) (*url.URL, error) { return http.ProxyFromEnvironment(&http.Request{URL: u}) }
}

func (a *Agent) resolveOne(ctx context.Context, hostport string) ([]netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), uint16(p))}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupWait)
	defer cancel()
	ips, err := a.lookup(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	var out []netip.AddrPort
	for _, ip := range ips {
		out = append(out, netip.AddrPortFrom(ip.Unmap(), uint16(p)))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out), nil
}

// hubOverlay are a hub's addresses in the overlay.
func hubOverlay(list protocol.HubList, n protocol.NodeNumber) (out []netip.Addr) {
	for _, p := range list.Overlay {
		if a, err := n.Overlay(p); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// boundHub is a hub that answers, prefer if it does; 0 if none.
func (a *Agent) boundHub(prefer protocol.NodeNumber) protocol.NodeNumber {
	if prefer != 0 && a.tunnel.HubBound(prefer) {
		return prefer
	}
	a.mu.Lock()
	list := a.hubs
	a.mu.Unlock()
	for _, h := range list.Hubs {
		if a.tunnel.HubBound(h.Number) {
			return h.Number
		}
	}
	return 0
}

// hubNames says where hubs are looked for, for a condition's cause.
func (a *Agent) hubNames(of func(protocol.Hub) []string) string {
	a.mu.Lock()
	list := a.hubs
	a.mu.Unlock()
	var out []string
	for _, h := range list.Hubs {
		out = append(out, of(h)...)
	}
	return strings.Join(out[:min(len(out), 5)], ", ")
}

func udpNames(h protocol.Hub) []string   { return h.UDP }
func httpsNames(h protocol.Hub) []string { return h.HTTPS }

// lookup resolves a name through sockets that never take tunnel routes: a DNS
// server may lie inside an approved route.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return sock.Resolver(netns.DefaultMark).LookupNetIP(ctx, "ip", host)
}

// controlMSS bounds segments to and from a hub, so that control fits every
// path that carries IPv6 (1280 bytes), before any MTU is found: 40 bytes of
// IPv6, 8 of UDP and 32 of WireGuard outside, 60 of IPv6 and TCP inside.
const controlMSS = 1280 - 40 - 8 - 32 - 60

// errNoDevice says that somebody has deleted the tunnel's device.
var errNoDevice = errors.New("the tunnel's device is missing")

// dialer dials TCP from an overlay address through the tunnel's interface and
// through no other, whatever the routes are at that moment. iface is empty while there
// is none.
func dialer(iface func() string) func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
		d := net.Dialer{
			LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
			// The tunnel's probes judge liveness; this is a long backstop.
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4},
			Control: func(_, _ string, c syscall.RawConn) error {
				name := iface()
				if name == "" { // which would bind to none
					return errNoDevice
				}
				var err error
				if e := c.Control(func(fd uintptr) {
					err = errors.Join(unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, name),
						unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, controlMSS))
				}); e != nil {
					return e
				}
				return err
			},
		}
		return d.DialContext(ctx, "tcp", to.String())
	}
}
