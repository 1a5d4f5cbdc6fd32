package hub

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"causeway/hub/api"
	"causeway/hub/session/sessiontest"
	"causeway/protocol"
	"causeway/tunnel"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/engine/wggo"
	"causeway/tunnel/netstack"
)

// stackTunnel is the hub's WireGuard device and netstack, over a network in
// memory instead of the switchboard.
type stackTunnel struct {
	*sessiontest.Tunnel
	net    *netstack.Net
	eng    *wggo.Engine
	member *enginetest.Member
}

func (s *stackTunnel) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.eng.Run(ctx) })
	g.Go(func() error { s.member.Deliver(ctx, s.eng.NewReader()); return nil })
	g.Go(func() error { return s.Tunnel.Run(ctx) })
	return g.Wait()
}

func (s *stackTunnel) SetNodes(nodes []tunnel.HubNode) error {
	peers := make([]engine.Peer, len(nodes))
	for i, n := range nodes {
		peers[i] = engine.Peer{Number: n.Number, Key: n.Key, AllowedIPs: hostPrefixes(n.Overlay)}
	}
	return s.eng.SetPeers(peers)
}

func (s *stackTunnel) Listen(at netip.AddrPort) (net.Listener, error) { return s.net.ListenTCP(at) }

func hostPrefixes(addrs []netip.Addr) (out []netip.Prefix) {
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// stackAgent is an agent with an engine and a netstack of its own.
type stackAgent struct {
	*agent
	stop func()
}

func newStackAgent(t *testing.T, network *enginetest.Network, h *host, edit func(*protocol.Hello)) *stackAgent {
	t.Helper()
	s := newStack(t, network, h)
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	a, err := sayHello(ctx, t, h, s.dial(), edit)
	require.NoError(t, err)
	return &stackAgent{a, sync.OnceFunc(func() {
		s.stop()
		a.m.Close()
		<-a.ended
	})}
}

// stack is an engine with a netstack, as a node's.
type stack struct {
	t    *testing.T
	net  *netstack.Net
	hub  netip.Addr
	stop func()
}

func newStack(t *testing.T, network *enginetest.Network, h *host) *stack {
	t.Helper()
	hub := h.hubs.Hubs[0]
	var overlay []netip.Addr
	for _, p := range h.hubs.Overlay {
		a, err := hub.Number.Overlay(p)
		require.NoError(t, err)
		overlay = append(overlay, a)
	}
	n, err := netstack.New(netstack.Config{Addresses: h.answer.Overlay})
	require.NoError(t, err)
	m := network.Join(h.answer.Number)
	e, err := wggo.New(wggo.Config{Number: h.answer.Number, PrivateKey: h.wg, TUN: n, Carrier: m, AnyDestination: true})
	require.NoError(t, err)
	require.NoError(t, e.SetPeers([]engine.Peer{{Number: hub.Number, Key: hub.WireGuardKey, AllowedIPs: hostPrefixes(overlay)}}))
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { e.Run(ctx) })
	wg.Go(func() { m.Deliver(ctx, e.NewReader()) })
	return &stack{t, n, overlay[0], func() { cancel(); wg.Wait() }}
}

// dial connects to the hub's control port.
func (s *stack) dial() net.Conn {
	s.t.Helper()
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	c, err := s.net.DialTCP(ctx, netip.AddrPortFrom(s.hub, protocol.ControlPort))
	require.NoError(s.t, err)
	return c
}

// startStackHub starts a hub with a WireGuard device and a netstack over network.
func startStackHub(t *testing.T, network *enginetest.Network, silent, idle time.Duration) *world {
	t.Helper()
	w, err := tryStartOver(t, t.TempDir(), func(c *Config) { c.Log = zerolog.Nop() }, func(c tunnel.HubConfig, m *sessiontest.Tunnel) (Tunnel, error) {
		n, err := netstack.New(netstack.Config{Addresses: c.Overlay, SilentAfter: silent})
		if err != nil {
			return nil, err
		}
		hub := &stackTunnel{Tunnel: m, net: n, member: network.Join(c.Number)}
		hub.eng, err = wggo.New(wggo.Config{Number: c.Number, PrivateKey: c.PrivateKey, TUN: n, Carrier: hub.member, IdleAfter: idle, AnyDestination: true})
		return hub, err
	})
	require.NoError(t, err)
	return w
}

// Agents are killed: no packet of theirs comes any more. While they are dead and
// netmaps change, what the hub holds for them hardly grows, and then it goes.
func TestHubForgetsDeadAgents(t *testing.T) {
	count, silent, idle := 40, 10*time.Second, 12*time.Second
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		count, silent, idle = 200, netstack.DefaultSilentAfter, tunnel.HubIdleAfter
	}
	const changes = 50
	network := enginetest.NewNetwork()
	var dead atomic.Pointer[map[protocol.NodeNumber]bool]
	dead.Store(&map[protocol.NodeNumber]bool{})
	network.SetHook(func(from, to protocol.NodeNumber, d []byte) [][]byte {
		if m := *dead.Load(); m[from] || m[to] {
			return nil
		}
		return [][]byte{d}
	})
	w := startStackHub(t, network, silent, idle)
	w.site("a")

	hosts := make([]*host, count)
	pace := rate.NewLimiter(5, 40) // two requests each, of which one source may send ten a second
	for i := range hosts {
		require.NoError(t, pace.Wait(t.Context()))
		hosts[i] = joined(t, w, fmt.Sprintf("dead-%d", i), api.TokenSpec{Site: "a"})
		network.Join(hosts[i].answer.Number) // a place in the network is no memory of the hub's
	}
	route := netip.MustParsePrefix("10.7.0.0/24")
	live := newStackAgent(t, network, joined(t, w, "live", api.TokenSpec{Site: "a"}), func(h *protocol.Hello) { h.Routes = []netip.Prefix{route} })
	defer live.stop()
	statuses := time.NewTicker(protocol.StatusInterval)
	defer statuses.Stop()
	said := make(chan struct{})
	defer func() { close(said) }()
	go func() {
		for {
			select {
			case <-said:
				return
			case <-statuses.C:
				live.ready()
			}
		}
	}()
	start := heap()

	killed := map[protocol.NodeNumber]bool{}
	agents := make([]*stackAgent, count)
	for i, h := range hosts {
		agents[i] = newStackAgent(t, network, h, nil)
		killed[h.answer.Number] = true
	}
	live.until("all", func(n protocol.Netmap) bool { return len(n.Peers) == count })
	connected := func() (n int) {
		var nodes []api.Node
		w.must("GET", "/v1/nodes", nil, &nodes)
		for _, x := range nodes {
			if x.State != api.NodeUnreachable && x.State != api.NodeJoined {
				n++
			}
		}
		return n
	}
	for _, a := range agents {
		a.until("all", func(n protocol.Netmap) bool { return len(n.Peers) == count })
	}
	require.Equal(t, count+1, connected())

	dead.Store(&killed)
	t0 := time.Now()
	for _, a := range agents {
		a.stop()
	}
	agents = nil
	kill := heap()
	var most int64
	for i := range changes {
		approve := i%2 == 0
		w.must("POST", "/v1/routes/decide", api.RouteDecision{Node: "live", Prefix: route, Approve: approve}, nil)
		want := protocol.RouteRejected
		if approve {
			want = protocol.RouteApproved
		}
		live.until("the decision", func(n protocol.Netmap) bool { return len(n.Self.Routes) == 1 && n.Self.Routes[0].State == want })
		if i%10 == 9 {
			most = max(most, heap()-kill)
		}
	}
	t.Logf("%d changes in %s; %d KB more for each dead session (%d KB held at the kill)", changes, time.Since(t0).Round(time.Millisecond), most>>10/int64(count), (kill-start)>>10/int64(count))
	require.Less(t, most/int64(count), int64(100<<10), "a dead session grows")

	const bound = 90 * time.Second
	require.Eventually(t, func() bool { return connected() == 1 }, bound, 100*time.Millisecond, "sessions end")
	ended := time.Since(t0)
	var left int64
	require.Eventually(t, func() bool {
		left = heap() - start
		return left < int64(count)*20<<10+1<<20 // the buffers of what lives come and go
	}, bound-time.Since(t0), 500*time.Millisecond, "the heap is as it was")
	t.Logf("sessions ended after %s; after %s the heap was %d KB above the start", ended.Round(time.Millisecond), time.Since(t0).Round(time.Millisecond), left>>10)
}

// heap is what is in use after a collection; pools need two.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
