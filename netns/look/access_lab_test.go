package look

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/netns/lab"
	"causeway/netns/netnstest"
	"causeway/protocol"
)

// wall is a node with a pod and a LAN, whose tunnel's other end the test holds: no engine
// looks at what comes and goes, nftables alone do.
type wall struct {
	t              *testing.T
	node, pod, lan *lab.Host
	h              *netns.Host
	look           *Host
	state          string // of h, a directory
	tun            *os.File
	plan           netns.Plan
}

func newWall(t *testing.T) *wall {
	netnstest.Root(t)
	l := lab.New(t)
	sw := l.Switch("lan")
	w := &wall{t: t}
	w.node = l.Host("n").Link("eth0", sw, "192.168.1.11/24", "fd92::11/64")
	w.pod = w.node.PodNet("pods0", "10.1.0.1/24", "fd10:1::1/64").Pod("p", "10.1.0.11/24", "fd10:1::11/64")
	w.lan = l.Host("l").Link("eth0", sw, "192.168.1.50/24", "fd92::50/64").Route("10.0.0.0/8", "192.168.1.11").Route("fd10::/16", "fd92::11")
	w.node.Sh("ip tuntap add cw0 mode tun; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1") // walls hold on a router
	require.NoError(t, w.node.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		r, err := unix.NewIfreq("cw0")
		if err != nil {
			return err
		}
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
			return err
		}
		w.tun = os.NewFile(uintptr(fd), "tun")
		return nil
	}))
	t.Cleanup(func() { w.tun.Close() })
	w.state = t.TempDir()
	w.h = netns.NewHost(w.state, zerolog.Nop())
	w.look = At(w.h)
	w.apply(netns.Shields{})
	return w
}

func (w *wall) apply(s netns.Shields) {
	w.t.Helper()
	w.set(netns.Config{Interface: "cw0", MTU: 1380, Mark: netns.DefaultMark, Table: netns.DefaultTable, Shields: s,
		Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd63:7761:7900::2")},
		Routes:  prefixes("198.18.0.0/15", "fd63:7761:7900::/96", "10.2.0.0/24", "fd10:2::/64"),
		Local:   prefixes("10.1.0.0/24", "fd10:1::/64")})
}

func (w *wall) set(c netns.Config) {
	w.t.Helper()
	require.NoError(w.t, w.node.Do(func() (err error) {
		c.Uses, err = w.h.Uses(context.Background(), c)
		w.plan = plan(w.t, c)
		return errors.Join(err, w.h.Apply(context.Background(), w.plan))
	}))
}

func (w *wall) drops() (out map[string]uint64) {
	w.t.Helper()
	require.NoError(w.t, w.node.Do(func() (err error) { out, err = w.h.AccessDrops(context.Background()); return err }))
	return out
}

func (w *wall) flow(f Flow) (e protocol.FlowEvidence) {
	w.t.Helper()
	require.NoError(w.t, w.node.Do(func() error { e = w.look.Flow(context.Background(), w.plan, f); return nil }))
	require.Empty(w.t, e.Error)
	return e
}

// udp is a datagram, as a peer's would come out of the tunnel.
func udp(src, dst string, port uint16, payload string) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	u := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(u, 4000)
	binary.BigEndian.PutUint16(u[2:], port)
	u = append(u, payload...)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	sum := func(b []byte, s uint32) uint32 {
		for ; len(b) > 1; b = b[2:] {
			s += uint32(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			s += uint32(b[0]) << 8
		}
		for s > 0xffff {
			s = s>>16 + s&0xffff
		}
		return s
	}
	c := sum(u, sum(d.AsSlice(), sum(s.AsSlice(), uint32(17+len(u)))))
	binary.BigEndian.PutUint16(u[6:], ^uint16(c))
	var ip []byte
	if s.Is4() {
		ip = []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0}
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(u)))
		ip = append(append(ip, s.AsSlice()...), d.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum(ip, 0)))
	} else {
		ip = []byte{0x60, 0, 0, 0, 0, 0, 17, 64}
		binary.BigEndian.PutUint16(ip[4:], uint16(len(u)))
		ip = append(append(ip, s.AsSlice()...), d.AsSlice()...)
	}
	return append(ip, u...)
}

// listen opens a UDP socket on a host.
func (w *wall) listen(h *lab.Host, port int) net.PacketConn {
	w.t.Helper()
	var c net.PacketConn
	require.NoError(w.t, h.Do(func() (err error) {
		c, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	}))
	w.t.Cleanup(func() { c.Close() })
	return c
}

// heard reads until want comes, and returns what came before.
func heard(t *testing.T, c net.PacketConn, want string) (before []string) {
	t.Helper()
	b := make([]byte, 100)
	for {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, _, err := c.ReadFrom(b)
		require.NoError(t, err, "waiting for %q", want)
		if string(b[:n]) == want {
			return before
		}
		before = append(before, string(b[:n]))
	}
}

// What a peer sends goes to this node's own overlay addresses and approved prefixes and to
// nothing else, by nftables alone.
func TestWallOfDestinations(t *testing.T) {
	lab.Counts(t)
	w := newWall(t)
	pod, lan, own := w.listen(w.pod, 5000), w.listen(w.lan, 5000), w.listen(w.node, 5000)
	send := func(src, dst, text string) {
		_, err := w.tun.Write(udp(src, dst, 5000, text))
		require.NoError(t, err)
	}
	for _, way := range []struct{ from, pod, lan, overlay, eth, other string }{
		{"10.2.0.5", "10.1.0.11", "192.168.1.50", "198.18.0.2", "192.168.1.11", "203.0.113.9"},
		{"fd10:2::5", "fd10:1::11", "fd92::50", "fd63:7761:7900::2", "fd92::11", "2001:db8::9"},
	} {
		before := w.drops()["destination"]
		send(way.from, way.lan, "to the lan")
		send(way.from, way.eth, "to the host's own address of the lan")
		send(way.from, way.other, "to anywhere")
		send(way.from, way.pod, "to the pod")
		send(way.from, way.overlay, "to the node")
		require.Empty(t, heard(t, pod, "to the pod"))
		require.Empty(t, heard(t, own, "to the node"))
		require.Equal(t, before+3, w.drops()["destination"])

		// The rule is what keeps it: without it the LAN host is reached.
		w.node.Sh("nft flush chain inet causeway access-destination")
		send(way.from, way.lan, "without the wall")
		require.Empty(t, heard(t, lan, "without the wall"))
		w.apply(netns.Shields{})
	}
}

// Into the tunnel goes a source of this node's own by the interface where it lives, and no
// other source, whatever rp_filter says.
func TestWallOfSources(t *testing.T) {
	lab.Counts(t)
	w := newWall(t)
	w.lan.Sh("ip addr add 10.1.0.99/32 dev lo; ip addr add fd10:1::99/128 dev lo nodad; ip addr add 198.18.0.2/32 dev lo; ip addr add fd63:7761:7900::2/128 dev lo nodad; ip -6 route add fd63:7761:7900::/96 via fd92::11; ip route add 198.18.0.0/15 via 192.168.1.11")
	say := func(h *lab.Host, from, to, text string) {
		require.NoError(t, h.Do(func() error {
			c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), 5000)))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(text))
			return err
		}))
	}
	// entered reads what went into the tunnel until want comes.
	entered := func(want string) (before []string) {
		b := make([]byte, 2000)
		for {
			w.tun.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, err := w.tun.Read(b)
			require.NoError(t, err, "waiting for %q", want)
			if s := string(b[:n]); strings.HasSuffix(s, want) {
				return before
			} else if strings.Contains(s, "say: ") {
				before = append(before, s[strings.Index(s, "say: "):])
			}
		}
	}
	for _, rp := range []string{"0", "2"} {
		w.node.Sysctl("net.ipv4.conf.all.rp_filter="+rp, "net.ipv4.conf.eth0.rp_filter="+rp)
		for _, way := range []struct{ pod, forged, lan, overlay, to string }{
			{"10.1.0.11", "10.1.0.99", "192.168.1.50", "198.18.0.2", "10.2.0.5"},
			{"fd10:1::11", "fd10:1::99", "fd92::50", "fd63:7761:7900::2", "fd10:2::5"},
		} {
			before := w.drops()
			say(w.lan, way.forged, way.to, "say: forged pod")
			say(w.lan, way.lan, way.to, "say: not announced")
			say(w.lan, way.overlay, way.to, "say: forged node")
			say(w.pod, way.pod, way.to, "say: pod")
			require.Empty(t, entered("say: pod"), "rp_filter %s", rp)
			require.NoError(t, lab.Wait(within(t), "the drops", func(context.Context) error {
				now := w.drops()
				if got := [2]uint64{now["interface"] - before["interface"], now["source"] - before["source"]}; got != [2]uint64{2, 1} {
					return fmt.Errorf("rp_filter %s, to %s: dropped %v", rp, way.to, got)
				}
				return nil
			}))
			e := w.flow(Flow{Local: netip.MustParseAddr(way.pod), Remote: netip.MustParseAddr(way.to), Proto: "udp", Port: 5000})
			require.Len(t, e.Drops, 1)
			require.Equal(t, "inet causeway access-interface", e.Drops[0].Chain)
			require.False(t, e.Drops[0].Certain)
			require.Contains(t, e.Drops[0].Rule, "fib saddr . iif oif missing")
			// What the host masquerades is its own.
			w.node.Sh("nft 'add table inet nat; add chain inet nat post { type nat hook postrouting priority 100; }; add rule inet nat post oifname cw0 iifname eth0 masquerade'")
			say(w.lan, way.lan, way.to, "say: masqueraded")
			require.Empty(t, entered("say: masqueraded"))
			w.node.Sh("nft delete table inet nat")
		}
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// With shields up the host itself answers echo and what its config names; what it
// publishes for a container is its own too, what is behind it is not.
func TestWallOfShields(t *testing.T) {
	lab.Counts(t)
	w := newWall(t)
	pod, own, named := w.listen(w.pod, 5000), w.listen(w.node, 5000), w.listen(w.node, 5001)
	broad := w.listen(w.node, 5002)
	// A port that the host publishes.
	w.node.Sh("nft 'add table inet pub; add chain inet pub pre { type nat hook prerouting priority -100; }; add rule inet pub pre ip daddr 198.18.0.2 udp dport 8080 dnat ip to 10.1.0.11:5000; add rule inet pub pre ip6 daddr fd63:7761:7900::2 udp dport 8080 dnat ip6 to [fd10:1::11]:5000'")
	send := func(src, dst string, port uint16, text string) {
		_, err := w.tun.Write(udp(src, dst, port, text))
		require.NoError(t, err)
	}
	for _, up := range []bool{true, false} {
		w.apply(netns.Shields{Up: up, Allow: []netns.Port{{Proto: "udp", First: 5001, Last: 5001}}})
		for _, way := range []struct{ from, pod, overlay, bridge string }{
			{"10.2.0.5", "10.1.0.11", "198.18.0.2", "10.1.0.1"}, {"fd10:2::5", "fd10:1::11", "fd63:7761:7900::2", "fd10:1::1"},
		} {
			text := func(s string) string { return fmt.Sprint(s, up, way.from) }
			before := w.drops()["shields"]
			send(way.from, way.overlay, 5000, text("service"))
			send(way.from, way.bridge, 5000, text("service at the bridge"))
			send(way.from, way.overlay, 8080, text("published"))
			if way.from == "10.2.0.5" {
				send(way.from, "10.1.0.255", 5002, text("broadcast"))
			}
			send(way.from, way.overlay, 5001, text("named"))
			send(way.from, way.pod, 5000, text("pod"))
			podBefore := heard(t, pod, text("pod"))
			require.Empty(t, heard(t, named, text("named")))
			if up {
				require.Empty(t, podBefore)
				n := uint64(3)
				if way.from == "10.2.0.5" {
					n++
				}
				require.Equal(t, before+n, w.drops()["shields"])
				continue
			}
			require.Equal(t, []string{text("published")}, podBefore)
			require.Empty(t, heard(t, own, text("service")))
			require.Empty(t, heard(t, own, text("service at the bridge")))
			if way.from == "10.2.0.5" {
				require.Empty(t, heard(t, broad, text("broadcast")))
			}
		}
	}
	// Answers to what the host began pass, and echo. The rule is named to whoever asks.
	w.apply(netns.Shields{Up: true, Allow: []netns.Port{{Proto: "udp", First: 5001, Last: 5001}}})
	for _, own := range []string{"198.18.0.2", "fd63:7761:7900::2"} {
		f := Flow{Local: netip.MustParseAddr(own), Remote: netip.MustParseAddr("10.2.0.5"), Proto: "udp", Port: 5000, Serves: true}
		if f.Local.Is6() {
			f.Remote = netip.MustParseAddr("fd10:2::5")
		}
		d := w.flow(f).Drops
		require.Len(t, d, 1)
		require.Equal(t, "inet causeway shields", d[0].Chain)
		require.True(t, d[0].Certain)
		f.Port = 5001
		require.Empty(t, w.flow(f).Drops)
		f.Proto, f.Port = "icmp", 0
		require.Empty(t, w.flow(f).Drops)
	}
	asks := w.listen(w.node, 5004)
	for _, way := range [][2]string{{"198.18.0.2", "10.2.0.5"}, {"fd63:7761:7900::2", "fd10:2::5"}} {
		_, err := asks.WriteTo([]byte("ask"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(way[1]), 4000)))
		require.NoError(t, err)
		send(way[1], way[0], 5004, "answer to "+way[0])
		require.Empty(t, heard(t, asks, "answer to "+way[0]))
	}
	// What a peer began while the shields were down is not open any more once they are up,
	// though it never paused and is answered.
	w.apply(netns.Shields{})
	late := w.listen(w.node, 5003)
	ways := [][2]string{{"198.18.0.2", "10.2.0.5"}, {"fd63:7761:7900::2", "fd10:2::5"}}
	answers := func(to string) {
		_, err := late.WriteTo([]byte("answer"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), 4000)))
		require.NoError(t, err)
	}
	for _, way := range ways {
		send(way[1], way[0], 5003, "begun "+way[1])
		require.Empty(t, heard(t, late, "begun "+way[1]))
		answers(way[1])
	}
	w.apply(netns.Shields{Up: true})
	for _, way := range ways {
		before := w.drops()["shields"]
		send(way[1], way[0], 5003, "goes on "+way[1])
		require.Equal(t, before+1, w.drops()["shields"], "a flow of before goes on")
	}
}
