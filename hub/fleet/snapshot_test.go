package fleet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// deeds are what changes what is known of a node.
func (w *world) deeds(r *rand.Rand) []func(*Session) {
	version := protocol.NetmapVersion{Epoch: 1, Version: uint64(r.IntN(5))}
	maps := []*plan.Netmaps{plan.Compute(w.st.State, nil, nil, nil, nil), plan.Compute(w.st.State, nil, nil, nil, nil)}
	return []func(*Session){
		func(s *Session) { w.Up(s, protocol.Hello{AgentVersion: fmt.Sprint(r.IntN(3))}) },
		func(s *Session) { w.Gone(s, r.IntN(2) == 0) },
		func(s *Session) { w.Word(s) },
		func(s *Session) {
			w.Status(s, protocol.Status{Paths: []protocol.PathStatus{{Peer: 1, RTT: time.Duration(r.IntN(1000))}}, Conditions: []protocol.Condition{{Name: "x", OK: r.IntN(2) == 0}}})
		},
		func(s *Session) {
			w.Acked(s, protocol.NetmapAck{NetmapVersion: version, Errors: []string{"x"}[:r.IntN(2)]})
		},
		func(s *Session) { w.Holds(s, maps[r.IntN(2)]) },
		func(s *Session) { w.Leaving(s) },
		func(s *Session) { w.Left(s, r.IntN(2) == 0) },
		func(s *Session) { w.WantsToLeave(s) },
		func(s *Session) { w.Settled(s.Node, w.Snapshot().Node(s.Node).Left) },
		func(s *Session) {
			if done, ok := w.Dismiss(s); ok && r.IntN(2) == 0 {
				done()
			}
		},
		func(s *Session) { w.Drop(s.Node) },
		func(s *Session) { w.Booted(s.Node, protocol.BootID{byte(r.IntN(3))}, time.Now()) },
		func(s *Session) { w.Suspected(s.Node) },
		func(s *Session) { w.Released(s.Node) },
		func(s *Session) { w.LookAround() },
		func(s *Session) { w.Voice(s.Node) },
	}
}

// Whatever is done, a snapshot shows of each node what its record says, and whoever follows the news hears of each node that
// looks another way than before.
func TestSnapshotIsWhatIsKnown(t *testing.T) {
	w := newWorld(t, 6)
	r := rand.New(rand.NewPCG(1, 2))
	news := w.Notices(make(chan struct{}, 1))
	defer news.Leave()
	sessions := []*Session{}
	for n := range protocol.NodeNumber(8) {
		sessions = append(sessions, NewSession(n+2, true), NewSession(n+2, n%2 == 0))
	}
	before := w.Snapshot()
	for i := range 3000 {
		deeds := w.deeds(r)
		deeds[r.IntN(len(deeds))](sessions[r.IntN(len(sessions))])
		now := w.Snapshot()
		w.mu.Lock()
		require.Len(t, w.nodes, now.Nodes.Len(), i)
		for n := range w.nodes {
			require.Equal(t, w.live(n), now.Node(n), i)
		}
		w.mu.Unlock()
		told, all := news.Take()
		require.False(t, all)
		for _, s := range sessions {
			was, is := before.Nodes.Get(s.Node), now.Nodes.Get(s.Node)
			if (was == nil) != (is == nil) || was != nil && !was.looks(*is) {
				require.True(t, told[s.Node], "%d: node %d", i, s.Node)
			}
		}
		before = now
	}
}

// What never stands still is no news.
func TestNewsOfNodes(t *testing.T) {
	w := newWorld(t, 2)
	ses := NewSession(2, true)
	w.Up(ses, protocol.Hello{})
	status := protocol.Status{Paths: []protocol.PathStatus{{Peer: 1, Path: protocol.PathRelay, MTU: 1420}}}
	w.Status(ses, status)
	news := w.Notices(make(chan struct{}, 1))
	defer news.Leave()
	told := func() []protocol.NodeNumber {
		keys, _ := news.Take()
		out := []protocol.NodeNumber{}
		for n := range keys {
			out = append(out, n)
		}
		return out
	}
	status.Paths = slices.Clone(status.Paths)
	status.Paths[0].RTT, status.Paths[0].RxBytes, status.Paths[0].Since = time.Second, 7, time.Now()
	w.Word(ses)
	w.Status(ses, status)
	require.Empty(t, told())
	status.Paths = slices.Clone(status.Paths)
	status.Paths[0].MTU = 1300
	w.Status(ses, status)
	require.Equal(t, []protocol.NodeNumber{2}, told())
}

// Who announces a prefix that another node carries from now on is shown another way, though nothing of it changed.
func TestOwnersAreNews(t *testing.T) {
	w := newWorld(t, 4)
	p := netip.MustParsePrefix("10.1.1.0/24")
	for _, n := range []protocol.NodeNumber{2, 4} {
		k := state.RouteKey{Node: n, Prefix: p}
		w.st.Routes.Set(k, state.Route{RouteKey: k, State: protocol.RouteApproved, Announced: true})
	}
	owned := func(n protocol.NodeNumber) *plan.Netmaps {
		return &plan.Netmaps{Owners: map[netip.Prefix][]protocol.NodeNumber{p: {n}}}
	}
	w.SetNetmaps(owned(2), nil, time.Now())
	notices := w.Notices(make(chan struct{}, 1))
	defer notices.Leave()
	for _, next := range []*plan.Netmaps{owned(4), {}, owned(2)} {
		w.SetNetmaps(next, nil, time.Now())
		told, _ := notices.Take()
		require.Equal(t, map[protocol.NodeNumber]bool{2: true, 4: true}, told)
	}
	w.SetNetmaps(owned(2), nil, time.Now())
	told, _ := notices.Take()
	require.Empty(t, told)
}
