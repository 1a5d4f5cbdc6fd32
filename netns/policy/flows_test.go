package policy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/netns/lab"
	"causeway/netns/lab/beside"
)

// No policy closes what passes between a node and a hub, nor Causeway's own ports and echo
// between nodes; and that opens nothing else.
func TestOwn(t *testing.T) {
	w := newWorld(t)
	for _, h := range []*lab.Host{w.a, w.b, w.pa} {
		w.serve(h, 443, 4710, 4719)
	}
	w.configA.Own = []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd63:7761:7900::1")}
	w.configA.Overlay = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fd63:7761:7900::/96")}
	check := func(hub string) {
		t.Helper()
		for _, v := range [][3]string{{"198.18.0.1", "198.18.0.2", "10.1.0.11"}, {"fd63:7761:7900::1", "fd63:7761:7900::2", "fd10:1::11"}} {
			a, b, pod := v[0], v[1], v[2]
			at := func(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
			for _, n := range []string{"tcp", "udp"} {
				for _, p := range []int{4710, 4719} {
					require.Equal(t, passed, try(w.a, n, at(b, p)))
					require.Equal(t, passed, try(w.b, n, at(a, p)))
					require.Equal(t, refused, try(w.pa, n, at(b, p)), "a pod is no node")
					require.Equal(t, refused, try(w.b, n, at(pod, p)))
				}
				require.Equal(t, hub, try(w.a, n, at(b, 443)))
				require.Equal(t, hub, try(w.b, n, at(a, 443)))
				require.Equal(t, refused, try(w.b, n, at(pod, 443)))
			}
			require.Equal(t, passed, try(w.a, "icmp", b))
			require.Equal(t, passed, try(w.b, "icmp", a))
			require.Equal(t, refused, try(w.b, "icmp", pod))
		}
		// From such a port, but not as its answer.
		require.NoError(t, w.b.Do(func() error {
			d := net.Dialer{LocalAddr: &net.TCPAddr{Port: 4711}, Timeout: 3 * time.Second}
			c, err := d.Dial("tcp", "198.18.0.1:443")
			if err == nil {
				c.Close()
			}
			if (err == nil) != (hub == passed) {
				return fmt.Errorf("from port 4711: %w", err)
			}
			return nil
		}))
	}
	w.allow()
	check(refused)
	w.configA.Hubs = []netip.Addr{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd63:7761:7900::2")}
	w.allow()
	check(passed)
}

// ICMP errors about a flow that is open pass; others do not.
func TestErrors(t *testing.T) {
	w := newWorld(t)
	w.allow(Allow{From: podsA, To: podsB, Proto: ICMP, First: 0, Last: 0, Rule: "ping"})
	w.b.Sh("ip route add 10.2.0.11 dev pods0 mtu lock 1300; ip -6 route add fd10:2::11 dev pods0 mtu 1300")
	require.Equal(t, passed, try(w.pa, "icmp", "10.2.0.11"))
	require.Contains(t, w.pa.Sh("ping -n -c1 -W2 -M do -s 1400 10.2.0.11 2>&1 || :"), "mtu = 1300")
	require.Contains(t, w.pa.Sh("ping -n -c1 -W2 -M do -s 1400 fd10:2::11 2>&1 || :"), "mtu=1300")

	fd := 0
	require.NoError(t, w.b.Do(func() (err error) { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW); return err }))
	defer unix.Close(fd)
	seen := beside.Sniff(t, w.pa, "eth0")
	// About a datagram that nobody sent, from 10.1.0.11:7 to 10.2.0.11:7.
	inner := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 11, 10, 2, 0, 11, 0, 7, 0, 7, 0, 8, 0, 0}
	icmp := append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, inner...)
	sum := uint32(0)
	for i := 0; i < len(icmp); i += 2 {
		sum += uint32(icmp[i])<<8 | uint32(icmp[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum = ^(sum>>16 + sum&0xffff)
	icmp[2], icmp[3] = byte(sum>>8), byte(sum)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0, 10, 2, 0, 11, 10, 1, 0, 11}
	require.NoError(t, unix.Sendto(fd, append(ip, icmp...), 0, &unix.SockaddrInet4{Addr: [4]byte{10, 1, 0, 11}}))
	require.Equal(t, passed, try(w.pa, "icmp", "10.2.0.11")) // behind it
	for _, p := range strings.Split(seen(), "\n") {
		require.False(t, len(p) > 42 && p[24:32] == "0a02000b" && p[40:44] == "0301", "a stray error arrived: %s", p)
	}
}

// Conntrack that was flushed takes connections up in their middle, by whichever end sends
// first: those that a rule opens go on, and a change still cuts them.
func TestTakenUp(t *testing.T) {
	lab.Counts(t)
	w := newWorld(t)
	w.serve(w.pb, 443)
	w.serve(w.pa, 443)
	web := []Allow{{From: podsA, To: podsB, Proto: TCP, First: 443, Last: 443, Rule: "web"}, {From: podsB, To: podsA, Proto: TCP, First: 443, Last: 443, Rule: "web"}}
	w.allow(web...)
	var flows []*steady
	for _, to := range []string{"10.2.0.11:443", "[fd10:2::11]:443"} {
		flows = append(flows, w.steady(w.pa, "tcp", to), w.steady(w.pa, "tcp", to))
	}
	for _, to := range []string{"10.1.0.11:443", "[fd10:1::11]:443"} {
		flows = append(flows, w.steady(w.pb, "tcp", to), w.steady(w.pb, "tcp", to))
	}
	for range 30 {
		w.a.Sh("conntrack -F 2>/dev/null")
	}
	for _, f := range flows {
		f.end(t)
	}
	// Of these the server alone speaks after the flush, so conntrack takes it for who began.
	w.allow(append(web, Allow{From: podsA, To: podsB, Proto: TCP, First: 445, Last: 445, Rule: "other"})...)
	client, server := w.pairOf(w.pa, w.pb, "10.2.0.11", 445, false)
	w.a.Sh("conntrack -F 2>/dev/null")
	_, err := server.conn.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, lab.Wait(within(t), "what the server says", func(context.Context) error {
		if client.n.Load() == 0 {
			return errors.New("nothing came")
		}
		return nil
	}))
	require.Contains(t, w.a.Sh("conntrack -L -p tcp --orig-src 10.2.0.11 --sport 445 2>/dev/null"), "sport=445", "it is taken up the wrong way round")
	w.allow(web...)
	_, err = client.conn.Write([]byte("hello"))
	require.NoError(t, err)
	select {
	case <-client.done:
		require.ErrorIs(t, client.err, unix.ECONNRESET)
	case <-time.After(10 * time.Second):
		t.Fatal("not cut")
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// What the host masquerades is the host's own, and what it publishes: the tunnel sees its address.
func TestTranslated(t *testing.T) {
	w := newWorld(t)
	box := w.a.PodNet("box0", "172.30.0.1/24").Pod("box", "172.30.0.2/24")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, box.Settle(ctx))
	w.a.Sh("nft 'add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; add rule ip nat post ip saddr 172.30.0.0/24 oifname != box0 masquerade; " +
		"add chain ip nat pre { type nat hook prerouting priority -100; }; add rule ip nat pre ip daddr 198.18.0.1 tcp dport 8080 dnat to 172.30.0.2:443'")
	w.serve(w.pb, 443, 80)
	w.serve(box, 443)
	rules := []Allow{{From: nodeA, To: podsB, Proto: TCP, First: 443, Last: 443, Rule: "out"}, {From: podsB, To: nodeA, Proto: TCP, First: 8080, Last: 8080, Rule: "published"}}
	w.allow(rules...)
	require.Equal(t, passed, try(box, "tcp", "10.2.0.11:443"))
	require.Equal(t, silence, try(box, "tcp", "10.2.0.11:80"), "only source NAT shows whose it is")
	require.Equal(t, passed, try(w.pb, "tcp", "198.18.0.1:8080"))
	require.Equal(t, refused, try(w.pb, "tcp", "198.18.0.1:443"))
	out, err := dial(box, "tcp", "10.2.0.11:443")
	require.NoError(t, err)
	defer out.Close()
	client := watch(out, true)
	c, err := dial(w.pb, "tcp", "198.18.0.1:8080")
	require.NoError(t, err)
	defer c.Close()
	published := watch(c, true)
	w.allow(rules[:0]...)
	for _, e := range []*end{client, published} {
		select {
		case <-e.done:
			require.ErrorIs(t, e.err, unix.ECONNRESET)
		case <-time.After(10 * time.Second):
			t.Fatal("not cut")
		}
	}
	var counts Counts
	require.NoError(t, w.a.Do(func() (err error) { counts, err = Counted(); return err }))
	require.NotZero(t, counts.Dropped)
}
