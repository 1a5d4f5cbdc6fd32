package service

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// world is a node with pods and a LAN, and two sites behind its tunnel, which is a cable here.
//
//	pc, pl (10.1.0.11, .12), lan (192.168.5.2), far (172.16.9.2) - n cw0 - cw0 r - a (10.2.0.11), b (10.3.0.11)
//
// far is on a LAN behind n that no peer knows. Each of a, b and pl answers with its name and the source that it sees.
type world struct {
	t        *testing.T
	l        *lab.Lab
	n, r     *lab.Host
	pc, pl   *lab.Host
	lan, far *lab.Host
	a, b     *lab.Host
	table    *Table
	config   Config
	servers  map[string]*server
}

const (
	vip4, vip6 = "198.19.0.1", "fd63:7761:7900::8:1"
	tcp, udp   = uint8(6), uint8(17)
)

// Where things are, by name: IPv4 and IPv6.
var addrs = map[string][2]string{
	"pc": {"10.1.0.11", "fd10:1::11"}, "pl": {"10.1.0.12", "fd10:1::12"}, "lan": {"192.168.5.2", "fd10:5::2"}, "far": {"172.16.9.2", "fd10:9::2"},
	"n": {"198.18.0.1", "fd63:7761:7900::1"}, "a": {"10.2.0.11", "fd10:2::11"}, "b": {"10.3.0.11", "fd10:3::11"},
}

func newWorld(t testing.TB) *world {
	l := lab.New(t)
	w := &world{l: l, table: NewTable(), servers: map[string]*server{}}
	w.t, _ = t.(*testing.T)
	w.n, w.r, w.lan, w.far = l.Host("n"), l.Host("r"), l.Host("lan"), l.Host("far")
	l.Wire(w.n, "cw0", []string{"198.18.0.1/24", "fd63:7761:7900::1/112"}, w.r, "cw0", []string{"198.18.0.2/24", "fd63:7761:7900::2/112"})
	l.Wire(w.n, "lan0", []string{"192.168.5.1/24", "fd10:5::1/64"}, w.lan, "eth0", []string{"192.168.5.2/24", "fd10:5::2/64"})
	l.Wire(w.n, "far0", []string{"172.16.9.1/24", "fd10:9::1/64"}, w.far, "eth0", []string{"172.16.9.2/24", "fd10:9::2/64"})
	pods := w.n.PodNet("pods0", "10.1.0.1/24", "fd10:1::1/64")
	w.pc, w.pl = pods.Pod("pc", "10.1.0.11/24", "fd10:1::11/64"), pods.Pod("pl", "10.1.0.12/24", "fd10:1::12/64")
	w.a = w.r.PodNet("a0", "10.2.0.1/24", "fd10:2::1/64").Pod("a", "10.2.0.11/24", "fd10:2::11/64")
	w.b = w.r.PodNet("b0", "10.3.0.1/24", "fd10:3::1/64").Pod("b", "10.3.0.11/24", "fd10:3::11/64")
	w.lan.Default("192.168.5.1", "fd10:5::1")
	w.far.Default("172.16.9.1", "fd10:9::1")
	for _, h := range []*lab.Host{w.n, w.r, w.pc, w.pl, w.lan, w.far} {
		for dev := range strings.FieldsSeq(h.Sh("ls /proc/sys/net/ipv4/conf")) {
			h.Sysctl("net.ipv4.conf." + dev + ".rp_filter=1") // strict
		}
	}
	for _, h := range []*lab.Host{w.n, w.r} {
		h.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
			"net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0") // so that each attempt is answered
		h.Sh("ip link set cw0 address 02:00:00:00:00:01 arp off") // as a TUN, it asks for no neighbours
	}
	// As the agent has them: all of the overlay, with the addresses of services, and peers' prefixes.
	w.n.Sh(`ip route add 198.19.0.0/16 dev cw0 src 198.18.0.1; ip -6 route add fd63:7761:7900::8:0/112 dev cw0 src fd63:7761:7900::1
		ip route add 10.2.0.0/24 via 198.18.0.2 src 198.18.0.1; ip -6 route add fd10:2::/64 via fd63:7761:7900::2 src fd63:7761:7900::1
		ip route add 10.3.0.0/24 via 198.18.0.2 src 198.18.0.1; ip -6 route add fd10:3::/64 via fd63:7761:7900::2 src fd63:7761:7900::1`)
	w.r.Sh(`ip route add 10.1.0.0/24 via 198.18.0.1 src 198.18.0.2; ip -6 route add fd10:1::/64 via fd63:7761:7900::1 src fd63:7761:7900::2
		ip route add 192.168.5.0/24 via 198.18.0.1; ip -6 route add fd10:5::/64 via fd63:7761:7900::1`)
	for _, h := range []*lab.Host{w.n, w.r, w.pc, w.pl, w.lan, w.far, w.a, w.b} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		require.NoError(t, h.Settle(ctx))
		cancel()
	}
	w.config = Config{Interface: "cw0", Range: prefixesOf("198.19.0.0/16", "fd63:7761:7900::8:0/112"),
		Own:   []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd63:7761:7900::1")},
		Local: prefixesOf("10.1.0.0/24", "fd10:1::/64", "192.168.5.0/24", "fd10:5::/64")}
	return w
}

func prefixesOf(l ...string) (out []netip.Prefix) {
	for _, x := range l {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

func (w *world) host(name string) *lab.Host {
	return map[string]*lab.Host{"pc": w.pc, "pl": w.pl, "lan": w.lan, "far": w.far, "n": w.n, "a": w.a, "b": w.b}[name]
}

// on runs f in the node's namespace.
func (w *world) on(f func() error) {
	w.t.Helper()
	require.NoError(w.t, w.n.Do(f))
}

// backend is a server's address on port 8080.
func backend(name string, v6 bool) netip.AddrPort {
	a := addrs[name][0]
	if v6 {
		a = addrs[name][1]
	}
	return netip.AddrPortFrom(netip.MustParseAddr(a), 8080)
}

// slots of n that are the servers' in turn.
func slots(n int, v6 bool, names ...string) (out []netip.AddrPort) {
	for i := range n {
		if len(names) == 0 {
			return nil
		}
		out = append(out, backend(names[i%len(names)], v6))
	}
	return out
}

// services are port 80 of TCP and UDP, spread, and 81, sticky, in both families.
func services(n int, names ...string) (out []Service) {
	for _, v6 := range []bool{false, true} {
		vip := netip.MustParseAddr(vip4)
		if v6 {
			vip = netip.MustParseAddr(vip6)
		}
		for _, p := range []uint8{tcp, udp} {
			out = append(out, Service{vip, p, 80, false, slots(n, v6, names...), nil}, Service{vip, p, 81, true, slots(n, v6, names...), nil})
		}
	}
	return out
}

// backends are a server's, of both families and protocols.
func backends(name string) (out []Backend) {
	for _, v6 := range []bool{false, true} {
		out = append(out, Backend{tcp, backend(name, v6)}, Backend{udp, backend(name, v6)})
	}
	return out
}

// set sets services, with these dead.
func (w *world) set(l []Service, dead ...Backend) {
	w.t.Helper()
	w.config.Services, w.config.Dead = l, dead
	w.on(func() error { return w.table.Set(w.config) })
}

// server answers each hello with its name and whom it sees.
type server struct {
	name  string
	mu    sync.Mutex
	conns []net.Conn // that came
}

// all are the connections that came.
func (s *server) all() []net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.conns)
}

// serve serves port 8080 of a host of that name.
func (w *world) serve(names ...string) {
	w.t.Helper()
	for _, name := range names {
		s := &server{name: name}
		w.servers[name] = s
		var l net.Listener
		var us [2]net.PacketConn // of one address each, so that answers come from it
		require.NoError(w.t, w.host(name).Do(func() (err error) {
			l, err = net.Listen("tcp", ":8080")
			for i := 0; err == nil && i < 2; i++ {
				us[i], err = net.ListenPacket("udp", backend(name, i == 1).String())
			}
			return err
		}))
		w.t.Cleanup(func() { l.Close(); us[0].Close(); us[1].Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.mu.Lock()
				s.conns = append(s.conns, c)
				s.mu.Unlock()
				go func() {
					defer c.Close()
					for lines := bufio.NewScanner(c); lines.Scan(); {
						if lines.Text() == "hello" {
							fmt.Fprintf(c, "%s %s\n", name, seenAs(c.RemoteAddr()))
						}
					}
				}()
			}
		}()
		for _, u := range us {
			go func() {
				b := make([]byte, 65536)
				for {
					n, from, err := u.ReadFrom(b)
					if errors.Is(err, net.ErrClosed) {
						return
					}
					if err == nil && n > 0 {
						u.WriteTo(fmt.Appendf(nil, "%s %s\n", name, seenAs(from)), from)
					}
				}
			}()
		}
	}
}

func seenAs(a net.Addr) string {
	p, _ := netip.ParseAddrPort(a.String())
	return p.Addr().Unmap().String()
}

// dial opens a connection on a host.
func dial(h *lab.Host, network, to string) (c net.Conn, err error) {
	err = h.Do(func() (err error) {
		d := net.Dialer{Timeout: 8 * time.Second}
		c, err = d.Dial(network, to)
		return err
	})
	return c, err
}

// at is a service's address and port.
func at(v6 bool, port int) string {
	if v6 {
		return net.JoinHostPort(vip6, fmt.Sprint(port))
	}
	return net.JoinHostPort(vip4, fmt.Sprint(port))
}

// ask says hello on a new connection, and returns who answers and whom it saw.
func ask(h *lab.Host, network, to string) (name, seen string, err error) {
	c, err := dial(h, network, to)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return answer(c)
}

func answer(c net.Conn) (name, seen string, err error) {
	c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return "", "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", err
	}
	name, seen, _ = strings.Cut(strings.TrimSpace(line), " ")
	return name, seen, nil
}

// silent has a host drop all, and heal ends that.
func silent(h *lab.Host) {
	h.Sh("nft 'table inet silent { chain i { type filter hook input priority -300; policy drop; }; chain o { type filter hook output priority -300; policy drop; }; }'")
}

func heal(h *lab.Host) { h.Sh("nft delete table inet silent") }

func soak() bool { return os.Getenv("CAUSEWAY_SOAK") != "" }
