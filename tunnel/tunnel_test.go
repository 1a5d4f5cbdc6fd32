package tunnel

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/protocol"
)

func dup(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	return n
}

func overlay(n protocol.NodeNumber) []netip.Addr {
	var out []netip.Addr
	for _, p := range []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6} {
		a, err := n.Overlay(p)
		if err != nil {
			panic(err)
		}
		out = append(out, a)
	}
	return out
}

// world is a hub and two nodes, each with a pod range of its own.
type world struct {
	t        *testing.T
	engine   string
	hub      *host
	nodes    map[protocol.NodeNumber]*host
	configs  map[protocol.NodeNumber]childConfig
	children map[protocol.NodeNumber]*process
}

// pod is the address that stands for the pods behind a node.
func pod(n protocol.NodeNumber) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n), 0, 1}) }

func pod6(n protocol.NodeNumber) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd10:%d::1", n))
}

func newWorld(t *testing.T, engine string, direct bool) *world {
	w := &world{t: t, engine: engine, nodes: map[protocol.NodeNumber]*host{}, configs: map[protocol.NodeNumber]childConfig{}, children: map[protocol.NodeNumber]*process{}}
	w.hub = newHost(t, "hub")
	w.nodes[2], w.nodes[3] = newHost(t, "a"), newHost(t, "b")
	wire(t, w.hub, w.nodes[2], w.nodes[3])

	keys := map[protocol.NodeNumber]protocol.WireGuardPrivateKey{}
	for n := protocol.NodeNumber(1); n <= 3; n++ {
		k, err := protocol.NewWireGuardPrivateKey()
		require.NoError(t, err)
		keys[n] = k
	}
	listen := netip.MustParseAddrPort("192.0.2.1:51820")
	hub := childConfig{Number: 1, Key: keys[1], Listen: netip.MustParseAddrPort("[::]:51820"), Overlay: overlay(1)}
	for n, other := range map[protocol.NodeNumber]protocol.NodeNumber{2: 3, 3: 2} {
		hub.State.Nodes = append(hub.State.Nodes, HubNode{Number: n, Key: keys[n].Public(), Overlay: overlay(n)})
		peer := NodePeer{Number: other, Name: fmt.Sprintf("node-%d", other), Key: keys[other].Public(), Direct: direct}
		peer.AllowedIPs = append(hostPrefixes(overlay(other)),
			netip.PrefixFrom(pod(other), 16).Masked(), netip.PrefixFrom(pod6(other), 32).Masked())
		if direct {
			peer.Candidates = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(other)}), nodePort)}
		}
		w.configs[n] = childConfig{Number: n, Key: keys[n], Engine: engine, State: childState{
			Hubs:  []NodeHub{{Number: 1, Key: keys[1].Public(), Overlay: overlay(1), UDP: []netip.AddrPort{listen}}},
			Peers: []NodePeer{peer},
		}}
	}
	w.configs[1] = hub
	w.start(1)
	for n, h := range w.nodes {
		w.start(n)
		other := 5 - n
		for _, a := range overlay(n) {
			h.ip(fmt.Sprintf("addr add %s/%d dev cw0", a, a.BitLen()))
		}
		h.ip("link set cw0 up")
		h.ip(fmt.Sprintf("addr add %s/32 dev lo", pod(n)))
		h.ip(fmt.Sprintf("addr add %s/128 dev lo nodad", pod6(n)))
		h.ip(fmt.Sprintf("route add %s dev cw0", protocol.DefaultOverlay4))
		h.ip(fmt.Sprintf("-6 route add %s dev cw0", protocol.DefaultOverlay6))
		h.ip(fmt.Sprintf("route add %s dev cw0 src %s", netip.PrefixFrom(pod(other), 16).Masked(), pod(n)))
		h.ip(fmt.Sprintf("-6 route add %s dev cw0 src %s", netip.PrefixFrom(pod6(other), 32).Masked(), pod6(n)))
	}
	return w
}

func (w *world) start(n protocol.NodeNumber) {
	w.t.Helper()
	role, h := "node", w.nodes[n]
	if n == 1 {
		role, h = "hub", w.hub
	}
	w.children[n] = startChild(w.t, h, role, w.configs[n])
}

func (w *world) eventually(what string, f func() bool) {
	w.t.Helper()
	require.Eventually(w.t, f, patience, 20*time.Millisecond, what)
}

func (w *world) path(n, peer protocol.NodeNumber) (s protocol.PathStatus) {
	w.t.Helper()
	for _, s := range w.children[n].report(nil).Paths {
		if s.Peer == peer {
			return s
		}
	}
	return s
}

// echo is a connection whose far side echoes.
type echo struct {
	net.Conn
	r *bufio.Reader
}

func (w *world) connect(from *host, to netip.AddrPort, as netip.Addr) *echo {
	w.t.Helper()
	c, err := from.dial(to.String(), patience)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	e := &echo{c, bufio.NewReader(c)}
	require.NoError(w.t, c.SetDeadline(time.Now().Add(patience)))
	line, err := e.r.ReadString('\n')
	require.NoError(w.t, err)
	seen, err := netip.ParseAddrPort(strings.TrimSpace(line))
	require.NoError(w.t, err)
	require.Equal(w.t, as, seen.Addr(), "the caller's own address")
	return e
}

// transfer sends size bytes and checks what comes back.
func (e *echo) transfer(t *testing.T, size int, within time.Duration) {
	t.Helper()
	require.NoError(t, e.SetDeadline(time.Now().Add(within)))
	data := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256([]byte("tunnel"))).Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := e.Write(data)
		sent <- err
	}()
	got := make([]byte, size)
	_, err := io.ReadFull(e.r, got)
	require.NoError(t, err)
	require.NoError(t, <-sent)
	require.True(t, bytes.Equal(data, got), "what came back differs")
}

func engines(t *testing.T, f func(*testing.T, string)) {
	for _, name := range []string{EngineWireGuardGo, EngineInline} {
		if checkEngine(name) == nil {
			t.Run(name, func(t *testing.T) { f(t, name) })
		}
	}
}

// Two nodes and a hub over real UDP and kernel TUN devices, through the relay.
func TestRelay(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		w := newWorld(t, engine, false)
		a, b := w.nodes[2], w.nodes[3]
		for _, to := range append(overlay(3), pod(3), pod6(3)) {
			w.eventually("ping "+to.String(), func() bool { return a.reaches(to) })
		}
		for _, to := range overlay(1) {
			w.eventually("ping hub "+to.String(), func() bool { return b.reaches(to) })
		}
		for i, to := range overlay(1) {
			w.connect(a, netip.AddrPortFrom(to, protocol.ControlPort), overlay(2)[i]).transfer(t, 1<<20, patience)
		}
		b.listen("[::]:7000")
		w.connect(a, netip.AddrPortFrom(pod(3), 7000), pod(2)).transfer(t, 32<<20, patience)
		w.connect(a, netip.AddrPortFrom(pod6(3), 7000), pod6(2)).transfer(t, 4<<20, patience)

		s := w.path(2, 3)
		assert.Equal(t, protocol.PathRelay, s.Path)
		assert.Equal(t, "node-3", s.Name)
		assert.Equal(t, "192.0.2.1:51820", s.Addr.String())
		assert.Greater(t, s.TxBytes, uint64(32<<20))
		assert.Greater(t, s.RxBytes, uint64(32<<20))
		r := w.children[1].report(nil)
		assert.Equal(t, 2, r.Relay.BoundNodes)
		assert.Greater(t, r.Relay.Bytes, uint64(64<<20))
		assert.NotEmpty(t, r.Bound)
		assert.True(t, w.children[2].report(nil).HubBound)

		// A node that the hub leaves out is cut off at once, and back when it returns.
		all := w.configs[1].State
		require.Empty(t, w.children[1].report(&childState{Nodes: all.Nodes[:1]}).Error)
		gone := all.Nodes[1].Number
		w.eventually("the removed node is cut off", func() bool { return !w.nodes[5-gone].reaches(pod(gone)) })
		assert.False(t, w.nodes[gone].reaches(overlay(1)[0]))
		require.Empty(t, w.children[1].report(&all).Error)
		w.eventually("the node is back", func() bool { return w.nodes[5-gone].reaches(pod(gone)) })

		// What cannot be set together is refused and changes nothing.
		bad := w.configs[2].State
		bad.Peers = append([]NodePeer{}, bad.Peers...)
		bad.Peers[0].AllowedIPs = hostPrefixes(overlay(1))
		assert.Contains(t, w.children[2].report(&bad).Error, "prefix 198.18.0.1/32 is peer 1's too")
		assert.True(t, a.reaches(pod(3)))
		assert.Contains(t, w.children[1].report(&childState{Nodes: append([]HubNode{all.Nodes[0]}, all.Nodes...)}).Error, "twice")

		// A node whose device is taken away says so and ends.
		b.ip("link del cw0")
		assert.Error(t, w.children[3].wait())

		// Ended as systemd ends it, a node says nothing went wrong, and leaves cw0.
		require.NoError(t, w.children[2].terminate())
		a.ip("link show cw0")
		require.NoError(t, w.children[1].terminate())
	})
}

// A connection between pods outlives the hub's and a node's SIGKILL.
func TestRestarts(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		w := newWorld(t, engine, false)
		a, b := w.nodes[2], w.nodes[3]
		b.listen("[::]:7000")
		w.eventually("ping", func() bool { return a.reaches(pod(3)) })
		conn := w.connect(a, netip.AddrPortFrom(pod(3), 7000), pod(2))
		conn.transfer(t, 1<<20, patience)
		const back = 10 * time.Second

		w.children[1].kill()
		w.start(1)
		conn.transfer(t, 1<<20, back)
		w.eventually("the nodes hear of the hub's restart", func() bool {
			return w.children[2].report(nil).Restarted > 0 && w.children[3].report(nil).Restarted > 0
		})
		w.connect(a, netip.AddrPortFrom(overlay(1)[0], protocol.ControlPort), overlay(2)[0]).transfer(t, 1<<20, back)

		for _, n := range []protocol.NodeNumber{3, 2} {
			w.children[n].kill()
			w.start(n)
			conn.transfer(t, 1<<20, back)
			w.connect(w.nodes[n], netip.AddrPortFrom(overlay(1)[0], protocol.ControlPort), overlay(n)[0]).transfer(t, 1<<20, back)
		}
		for n := range w.nodes {
			w.children[n].kill()
		}
		w.children[1].kill()
		w.start(1)
		w.start(2)
		w.start(3)
		conn.transfer(t, 1<<20, back)
	})
}

func TestDirect(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		w := newWorld(t, engine, true)
		a, b := w.nodes[2], w.nodes[3]
		b.listen("[::]:7000")
		w.eventually("ping", func() bool { return a.reaches(pod(3)) })
		w.eventually("a direct path", func() bool { return a.reaches(pod(3)) && w.path(2, 3).Path == protocol.PathDirect })
		before := w.children[1].report(nil).Relay.Bytes
		w.connect(a, netip.AddrPortFrom(pod(3), 7000), pod(2)).transfer(t, 8<<20, patience)
		assert.Less(t, w.children[1].report(nil).Relay.Bytes-before, uint64(1<<20), "traffic still goes through the hub")
	})
}
