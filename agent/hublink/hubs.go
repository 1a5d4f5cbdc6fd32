package hublink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"causeway/internal/retry"
	"causeway/netns"
	"causeway/protocol"
	"causeway/tunnel"
	"causeway/tunnel/underlay/sock"
)

const (
	// resolveEvery is how often names of hubs that answer over UDP are looked up again.
	// While one does not: at once, then at pauses from resolveFirst, which is above a short
	// TTL, to resolveLost.
	resolveEvery = 5 * time.Minute
	resolveFirst = 2 * time.Second
	resolveLost  = 10 * time.Second
	// resolveStream is resolveLost while a stream carries all.
	resolveStream = 25 * time.Second
	lookupWait    = 5 * time.Second
)

// Resolve keeps the tunnel's hubs what the hub list and DNS say, and beside that,
// while no hub answers there, the addresses at which one did.
func (l *Link) Resolve(ctx context.Context) error {
	pause := retry.Backoff{First: resolveFirst, Most: resolveLost}
	found := map[string][]netip.Addr{} // by name, what DNS said last
	var last string
	// Before the sockets are open the first handshake would be lost, and
	// WireGuard repeats it after 5 s only.
	select {
	case <-ctx.Done():
		return nil
	case <-l.tunnel.Ready():
	}
	for ask := false; ; ask = true { // first without DNS, which may not answer
		list := l.want.Now().Hubs
		var err error
		if ask {
			if err := list.ValidAt(l.want.Time()); err != nil {
				l.log.Warn().Err(err).Msg("the hub list is used all the same, until a hub sends another")
			}
			if err = l.askDNS(ctx, list, found); err == nil {
				l.dnsError.Store(nil)
			} else if ctx.Err() == nil {
				text := err.Error()
				l.dnsError.Store(&text)
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		hubs := l.where(list, found)
		if text := fmt.Sprint(hubs); text != last {
			if e := l.tunnel.SetHubs(hubs); e != nil {
				err = errors.Join(err, e)
			} else {
				last = text
			}
		}
		if !ask {
			continue
		}
		wait := resolveEvery
		silent := l.hubsSilent // wakes once, when a hub falls silent
		if err != nil || l.silent(list) {
			if pause.Most = resolveLost; l.boundHub(0) != 0 {
				pause.Most = resolveStream
			}
			wait, silent = pause.Next(0), nil
		} else {
			pause.Reset()
		}
		if err != nil {
			l.log.Warn().Err(err).Dur("retry_in", wait).Msg("not every hub could be set")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.listChanged:
		case <-silent:
		case <-time.After(wait):
		}
	}
}

// askDNS looks up the names of all hubs into found, where a name that DNS does not tell
// stays as it was. Its error is the first of those.
func (l *Link) askDNS(ctx context.Context, list protocol.HubList, found map[string][]netip.Addr) (first error) {
	asked := map[string]bool{}
	for _, h := range list.Hubs {
		for _, hp := range h.UDP {
			host, _, _ := net.SplitHostPort(hp)
			if _, err := netip.ParseAddr(host); err == nil || asked[host] {
				continue
			}
			asked[host] = true
			lctx, cancel := context.WithTimeout(ctx, lookupWait)
			ips, err := l.names.ask(lctx, host)
			cancel()
			if err != nil {
				if first == nil {
					first = fmt.Errorf("look up %s: %w", host, err)
				}
				continue
			}
			for i, ip := range ips {
				ips[i] = ip.Unmap()
			}
			slices.SortFunc(ips, netip.Addr.Compare)
			found[host] = slices.Compact(ips)
		}
	}
	return first
}

// where is at which addresses hubs are sought over UDP.
func (l *Link) where(list protocol.HubList, found map[string][]netip.Addr) (out []tunnel.NodeHub) {
	for _, h := range list.Hubs {
		t := tunnel.NodeHub{Number: h.Number, Key: h.WireGuardKey, Overlay: list.Addrs(h.Number), HTTPS: h.HTTPS}
		answers := answering(l.tunnel.Ways(h.Number))
		for _, hp := range h.UDP {
			host, port, err := splitHostPort(hp)
			if err != nil {
				continue
			}
			addrs := found[host]
			if ip, err := netip.ParseAddr(host); err == nil {
				addrs = []netip.Addr{ip.Unmap()}
			} else {
				addrs = beside(addrs, l.names.of(host), func(x netip.Addr) bool { return answers[netip.AddrPortFrom(x, port)] })
			}
			for _, ip := range addrs {
				if ap := netip.AddrPortFrom(ip, port); !slices.Contains(t.UDP, ap) {
					t.UDP = append(t.UDP, ap)
				}
			}
		}
		out = append(out, t)
	}
	return out
}

// beside is what a hub's name stands for: what DNS says now, and beside it, unless the hub
// answers there, the addresses at which it answered before. A record that is wrong, or none,
// takes no hub away.
func beside(now, before []netip.Addr, answers func(netip.Addr) bool) []netip.Addr {
	if slices.ContainsFunc(now, answers) {
		return now
	}
	out := slices.Clone(now)
	for _, x := range before {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}

// answering are the addresses at which a hub answers over UDP.
func answering(ways []protocol.Way) map[netip.AddrPort]bool {
	m := map[netip.AddrPort]bool{}
	for _, w := range ways {
		if w.Kind != protocol.PathStream && w.Fresh() {
			m[w.Addr] = true
		}
	}
	return m
}

// silent reports whether a hub that has a name answers nowhere over UDP.
func (l *Link) silent(list protocol.HubList) bool {
	return slices.ContainsFunc(list.Hubs, func(h protocol.Hub) bool {
		return named(h) && len(answering(l.tunnel.Ways(h.Number))) == 0
	})
}

func named(h protocol.Hub) bool {
	return slices.ContainsFunc(h.UDP, func(hp string) bool {
		host, _, err := splitHostPort(hp)
		_, e := netip.ParseAddr(host)
		return err == nil && e != nil
	})
}

// lookAtHubs remembers where hubs answer, and tells Resolve if one does not.
func (l *Link) lookAtHubs() {
	list := l.want.Now().Hubs
	for _, h := range list.Hubs {
		if !named(h) {
			continue
		}
		answers := answering(l.tunnel.Ways(h.Number))
		if len(answers) == 0 {
			select {
			case l.hubsSilent <- struct{}{}:
			default:
			}
		}
		for _, hp := range h.UDP {
			host, port, err := splitHostPort(hp)
			if _, e := netip.ParseAddr(host); err != nil || e == nil {
				continue
			}
			for ap := range answers {
				if ap.Port() == port {
					l.names.answered(host, ap.Addr())
				}
			}
		}
	}
	l.lookAtStreams(list)
}

// lookAtStreams remembers where hubs answer over streams that go through no proxy.
func (l *Link) lookAtStreams(list protocol.HubList) {
	if l.proxied {
		return
	}
	for _, p := range l.tunnel.Paths() {
		i := slices.IndexFunc(list.Hubs, func(h protocol.Hub) bool { return h.Number == p.Peer })
		if i < 0 || p.Path != protocol.PathStream || !p.Addr.IsValid() || len(list.Hubs[i].HTTPS) != 1 {
			continue
		}
		host, port, err := splitHostPort(list.Hubs[i].HTTPS[0])
		if _, e := netip.ParseAddr(host); err == nil && e != nil && p.Addr.Port() == port {
			l.names.answered(host, p.Addr.Addr().Unmap())
		}
	}
}

func splitHostPort(hp string) (string, uint16, error) {
	host, port, err := net.SplitHostPort(hp)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return host, uint16(n), err
}

// boundHub is a hub that answers, prefer if it does; 0 if none.
func (l *Link) boundHub(prefer protocol.NodeNumber) protocol.NodeNumber {
	if prefer != 0 && l.tunnel.HubBound(prefer) {
		return prefer
	}
	list := l.want.Now().Hubs
	for _, h := range list.Hubs {
		if l.tunnel.HubBound(h.Number) {
			return h.Number
		}
	}
	return 0
}

// hubNames says where hubs are looked for, for a condition's cause.
func (l *Link) hubNames(of func(protocol.Hub) []string) string {
	list := l.want.Now().Hubs
	var out []string
	for _, h := range list.Hubs {
		out = append(out, of(h)...)
	}
	return strings.Join(out[:min(len(out), 5)], ", ")
}

func udpNames(h protocol.Hub) []string   { return h.UDP }
func httpsNames(h protocol.Hub) []string { return h.HTTPS }

// namesWait bounds how long NamesNow takes.
const namesWait = 2 * time.Second

// NamesNow looks names of the hub list up.
func (l *Link) NamesNow(ctx context.Context) (out []protocol.HubName) {
	list := l.want.Now().Hubs
	ctx, cancel := context.WithTimeout(ctx, namesWait)
	defer cancel()
	for _, h := range list.Hubs {
		var used []netip.Addr
		for _, w := range l.tunnel.Ways(h.Number) {
			if w.Addr.IsValid() && w.Fresh() && !slices.Contains(used, w.Addr.Addr()) {
				used = append(used, w.Addr.Addr())
			}
		}
		for _, hp := range h.UDP {
			host, _, err := net.SplitHostPort(hp)
			if _, e := netip.ParseAddr(host); err != nil || e == nil || len(out) >= 8 {
				continue
			}
			n := protocol.HubName{Name: host, Used: used}
			ips, err := l.names.ask(ctx, host)
			for _, ip := range ips[:min(len(ips), 16)] {
				n.Addrs = append(n.Addrs, ip.Unmap())
			}
			if err != nil {
				n.Error = protocol.OneLine(err.Error(), 200)
			}
			out = append(out, n)
		}
	}
	return out
}

// Lookup resolves a name through sockets that never take tunnel routes: a DNS
// server may lie inside an approved route.
func Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return sock.Resolver(netns.DefaultMark).LookupNetIP(ctx, "ip", host)
}

// controlMSS bounds segments to and from a hub, so that control fits every
// path that carries IPv6 (1280 bytes), before any MTU is found: 40 bytes of
// IPv6, 8 of UDP and 32 of WireGuard outside, 60 of IPv6 and TCP inside.
const controlMSS = 1280 - 40 - 8 - 32 - 60

// errNoDevice says that somebody has deleted the tunnel's device.
var errNoDevice = errors.New("the tunnel's device is missing")

// Dialer dials TCP from an overlay address through the tunnel's interface and
// through no other, whatever the routes are at that moment. iface is empty while there
// is none.
func Dialer(iface func() string) func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) {
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
