package reconcile

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/fleet"
	"causeway/hub/liveness"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
	"causeway/tunnel"
)

type number = protocol.NodeNumber

var at = time.Unix(1e9, 0)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// here is a node with a session, which is ready.
func here(n number, change ...func(*fleet.Node)) fleet.Node {
	x := fleet.Node{Session: fleet.NewSession(n, true), Up: at, LastWord: at, Verdict: liveness.Verdict{State: api.NodeReady}}
	for _, f := range change {
		f(&x)
	}
	return x
}

// away is a node that had one.
func away(n number, change ...func(*fleet.Node)) fleet.Node {
	x := here(n, change...)
	x.Session, x.Verdict = nil, liveness.Verdict{State: api.NodeUnreachable, Reasons: []string{"no sign of life"}}
	return x
}

func seen(nodes map[number]fleet.Node) fleet.Snapshot {
	fl := fleet.Snapshot{Started: at}
	for n, x := range nodes {
		fl.Nodes.Set(n, &x)
	}
	return fl
}

func ptr(x fleet.Node) *fleet.Node { return &x }

func sorted(l []number) []number { slices.Sort(l); return l }

// remove has nodes gone.
func remove(t *testing.T, d *state.Draft, how state.Gone, nodes ...number) {
	t.Helper()
	for _, n := range nodes {
		require.NoError(t, state.Remove(d, n, how))
	}
}

// Sessions of nodes that are gone are told so once; nodes without one are forgotten.
func TestDismissals(t *testing.T) {
	d := statetest.Cluster(t, 5)
	remove(t, d, state.GoneRevoked, 3, 4, 5, 6)
	leaving := func(x *fleet.Node) { x.Leaving = true }
	nodes := map[number]fleet.Node{2: here(2), 3: here(3), 4: here(4, leaving), 5: away(5), 6: away(6, leaving), 99: here(99)}
	tell, drop := dismissals(d.State, seen(nodes))
	require.Equal(t, []*fleet.Session{nodes[3].Session}, tell)
	require.Equal(t, []number{5}, drop)
}

// The tunnel has the live nodes, and who is gone until it has heard so. Who is shut off talks to the hub alone.
func TestTunnelNodes(t *testing.T) {
	d := statetest.Cluster(t, 4)
	require.NoError(t, state.Quarantine(d, 3, "copied"))
	remove(t, d, state.GoneRevoked, 4, 5)
	talks := map[number]bool{}
	for _, n := range tunnelNodes(d.State, seen(map[number]fleet.Node{2: here(2), 4: here(4, func(x *fleet.Node) { x.Leaving = true }), 5: here(5)}), &talk{alone: tunnel.RelayAlone}) {
		talks[n.Number] = n.Class != tunnel.RelayAlone
		require.Equal(t, d.Nodes.Get(n.Number).WireGuardKey, n.Key)
		require.Len(t, n.Overlay, 1)
	}
	require.Equal(t, map[number]bool{2: true, 3: false, 4: true}, talks)
}

func TestClones(t *testing.T) {
	d := statetest.Cluster(t, 4)
	require.NoError(t, state.Quarantine(d, 3, "copied"))
	remove(t, d, state.GoneLeft, 4)
	cloned := func(x *fleet.Node) { x.Cloned = true }
	require.Equal(t, []number{2}, clones(d.State, seen(map[number]fleet.Node{2: away(2, cloned), 3: here(3, cloned), 4: here(4, cloned), 5: here(5)})))
}

func TestProvenForLong(t *testing.T) {
	d := statetest.Cluster(t, 6)
	require.NoError(t, state.Proved(d, 5))
	remove(t, d, state.GoneLeft, 6)
	first := func(ago time.Duration) func(*fleet.Node) {
		return func(x *fleet.Node) { x.FirstProof = at.Add(-ago) }
	}
	nodes := map[number]fleet.Node{
		2: here(2, first(oldWayFor)),
		3: here(3, first(oldWayFor-1)),
		4: here(4, first(oldWayFor), func(x *fleet.Node) { x.Session = fleet.NewSession(4, false) }),
		5: here(5, first(oldWayFor)), 6: here(6, first(oldWayFor)), 7: away(7, first(oldWayFor)),
	}
	require.Equal(t, []number{2}, provenForLong(d.State, seen(nodes), at))
	require.Equal(t, []number{2, 3}, sorted(provenForLong(d.State, seen(nodes), at.Add(time.Minute))))

	many := statetest.Cluster(t, maxProvings+1)
	nodes = map[number]fleet.Node{}
	for n := range many.Nodes.All() {
		nodes[n] = here(n, first(oldWayFor))
	}
	require.Len(t, provenForLong(many.State, seen(nodes), at), maxProvings, "the rest has its turn later")
}

// Of the wishes to leave those that come true, and those that never will, are done with.
func TestDepartures(t *testing.T) {
	by := fleet.NewSession(2, false)
	wish := func(x *fleet.Node) { x.Left = fleet.Departure{Since: at, By: by} }
	nodes := map[number]fleet.Node{2: away(2, wish), 3: here(3, wish), 4: away(4), 5: away(5, wish), 6: here(6, wish, func(x *fleet.Node) { x.Session = by })}
	proven := func(n number) time.Time {
		if n == 5 { // its probes still come
			return at.Add(time.Minute)
		}
		return at
	}
	out, void := departures(seen(nodes), proven, at.Add(fleet.DepartAfter-1))
	require.Empty(t, out)
	require.Equal(t, []number{3, 5}, sorted(void))
	out, void = departures(seen(nodes), proven, at.Add(fleet.DepartAfter))
	require.Equal(t, []number{2}, out)
	require.Equal(t, []number{3, 5}, sorted(void))
}

// A restored hub waits for all whose agents ever ran, and not for ever.
func TestSettled(t *testing.T) {
	d := statetest.Cluster(t, 2)
	for name, c := range map[string]struct {
		nodes map[number]fleet.Node
		up    time.Duration
		back  int
		due   bool
	}{
		"nobody yet":        {nil, 0, 0, false},
		"one":               {map[number]fleet.Node{2: here(2)}, settleTime - 1, 1, false},
		"all, one is away":  {map[number]fleet.Node{2: here(2), 3: away(3)}, 0, 2, true},
		"never had session": {map[number]fleet.Node{2: here(2), 3: {}}, 0, 1, false},
		"time is over":      {nil, settleTime, 0, true},
	} {
		back, of, due := settled(d.State, seen(c.nodes), at.Add(c.up))
		require.Equal(t, 2, of, name)
		require.Equal(t, c.back, back, name)
		require.Equal(t, c.due, due, name)
	}
	never := d.Nodes.Get(3)
	never.Statement = nil
	d.Nodes.Set(3, never)
	_, of, due := settled(d.State, seen(map[number]fleet.Node{2: here(2)}), at)
	require.Equal(t, 1, of)
	require.True(t, due, "of a node whose agent never ran nothing is heard")
}

// Numbers are given away once nobody could know better.
func TestHeard(t *testing.T) {
	for _, c := range []struct {
		what     string
		back, of int
		sure     bool
		up       time.Duration
		heard    bool
	}{
		{"all are back", 2, 2, true, 0, true},
		{"one is missing", 1, 2, true, witnessTime - 1, false},
		{"one is missing for too long", 1, 2, true, witnessTime, true},
		{"there was never a node, or so it seems", 0, 0, false, 0, false},
		{"there was never a node", 0, 0, true, 0, true},
	} {
		require.Equal(t, c.heard, heard(c.back, c.of, c.sure, c.up), c.what)
	}
}

// Some of those whose agents take a mark are told one, if it is news.
func TestMarkTo(t *testing.T) {
	d := statetest.Cluster(t, 3)
	takes := func(x *fleet.Node) { x.Hello.Features = []string{"x", protocol.FeatureMark} }
	nodes := map[number]fleet.Node{2: here(2, takes), 3: here(3), 4: away(4, takes)}
	require.Equal(t, []*fleet.Session{nodes[2].Session}, markTo(d.State, seen(nodes), d.Seq-1))
	require.Empty(t, markTo(d.State, seen(nodes), d.Seq))
	d.Settling = true
	require.Empty(t, markTo(d.State, seen(nodes), d.Seq-1))
	d.Settling = false
	for n := range number(3 * markNodes) {
		nodes[n+10] = here(n+10, takes)
	}
	require.Len(t, markTo(d.State, seen(nodes), d.Seq-1), markNodes)
}

// A node counts as online by its session, for a while by its last word, and for a while by what the run before knew.
func TestLiveOf(t *testing.T) {
	d := statetest.Cluster(t, 5)
	remove(t, d, state.GoneLeft, 6)
	a, b, c := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"), netip.MustParseAddrPort("192.0.2.3:3")
	fl := seen(map[number]fleet.Node{2: here(2, func(x *fleet.Node) { x.Status.Candidates = []netip.AddrPort{b} }), 3: away(3), 6: here(6)})
	for n, r := range map[number]fleet.Remembered{2: {Candidates: []netip.AddrPort{c}}, 4: {Online: true}, 6: {Online: true}} {
		fl.Before.Set(n, r)
	}
	bound := func(n number) []netip.AddrPort {
		if n == 2 {
			return []netip.AddrPort{a}
		}
		return nil
	}
	online := func(after time.Duration) (out []number) {
		for n, l := range liveOf(d.State, fl, bound, at.Add(after)) {
			if l.Online {
				out = append(out, n)
			}
		}
		return sorted(out)
	}
	require.Equal(t, []number{2, 3, 4}, online(fleet.OnlineGrace-1))
	require.Equal(t, []number{2, 4}, online(fleet.OnlineGrace))
	require.Equal(t, []number{2}, online(fleet.StartGrace))
	live := liveOf(d.State, fl, bound, at)
	require.Len(t, live, 4, "of those that are no part of the cluster nothing is told")
	require.Equal(t, []netip.AddrPort{a, b, c}, live[2].Candidates)
}

// The list of nodes that are gone is signed when it changes.
func TestGoneList(t *testing.T) {
	key, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	d := statetest.Cluster(t, 3)
	var g goneList
	require.Nil(t, g.of(d.State, key))
	remove(t, d, state.GoneLeft, 2)
	first := g.of(d.State, key)
	gone, err := first.Open(key.Public().Pin())
	require.NoError(t, err)
	require.Equal(t, []number{2}, gone)
	require.Same(t, first, g.of(d.State, key))
	remove(t, d, state.GoneRevoked, 3)
	require.NotSame(t, first, g.of(d.State, key))
}

// A wave goes on when all of it is done, and fails with one node or by its time.
func TestWave(t *testing.T) {
	upgrade := state.Upgrade{ID: 7, Version: "2", Waves: [][]number{{2}, {3, 4}, {5}}, Wave: 1, Since: at, State: state.UpgradeRunning}
	told := func(id uint64, s protocol.UpgradeState, version string) func(*fleet.Node) {
		return func(x *fleet.Node) {
			x.Hello.AgentVersion = version
			x.Status.Upgrade = &protocol.UpgradeStatus{UpgradeWish: protocol.UpgradeWish{ID: id, Version: "2"}, State: s, Error: "no room"}
		}
	}
	done, failed := told(7, protocol.UpgradeDone, "2"), told(7, protocol.UpgradeFailed, "1")
	degraded := func(x *fleet.Node) {
		x.Verdict = liveness.Verdict{State: api.NodeDegraded, Reasons: []string{"nftables"}}
	}
	gone := func(d *state.Draft) { remove(t, d, state.GoneLeft, 4) }
	for name, c := range map[string]struct {
		nodes  map[number]fleet.Node
		change func(*state.Draft)
		after  time.Duration
		why    string
		done   bool
	}{
		"asked":                     {map[number]fleet.Node{3: here(3), 4: here(4)}, nil, time.Minute, "", false},
		"one is done":               {map[number]fleet.Node{3: here(3, done), 4: here(4)}, nil, time.Minute, "", false},
		"all are":                   {map[number]fleet.Node{3: here(3, done), 4: here(4, done)}, nil, waveLimit + 1, "", true},
		"the other one is gone":     {map[number]fleet.Node{3: here(3, done)}, gone, time.Minute, "", true},
		"one failed":                {map[number]fleet.Node{3: here(3, done), 4: here(4, failed)}, nil, time.Minute, "node n4: no room", false},
		"one of a later wave did":   {map[number]fleet.Node{3: here(3, done), 4: here(4, done), 5: here(5, failed)}, nil, time.Minute, "", true},
		"an earlier upgrade failed": {map[number]fleet.Node{3: here(3, done), 4: here(4, told(6, protocol.UpgradeFailed, "1"))}, nil, time.Minute, "", false},
		"it runs the old one":       {map[number]fleet.Node{3: here(3, done), 4: here(4, told(7, protocol.UpgradeDone, "1"))}, nil, time.Minute, "", false},
		"done, and not ready":       {map[number]fleet.Node{3: here(3, done), 4: here(4, done, degraded)}, nil, time.Minute, "", false},
		"done, and away":            {map[number]fleet.Node{3: here(3, done), 4: away(4, done)}, nil, time.Minute, "", false},
		"time is over": {map[number]fleet.Node{3: here(3, done), 4: here(4, done, degraded)}, nil, waveLimit + 1,
			"not done within 15m0s: n4: it is degraded: nftables", false},
	} {
		t.Run(name, func(t *testing.T) {
			d := statetest.Cluster(t, 4)
			d.Upgrade = &upgrade
			if c.change != nil {
				c.change(d)
			}
			why, ok := wave(d.State, seen(c.nodes), at.Add(c.after))
			require.Equal(t, c.why, why)
			require.Equal(t, c.done, ok)
		})
	}
}

// A drained node has handed over when all others have applied netmaps in which it carries nothing that another does.
func TestHandover(t *testing.T) {
	d := statetest.Cluster(t, 4)
	p := pfx("10.1.1.0/24")
	for _, n := range []number{2, 3} {
		require.NoError(t, state.AnnounceRoutes(d, n, []netip.Prefix{p}))
		require.NoError(t, state.DecideRoute(d, d.Nodes.Get(n).Name, p, true, "olga"))
	}
	before := plan.Compute(d.State, map[number]plan.Live{2: {Online: true}}, nil, nil, nil)
	require.Equal(t, []number{2}, before.Owners[p])
	require.NoError(t, state.Drain(d, "n2", true))
	after := plan.Compute(d.State, map[number]plan.Live{2: {Online: true}, 3: {Online: true}}, nil, nil, before)
	require.Equal(t, []number{3}, after.Owners[p])
	holds := func(v *plan.Netmaps) func(*fleet.Node) { return func(x *fleet.Node) { x.Held = v } }

	fl := seen(map[number]fleet.Node{2: here(2, holds(after)), 3: here(3, holds(after)), 4: here(4, holds(before))})
	require.True(t, handover(d.State, fl, 2).Pending, "no netmaps yet")
	fl.Netmaps = &plan.Netmaps{}
	early := handover(d.State, fl, 2)
	require.True(t, early.Pending, "approved since the netmaps were computed")
	require.Empty(t, early.Owners, "nobody carries it yet")
	fl.Netmaps = before
	require.True(t, handover(d.State, fl, 2).Pending, "node 3 can take it")
	alone := seen(map[number]fleet.Node{2: here(2), 3: away(3)})
	alone.Netmaps = before
	require.False(t, handover(d.State, alone, 2).Pending, "nobody can")
	fl.Netmaps = after
	h := handover(d.State, fl, 2)
	require.False(t, h.Pending)
	require.Equal(t, map[netip.Prefix]number{p: 3}, h.Owners)
	require.Equal(t, []number{3}, h.Confirmed)
	require.Equal(t, []number{4}, h.Waiting)
	require.Equal(t, []number{5}, h.Away)
	fl.Nodes.Set(4, ptr(here(4, holds(after), func(x *fleet.Node) { x.Errors = []string{"nftables"} })))
	require.Equal(t, []number{4}, handover(d.State, fl, 2).Waiting, "it may not have applied it")
	fl.Nodes.Set(4, ptr(here(4, holds(after))))
	require.Equal(t, []number{3, 4}, handover(d.State, fl, 2).Confirmed)
}

// Of a revocation all nodes are told that may have known the node, and why one has not confirmed.
func TestRevocation(t *testing.T) {
	d := statetest.Cluster(t, 6)
	late := d.Nodes.Get(6)
	d.Now = d.Now.Add(time.Minute)
	remove(t, d, state.GoneRevoked, 2)
	n := d.Nodes.Get(2)
	late.Joined = d.Now
	d.Nodes.Set(6, late)
	unreachable := func(x *fleet.Node) { x.Verdict.State = api.NodeUnreachable }
	fl := seen(map[number]fleet.Node{3: here(3), 4: here(4, unreachable), 5: here(5, func(x *fleet.Node) { x.Errors = []string{"nftables"} }),
		7: here(7, func(x *fleet.Node) { x.Session = nil })}) // it has just gone, and is not shown so yet
	r := fleet.Revoked{At: n.GoneTime, Cut: n.GoneTime.Add(time.Second), Confirmed: map[number]time.Time{3: n.GoneTime.Add(2 * time.Second)}}
	out := revocation(d.State, fl, n, r)
	require.Equal(t, time.Second, out.Cut)
	require.Equal(t, []Confirmation{
		{3, 2 * time.Second, ""},
		{4, -1, "it is not connected; until it is, it may reach the revoked node where a direct path is left"},
		{5, -1, "nftables"},
		{7, -1, "it is not connected; until it is, it may reach the revoked node where a direct path is left"},
	}, out.Nodes)
	out = revocation(d.State, fl, n, fleet.Revoked{})
	require.Negative(t, out.Cut)
	require.Equal(t, "it has not acknowledged yet", out.Nodes[0].Why)
	n.Statement = nil
	require.Empty(t, revocation(d.State, fl, n, r).Nodes, "nobody ever heard of it")
}
