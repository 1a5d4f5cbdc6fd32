package admin

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// What operators may call an end, and that a node cannot make others' pods its own.
func TestResolve(t *testing.T) {
	st := state.New()
	st.Overlay = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}
	for n, name := range map[protocol.NodeNumber]string{2: "a", 3: "b", 4: "c"} {
		st.Nodes.Set(n, state.Node{Number: n, Name: name, Site: "s"})
	}
	route := func(n protocol.NodeNumber, prefix string, s protocol.RouteState) {
		k := state.RouteKey{Node: n, Prefix: netip.MustParsePrefix(prefix)}
		st.Routes.Set(k, state.Route{RouteKey: k, State: s, Announced: true})
	}
	route(2, "10.1.0.0/16", protocol.RouteApproved)
	route(3, "10.1.7.0/24", protocol.RouteApproved)
	route(3, "10.9.0.0/24", protocol.RouteApproved) // of an HA group, c owns it
	route(4, "10.9.0.0/24", protocol.RouteApproved)
	route(4, "10.3.0.0/24", protocol.RoutePending)
	pod := func(name, addr string, s protocol.ContainerState) protocol.Container {
		return protocol.Container{Name: name, State: s, Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr(addr)}}
	}
	pods := map[protocol.NodeNumber]map[string]protocol.Container{
		2: {"1": pod("web", "10.1.0.5", protocol.ContainerRunning), "2": pod("two", "10.1.0.6", protocol.ContainerRunning), "3": pod("old", "10.1.0.7", protocol.ContainerExited)},
		3: {"1": pod("two", "10.1.7.6", protocol.ContainerRunning)},
		// c was taken over: it says that it runs web, at a's address.
		4: {"1": pod("web", "10.1.0.5", protocol.ContainerRunning)},
	}
	r := resolver{st, func(_ protocol.NodeNumber, p netip.Prefix) protocol.NodeNumber {
		if p.String() == "10.9.0.0/24" {
			return 4
		}
		return 0
	}, func(n protocol.NodeNumber) map[string]protocol.Container { return pods[n] }}
	for text, want := range map[string]api.DiagEnd{
		"198.18.0.3": {Node: "b", Addr: netip.MustParseAddr("198.18.0.3")},
		"10.1.0.99":  {Node: "a", Addr: netip.MustParseAddr("10.1.0.99")},
		"10.1.0.5":   {Node: "a", Pod: "web", Addr: netip.MustParseAddr("10.1.0.5")},
		"10.1.7.6":   {Node: "b", Pod: "two", Addr: netip.MustParseAddr("10.1.7.6")},
		"10.9.0.1":   {Node: "c", Addr: netip.MustParseAddr("10.9.0.1")},
		"web":        {Node: "a", Pod: "web", Addr: netip.MustParseAddr("10.1.0.5")},
		"b/two":      {Node: "b", Pod: "two", Addr: netip.MustParseAddr("10.1.7.6")},
	} {
		e, err := r.resolve(text)
		require.NoError(t, err, text)
		want.Text, want.Site = text, "s"
		require.Equal(t, want, e.DiagEnd)
		require.Equal(t, want.Node, e.node.Name)
		require.Equal(t, text != "198.18.0.3", e.behind.IsValid(), text)
	}
	for text, want := range map[string]string{
		"two":          "2 running pods are named",
		"old":          "neither a node nor a running pod",
		"c/web":        "neither a node nor a running pod",
		"10.3.0.1":     "no node has the address",
		"198.18.99.99": "no node has the address",
		"fe80::1%eth0": "has a zone",
		"":             "each end is",
	} {
		_, err := r.resolve(text)
		require.ErrorContains(t, err, want, text)
	}
}

// Hops are what both ends saw; who was not heard is one that does not answer.
func TestHops(t *testing.T) {
	ok := func(ms time.Duration) *protocol.Pinged {
		return &protocol.Pinged{Sent: 3, Received: 3, AvgRTT: ms * time.Millisecond}
	}
	relay := netip.MustParseAddrPort("203.0.113.1:51820")
	f := &protocol.TraceView{Peer: protocol.PathView{PathStatus: protocol.PathStatus{Path: protocol.PathRelay, Addr: relay},
		Candidates: []protocol.PathCandidate{{Path: protocol.PathRelay, Hub: 1, Chosen: true}}},
		Hubs: []protocol.PathStatus{{Peer: 1, Path: protocol.PathDirect, RTT: 20 * time.Millisecond}}, Local: ok(1), PeerPing: *ok(50), EndPing: ok(52)}
	b := &protocol.TraceView{Hubs: []protocol.PathStatus{{Peer: 1, Path: protocol.PathDirect, RTT: 30 * time.Millisecond}}, Local: ok(2)}
	tr := api.Trace{From: api.DiagEnd{Node: "a"}, To: api.DiagEnd{Node: "b"}, Forward: f, Back: b}
	var got []any
	for _, h := range hops(tr) {
		require.True(t, h.OK, "%+v", h)
		got = append(got, h.Kind, time.Duration(h.RTT).Milliseconds(), time.Duration(h.Total).Milliseconds())
	}
	z := int64(0)
	require.Equal(t, []any{"pod", z, z, "host", int64(1), z, "tunnel", z, z, "hub", int64(20), z, "host", int64(30), int64(50), "pod", int64(2), int64(52)}, got)

	f.EndPing = &protocol.Pinged{Sent: 3, Error: "no answer from 10.2.0.5"}
	h := hops(tr)
	require.False(t, h[5].OK)
	require.Equal(t, "it answers its own node, and not a", h[5].Note)
	tr.Back, tr.BackError = nil, "node b does not answer"
	h = hops(tr)
	require.True(t, h[4].OK, "it answered echoes")
	require.Equal(t, "node b does not answer", h[4].Note)
	tr.Forward, tr.ForwardError = nil, "node a does not answer"
	for _, x := range hops(tr) {
		require.False(t, x.OK)
	}
}

func TestJudgeMTU(t *testing.T) {
	for measured, want := range map[int]string{1440: "what is set is what arrives", 1300: "packets of 1301 to 1440 bytes are sent and do not arrive", 1500: "up to 60 bytes more"} {
		ok, verdict := judgeMTU(api.MTUDirection{Measured: measured, Route: 1440})
		require.Equal(t, measured >= 1440, ok)
		require.Contains(t, verdict, want)
	}
}

// What an agent tells moves no cursor and fills no screen.
func TestTraceIsCleaned(t *testing.T) {
	evil := "\x1b[2J\u009b31m" + string(make([]byte, 1<<16))
	v := protocol.TraceView{Error: evil, PeerPing: protocol.Pinged{Addr: netip.MustParseAddr("fe80::1%a\x1b[2J"), Error: evil}, Local: &protocol.Pinged{Error: evil},
		Peer: protocol.PathView{Why: evil, Candidates: make([]protocol.PathCandidate, 1000), PathStatus: protocol.PathStatus{Path: protocol.PathKind(evil), Name: evil}}}
	v.Peer.Candidates[0].State = evil
	v.Peer.Candidates[0].Addr = netip.AddrPortFrom(v.PeerPing.Addr, 1)
	v.Clean()
	require.Len(t, v.Peer.Candidates, protocol.MaxPathCandidates)
	for _, s := range []string{v.Error, v.PeerPing.Error, v.Local.Error, v.Peer.Why, v.Peer.Name, string(v.Peer.Path), v.Peer.Candidates[0].State, v.PeerPing.Addr.String(), v.Peer.Candidates[0].Addr.String()} {
		require.NotContains(t, s, "\x1b")
		require.NotContains(t, s, "\u009b")
		require.LessOrEqual(t, len(s), protocol.MaxFactText)
	}
}
