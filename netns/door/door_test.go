package door

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

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/netns"
	"causeway/netns/lab"
	"causeway/netns/netnstest"
)

var names = netip.MustParseAddr("169.254.53.53")

// world is a node with a server of names, containers behind a bridge, a LAN and a peer at the other end of the tunnel.
type world struct {
	t                        *testing.T
	node, pod, lan, peer, vm *lab.Host
	host                     *netns.Host
	asked                    chan net.Addr // who asked, as the server sees it
}

func newWorld(t *testing.T) *world {
	netnstest.Root(t)
	l := lab.New(t)
	w := &world{t: t, node: l.Host("node"), lan: l.Host("lan"), peer: l.Host("peer"), vm: l.Host("vm"), asked: make(chan net.Addr, 100)}
	sw := l.Switch("sw")
	w.node.Link("eth0", sw, "192.0.2.2/24")
	w.lan.Link("eth0", sw, "192.0.2.9/24").Route("169.254.53.53/32", "192.0.2.2")
	l.Wire(w.node, "cw0", nil, w.peer, "cw0", []string{"198.18.0.3/24"})
	w.pod = w.node.PodNet("pods0", "10.1.0.1/24").Pod("pod", "10.1.0.11/24")
	// A bridge by which the host's default route leads, as hosts of virtual machines have it.
	w.node.Sh("ip link add br0 type bridge; ip link set br0 up; ip addr add 203.0.113.1/24 dev br0; ip route add default via 203.0.113.9")
	l.Wire(w.node, "port0", nil, w.vm, "eth0", []string{"203.0.113.9/24"})
	w.node.Sh("ip link set port0 master br0")
	w.vm.Route("169.254.53.53/32", "203.0.113.1")
	w.peer.Sh("ip route add 169.254.53.53 dev cw0; ip link set cw0 arp off address 02:00:00:00:00:02")
	w.node.Sh("ip link set cw0 arp off address 02:00:00:00:00:02")
	w.host = netns.NewHost(t.TempDir(), zerolog.New(zerolog.NewTestWriter(t)))
	w.apply(uint32(os.Geteuid()))
	w.serve()
	return w
}

// apply applies the plan of a node with the part, whose agent is a user.
func (w *world) apply(uid uint32) {
	w.t.Helper()
	require.NoError(w.t, w.node.Do(func() error {
		c := netns.Config{Interface: "cw0", MTU: 1380, Mark: netns.DefaultMark, Table: netns.DefaultTable, Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.2")},
			Routes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}, Names: names}
		var err error
		if c.Uses, err = w.host.Uses(context.Background(), c); err != nil {
			return err
		}
		part, err := NewPart(Config{Address: names, UID: uid, Inside: c.Inside})
		if err != nil {
			return err
		}
		c.Parts = []netns.Part{part}
		p, err := netns.NewPlan(c)
		if err != nil {
			return err
		}
		if err := w.host.Apply(context.Background(), p); err != nil {
			return err
		}
		d, err := w.host.Drift(context.Background(), netns.Kinds...)
		if err == nil && len(d) > 0 {
			err = fmt.Errorf("drift %v", d)
		}
		return err
	}))
}

// serve answers what is asked at the agent's port, until the test ends.
func (w *world) serve() {
	var u net.PacketConn
	var l net.Listener
	at := netip.AddrPortFrom(names, Port).String()
	require.NoError(w.t, w.node.Do(func() (err error) {
		if u, err = net.ListenPacket("udp", at); err == nil {
			l, err = net.Listen("tcp", at)
		}
		return err
	}))
	w.t.Cleanup(func() { u.Close(); l.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := u.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			w.asked <- from
			u.WriteTo(b[:n], from)
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.asked <- c.RemoteAddr()
			c.Write([]byte("hi"))
			c.Close()
		}
	}()
}

// ask asks from a host by UDP and TCP, and says who was heard there, or what came of it.
func (w *world) ask(h *lab.Host, port int, wait time.Duration) (out []string) {
	w.t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		var c net.Conn
		err := h.Do(func() (err error) {
			c, err = (&net.Dialer{Timeout: wait}).Dial(network, netip.AddrPortFrom(names, uint16(port)).String())
			return err
		})
		if err == nil {
			require.NoError(w.t, c.SetDeadline(time.Now().Add(wait)))
			c.Write([]byte("hi"))
			_, err = c.Read(make([]byte, 2))
			c.Close()
		}
		switch {
		case err == nil:
			host, _, _ := net.SplitHostPort((<-w.asked).String())
			out = append(out, network+" "+host)
		case errors.Is(err, syscall.ECONNREFUSED):
			out = append(out, network+" refused")
		default:
			out = append(out, network+" nothing")
		}
	}
	return out
}

const (
	long  = 5 * time.Second
	short = 300 * time.Millisecond
)

var nothing = []string{"udp nothing", "tcp nothing"}

// The host and its containers come in, by their own addresses; a LAN, what is behind the default route, and peers do not, by
// neither port, nor while the plan's own walls are away.
func TestWhoComesIn(t *testing.T) {
	w := newWorld(t)
	require.Equal(t, []string{"udp 169.254.53.53", "tcp 169.254.53.53"}, w.ask(w.node, 53, long))
	require.Equal(t, []string{"udp 10.1.0.11", "tcp 10.1.0.11"}, w.ask(w.pod, 53, long))
	require.Equal(t, nothing, w.ask(w.pod, 22, short), "nothing else of the host is at that address")
	require.Equal(t, nothing, w.ask(w.pod, Port, short))
	for range 2 {
		for _, h := range []*lab.Host{w.lan, w.vm, w.peer} {
			for _, p := range []int{53, Port} {
				require.Equal(t, nothing, w.ask(h, p, short), h.Namespace())
			}
		}
		w.node.Sh("nft add table inet causeway; nft delete table inet causeway")
	}
	require.Empty(t, w.asked)
	// A bridge that gets a network card is a LAN.
	w.node.Sh("ip link add link eth0 name mv0 type macvlan; ip link set mv0 master pods0")
	w.apply(uint32(os.Geteuid()))
	require.Equal(t, nothing, w.ask(w.pod, 53, short))
}

// The address is no source of what leaves, and no other's port 53 is ours.
func TestAddressIsNoSource(t *testing.T) {
	w := newWorld(t)
	w.node.Sh("ip route add 203.0.114.0/24 dev cw0; ip route add 203.0.115.0/24 dev eth0")
	for to, src := range map[string]string{"198.18.0.9": "198.18.0.2", "203.0.114.1": "198.18.0.2", "203.0.115.1": "192.0.2.2", "192.0.2.9": "192.0.2.2", "8.8.8.8": "203.0.113.1", "169.254.53.53": "169.254.53.53"} {
		require.Contains(t, w.node.Sh("ip route get "+to), " src "+src+" ", to)
	}
	w.node.Sh("ip addr del 198.18.0.2/32 dev cw0; ip route add 203.0.116.0/24 dev cw0")
	require.NotContains(t, w.node.Sh("ip route get 203.0.116.1"), "169.254.53.53", "not even where the device has no other")
}

// While the agent is away nobody else answers in its place.
func TestNobodyElseAnswers(t *testing.T) {
	w := newWorld(t)
	w.apply(uint32(os.Geteuid()) + 4711) // who listens is not the agent
	require.Equal(t, nothing, w.ask(w.node, 53, short))
	require.Equal(t, nothing, w.ask(w.pod, 53, short))
}

// What a container publishes at port 53 of the host does not get the questions.
func TestPublishedPort(t *testing.T) {
	w := newWorld(t)
	w.node.Sh(`iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -p udp --dport 53 -j DNAT --to-destination 10.1.0.11:53
		iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -p udp --dport 53 -j DNAT --to-destination 10.1.0.11:53`)
	require.Equal(t, []string{"udp 169.254.53.53", "tcp 169.254.53.53"}, w.ask(w.node, 53, long))
	require.Equal(t, []string{"udp 10.1.0.11", "tcp 10.1.0.11"}, w.ask(w.pod, 53, long))
}

// The lines are what nft has.
func TestLines(t *testing.T) {
	netnstest.Namespace(t)
	x, err := NewPart(Config{Address: names, UID: 998, Inside: []string{"docker0", "pods0"}})
	require.NoError(t, err)
	require.NoError(t, x.Apply(t.Context(), nil))
	require.NoError(t, x.Close())
	listed := netnstest.Sh(t, "nft -y -s list table inet causeway-dns")
	netnstest.Sh(t, "nft delete table inet causeway-dns")
	var b strings.Builder
	for _, l := range x.Lines() {
		b.WriteString(strings.TrimSuffix(strings.TrimPrefix(l, "nft '"), "'") + "\n")
	}
	netnstest.Sh(t, "nft -f - <<'E'\n"+b.String()+"E")
	require.Equal(t, netnstest.Sh(t, "nft -y -s list table inet causeway-dns"), listed)
	require.Contains(t, listed, "dnat ip to 169.254.53.53:4753")
	_, err = NewPart(Config{Address: netip.MustParseAddr("192.0.2.1")})
	require.Error(t, err)
	_, err = NewPart(Config{Address: names, Inside: make([]string, netns.MaxInside+1)})
	require.Error(t, err)
}
