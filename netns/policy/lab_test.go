package policy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/internal/kernel"
	"causeway/netns/lab"
)

// world is two nodes with pods, whose tunnel is a cable: nothing but the tables judges what
// goes through it.
//
//	pa, pa2 (10.1.0.11, .12) - a cw0 - cw0 b - pb, pb2 (10.2.0.11, .12)
type world struct {
	t                *testing.T
	l                *lab.Lab
	a, b             *lab.Host
	pa, pa2, pb, pb2 *lab.Host
	tableA, tableB   *Table
	configA, configB Config
}

// Classes of the world.
const (
	podsA  Class = 1
	podA2  Class = 2
	nodeA  Class = 3
	podsB  Class = 11
	podB2  Class = 12
	nodeB  Class = 13
	nobody Class = 99
)

func newWorld(t *testing.T) *world {
	l := lab.New(t)
	w := &world{t: t, l: l, tableA: NewTable(), tableB: NewTable()}
	w.a, w.b = l.Host("a"), l.Host("b")
	l.Wire(w.a, "cw0", []string{"198.18.0.1/24", "fd63:7761:7900::1/96"}, w.b, "cw0", []string{"198.18.0.2/24", "fd63:7761:7900::2/96"})
	na := w.a.PodNet("pods0", "10.1.0.1/24", "fd10:1::1/64")
	w.pa, w.pa2 = na.Pod("pa", "10.1.0.11/24", "fd10:1::11/64"), na.Pod("pa2", "10.1.0.12/24", "fd10:1::12/64")
	nb := w.b.PodNet("pods0", "10.2.0.1/24", "fd10:2::1/64")
	w.pb, w.pb2 = nb.Pod("pb", "10.2.0.11/24", "fd10:2::11/64"), nb.Pod("pb2", "10.2.0.12/24", "fd10:2::12/64")
	for _, h := range []*lab.Host{w.a, w.b} {
		h.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
			"net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0") // so that each attempt is answered
		h.Sh("ip link set cw0 address 02:00:00:00:00:01 arp off") // as a TUN, it asks for no neighbours
	}
	w.a.Sh("ip route add 10.2.0.0/24 via 198.18.0.2 src 198.18.0.1; ip -6 route add fd10:2::/64 via fd63:7761:7900::2 src fd63:7761:7900::1")
	w.b.Sh("ip route add 10.1.0.0/24 via 198.18.0.1 src 198.18.0.2; ip -6 route add fd10:1::/64 via fd63:7761:7900::1 src fd63:7761:7900::2")
	for _, h := range []*lab.Host{w.a, w.b, w.pa, w.pa2, w.pb, w.pb2} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		require.NoError(t, h.Settle(ctx))
		cancel()
	}
	atA := classes("10.1.0.0/24", podsA, "fd10:1::/64", podsA, "10.1.0.12/32", podA2, "fd10:1::12/128", podA2, "198.18.0.1/32", nodeA, "fd63:7761:7900::1/128", nodeA)
	atB := classes("10.2.0.0/24", podsB, "fd10:2::/64", podsB, "10.2.0.12/32", podB2, "fd10:2::12/128", podB2, "198.18.0.2/32", nodeB, "fd63:7761:7900::2/128", nodeB)
	w.configA = Config{Interface: "cw0", Local: atA, Remote: atB}
	w.configB = Config{Interface: "cw0", Local: atB, Remote: atA}
	return w
}

func classes(l ...any) (out []Member) {
	for i := 0; i < len(l); i += 2 {
		out = append(out, Member{netip.MustParsePrefix(l[i].(string)), l[i+1].(Class)})
	}
	return out
}

// allow sets the table of a.
func (w *world) allow(l ...Allow) {
	w.t.Helper()
	w.configA.Allows = l
	require.NoError(w.t, w.a.Do(func() error { return w.tableA.Set(w.configA) }))
}

// allowB sets the table of b.
func (w *world) allowB(l ...Allow) {
	w.t.Helper()
	w.configB.Allows = l
	require.NoError(w.t, w.b.Do(func() error { return w.tableB.Set(w.configB) }))
}

// serve echoes TCP and UDP of a port on a host until the test ends.
func (w *world) serve(h *lab.Host, ports ...int) {
	w.t.Helper()
	for _, p := range ports {
		var l net.Listener
		var u net.PacketConn
		require.NoError(w.t, h.Do(func() (err error) {
			if l, err = net.Listen("tcp", fmt.Sprintf(":%d", p)); err == nil {
				u, err = net.ListenPacket("udp", fmt.Sprintf(":%d", p))
			}
			return err
		}))
		w.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 65536)
					for {
						n, err := c.Read(b)
						if err != nil {
							return
						}
						c.Write(b[:n])
					}
				}()
			}
		}()
		go func() {
			b := make([]byte, 65536)
			for {
				n, from, err := u.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					u.WriteTo(b[:n], from)
				}
			}
		}()
	}
}

// dial opens a connection on a host.
func dial(h *lab.Host, network, to string) (c net.Conn, err error) {
	err = h.Do(func() (err error) {
		d := net.Dialer{Timeout: 3 * time.Second}
		c, err = d.Dial(network, to)
		return err
	})
	return c, err
}

// What became of an attempt.
const (
	passed  = "open"
	refused = "refused" // with an answer
	silence = "silence"
)

// try speaks to an echo server.
func try(h *lab.Host, network, to string) string {
	if network == "icmp" {
		out := h.Sh("ping -n -c1 -W2 " + to + " 2>&1 || :")
		switch {
		case strings.Contains(out, " 0% packet loss"):
			return passed
		case strings.Contains(strings.ToLower(out), "prohibited") || strings.Contains(out, "Packet filtered"):
			return refused
		}
		return silence
	}
	c, err := dial(h, network, to)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(3 * time.Second))
		if _, err = c.Write([]byte("hello")); err == nil {
			_, err = c.Read(make([]byte, 5))
		}
	}
	switch {
	case err == nil:
		return passed
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return refused
	case errors.Is(err, os.ErrDeadlineExceeded), os.IsTimeout(err):
		return silence
	}
	return err.Error()
}

// What a rule opens passes in both directions of its flows; all else is refused at once, in
// both families, for pods and the node itself, whoever begins.
func TestMatrix(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	for _, h := range []*lab.Host{w.pa, w.pa2, w.a, w.pb, w.pb2, w.b} {
		w.serve(h, 443, 80, 5000)
	}
	all := func(want func(from, to, proto, port string) string) {
		t.Helper()
		from := map[string]*lab.Host{"pa": w.pa, "pa2": w.pa2, "a": w.a, "pb": w.pb, "pb2": w.pb2, "b": w.b}
		addrs := map[string][2]string{"pa": {"10.1.0.11", "fd10:1::11"}, "pa2": {"10.1.0.12", "fd10:1::12"}, "a": {"198.18.0.1", "fd63:7761:7900::1"},
			"pb": {"10.2.0.11", "fd10:2::11"}, "pb2": {"10.2.0.12", "fd10:2::12"}, "b": {"198.18.0.2", "fd63:7761:7900::2"}}
		n := 0
		for _, pair := range [][2]string{{"pa", "pb"}, {"pb", "pa"}, {"pb", "pa2"}, {"pb2", "pa"}, {"pa", "b"}, {"b", "pa"}, {"a", "pb"}, {"pb", "a"}, {"a", "b"}, {"b", "a"}, {"pa2", "pb2"}} {
			for _, addr := range addrs[pair[1]] {
				for _, x := range [][2]string{{"tcp", "443"}, {"tcp", "80"}, {"udp", "5000"}, {"udp", "443"}, {"icmp", ""}} {
					to := net.JoinHostPort(addr, x[1])
					if x[0] == "icmp" {
						to = addr
					}
					require.Equal(t, want(pair[0], pair[1], x[0], x[1]), try(from[pair[0]], x[0], to), "%s to %s by %s", pair[0], to, x[0])
					n++
				}
			}
		}
		t.Logf("%d attempts", n)
	}
	all(func(_, _, _, _ string) string { return passed }) // without the table
	w.allow()
	all(func(_, _, _, _ string) string { return refused })
	w.allow(
		Allow{From: podsB, To: podsA, Proto: TCP, First: 443, Last: 443, Rule: "web"},
		Allow{From: podsA, To: podsB, Proto: UDP, First: 4000, Last: 6000, Rule: "stream"},
		Allow{From: podsB, To: podA2, Proto: ICMP, First: 0, Last: 0, Rule: "ping"},
		Allow{From: nodeA, To: podsB, Proto: Any, First: 0, Last: 0, Rule: "host-out"},
		Allow{From: podsB, To: nodeA, Proto: TCP, First: 0, Last: 0, Rule: "host-in"},
		Allow{From: podsA, To: nodeB, Proto: TCP, First: 80, Last: 80, Rule: "to-node"})
	all(func(from, to, proto, port string) string {
		open := map[string]bool{"pb pa tcp443": true, "pa pb udp5000": true, "pb pa2 icmp": true, "a pb tcp443": true, "a pb tcp80": true, "a pb udp5000": true,
			"a pb udp443": true, "a pb icmp": true, "pb a tcp443": true, "pb a tcp80": true, "pa b tcp80": true}
		if open[from+" "+to+" "+proto+port] {
			return passed
		}
		return refused
	})
	var counts Counts
	require.NoError(t, w.a.Do(func() (err error) { counts, err = Counted(); return err }))
	for _, r := range []string{"web", "stream", "ping", "host-out", "host-in", "to-node"} {
		require.NotZero(t, counts.Rules[r], r)
	}
	require.Zero(t, counts.Untracked)
	require.Contains(t, w.a.Sh("nft list ruleset"), "allow-web") // which nft aborts at for some rules
	w.allow()
	require.NotContains(t, w.a.Sh("nft list ruleset"), "allow-")
	require.NoError(t, w.a.Do(func() error { return kernel.DeleteTable(TableName) }))
	require.Empty(t, w.a.Sh("nft list tables | grep policy || :"))
	all(func(_, _, _, _ string) string { return passed })
}
