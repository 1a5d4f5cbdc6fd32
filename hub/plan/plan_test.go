package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/policy"
	"causeway/hub/state"
	"causeway/protocol"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// cluster builds states by hand: the package does not depend on how they came to be.
type cluster struct {
	t testing.TB
	d *state.Draft
}

func newCluster(t testing.TB) *cluster {
	c := &cluster{t, &state.Draft{State: state.New()}}
	c.add(state.ClusterCreated{Cluster: protocol.ClusterPublicKey{1}, Epoch: 3, Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6}},
		state.HubAdded{Number: 1})
	c.d.Seq = 50
	return c
}

func (c *cluster) add(cs ...state.Change) {
	c.t.Helper()
	for _, x := range cs {
		require.NoError(c.t, c.d.Add(x))
	}
}

// node joins a node to site, which is made if it is missing, with approved routes.
func (c *cluster) node(site, name string, routes ...string) protocol.NodeNumber {
	c.t.Helper()
	if _, ok := c.d.Sites.Find(site); !ok {
		c.add(state.SiteCreated{Name: site})
	}
	n := c.d.NextNumber
	id := protocol.TokenID{byte(n), byte(n >> 8)}
	seed := protocol.IdentityPrivateKey{byte(n), byte(n >> 8), 9}
	secret := protocol.TokenSecret{byte(n)}
	h := secret.Hash()
	c.add(state.TokenCreated{ID: id, Hash: h[:], Site: site, Expires: c.d.Now.Add(1)})
	key := protocol.WireGuardPublicKey{byte(n), byte(n >> 8), 9}
	require.NoError(c.t, state.Redeem(c.d, state.RedeemRequest{Token: id, Secret: secret, Name: name, WireGuardKey: key, IdentityKey: seed.Public()}))
	st := protocol.NodeStatement{Number: n, WireGuardKey: key, Epoch: 1}.Sign(seed)
	var ps []netip.Prefix
	for _, r := range routes {
		ps = append(ps, pfx(r))
	}
	require.NoError(c.t, state.Announce(c.d, n, st, ps))
	for _, p := range ps {
		require.NoError(c.t, state.DecideRoute(c.d, name, p, true, "x"))
	}
	return n
}

func owned(m protocol.Netmap) map[string][]string {
	out := map[string][]string{}
	for _, p := range m.Peers {
		for _, r := range p.Routes {
			out[p.Name] = append(out[p.Name], r.String())
		}
	}
	return out
}

func ptr[T any](v T) *T { return &v }

func TestGroupHasOneOwner(t *testing.T) {
	c := newCluster(t)
	a1, a2 := c.node("a", "a1", "10.1.0.0/16"), c.node("a", "a2", "10.1.0.0/16", "10.1.7.0/24")
	b := c.node("b", "b1", "10.2.0.0/16")
	p := pfx("10.1.0.0/16")
	online := func(ns ...protocol.NodeNumber) map[protocol.NodeNumber]Live {
		m := map[protocol.NodeNumber]Live{}
		for _, n := range ns {
			m[n] = Live{Online: true}
		}
		return m
	}
	for _, tt := range []struct {
		name   string
		live   map[protocol.NodeNumber]Live
		before protocol.NodeNumber
		want   protocol.NodeNumber
	}{
		{"nobody known: the first", nil, 0, a1},
		{"the one that is online", online(a2), 0, a2},
		{"both online: the first", online(a1, a2), 0, a1},
		{"both online: it stays", online(a1, a2), a2, a2},
		{"the owner went: the other", online(a1), a2, a1},
		{"all went: it stays", nil, a2, a2},
		{"a former owner that announces it no more", online(a1), b, a1},
	} {
		v := Compute(c.d.State, tt.live, nil, nil, &Netmaps{Owners: map[netip.Prefix][]protocol.NodeNumber{p: {tt.before}}})
		require.Equal(t, []protocol.NodeNumber{tt.want}, v.Owners[p], tt.name)
	}

	// A drained node is the last choice, but for one that is away.
	c.d.Now = time.Unix(1, 0)
	require.NoError(t, state.Drain(c.d, "a1", true))
	for live, want := range map[*map[protocol.NodeNumber]Live]protocol.NodeNumber{
		ptr(online(a1, a2)): a2, ptr(online(a1)): a1, ptr(online()): a2,
	} {
		v := Compute(c.d.State, *live, nil, nil, &Netmaps{Owners: map[netip.Prefix][]protocol.NodeNumber{p: {a1}}})
		require.Equal(t, []protocol.NodeNumber{want}, v.Owners[p])
	}
	m, _ := Compute(c.d.State, online(a1, a2, b), nil, nil, nil).For(b)
	require.Equal(t, []netip.Prefix{p}, m.Peers[0].Sources, "packets from the group's range may come from a1, too")
	require.Empty(t, m.Peers[1].Sources)
	require.NoError(t, state.Drain(c.d, "a1", false))

	v := Compute(c.d.State, nil, nil, nil, nil)
	m, ok := v.For(b)
	require.True(t, ok)
	require.Equal(t, protocol.NetmapVersion{Epoch: 3, Version: 50}, m.NetmapVersion)
	require.Equal(t, map[string][]string{"a1": {"10.1.0.0/16"}, "a2": {"10.1.7.0/24"}}, owned(m), "a longer prefix inside has its own owner")
	m, _ = v.For(a2)
	require.Equal(t, map[string][]string{"b1": {"10.2.0.0/16"}}, owned(m), "what a node announces does not come back to it")
	m, _ = v.For(a1)
	require.Equal(t, map[string][]string{"b1": {"10.2.0.0/16"}, "a2": {"10.1.7.0/24"}}, owned(m))
	require.Equal(t, state.DefaultMaxAge, m.MaxAge)
	require.NoError(t, state.PutObject(c.d, state.KindSite, "b", json.RawMessage(`{"max_age":"forever"}`)))
	forever := Compute(c.d.State, nil, nil, nil, v)
	require.False(t, forever.SameAs(v))
	m, _ = forever.For(b)
	require.Zero(t, m.MaxAge)
	m, _ = forever.For(a1)
	require.Equal(t, state.DefaultMaxAge, m.MaxAge, "another site's")
	_, ok = v.For(1)
	require.False(t, ok)
	require.True(t, v.Knows(a1, b))
	require.False(t, v.Knows(b, b))
	require.False(t, v.Knows(a1, 1))
	_, ok = v.For(99)
	require.False(t, ok)
}

func TestOnlyWhatIsApprovedAndAnnounced(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a", "a1", "10.1.0.0/16", "10.3.0.0/16"), c.node("b", "b1")
	require.NoError(t, state.DecideRoute(c.d, "a1", pfx("10.3.0.0/16"), false, "x"))
	require.NoError(t, state.AnnounceRoutes(c.d, a, []netip.Prefix{pfx("10.1.0.0/16"), pfx("10.3.0.0/16"), pfx("10.4.0.0/16"), pfx("127.0.0.0/8")}))
	v := Compute(c.d.WithWaiting(map[protocol.NodeNumber][]netip.Prefix{a: {pfx("10.4.0.0/16"), pfx("127.0.0.0/8")}}), nil, nil, nil, nil)
	m, _ := v.For(b)
	require.Equal(t, map[string][]string{"a1": {"10.1.0.0/16"}}, owned(m))
	m, _ = v.For(a)
	require.Equal(t, []protocol.AnnouncedRoute{
		{Prefix: pfx("10.1.0.0/16"), State: protocol.RouteApproved}, {Prefix: pfx("10.3.0.0/16"), State: protocol.RouteRejected},
		{Prefix: pfx("10.4.0.0/16"), State: protocol.RoutePending}, {Prefix: pfx("127.0.0.0/8"), State: protocol.RouteRejected},
	}, m.Self.Routes)
	// What a node announces and may not carry does not cost it the way to who may.
	require.NoError(t, state.AnnounceRoutes(c.d, b, []netip.Prefix{pfx("10.1.0.0/16")}))
	for range 2 { // pending, then rejected
		m, _ = Compute(c.d.State, nil, nil, nil, nil).For(b)
		require.Equal(t, map[string][]string{"a1": {"10.1.0.0/16"}}, owned(m))
		require.NoError(t, state.DecideRoute(c.d, "b1", pfx("10.1.0.0/16"), false, "x"))
	}
	require.NoError(t, state.AnnounceRoutes(c.d, b, nil))
	require.NoError(t, state.AnnounceRoutes(c.d, a, nil))
	m, _ = Compute(c.d.State, nil, nil, nil, nil).For(b)
	require.Empty(t, owned(m))
	require.NoError(t, state.Remove(c.d, a, state.GoneRevoked))
	v = Compute(c.d.State, nil, nil, nil, nil)
	m, _ = v.For(b)
	require.Empty(t, m.Peers)
	_, ok := v.For(a)
	require.False(t, ok)
}

func TestCandidates(t *testing.T) {
	got := Candidates([]netip.AddrPort{
		ap("203.0.113.5:1"), ap("10.0.0.1:2"), ap("203.0.113.5:1"), ap("127.0.0.1:2"), ap("169.254.1.1:3"), ap("[fe80::1%eth0]:3"), ap("224.0.0.1:4"),
		ap("0.0.0.0:5"), ap("[::]:5"), ap("198.18.0.7:6"), ap("[fd63:7761:7900::7]:6"), ap("10.0.0.9:0"), ap("[::ffff:192.0.2.1]:7"), ap("[2001:db8::1]:8"), {},
	}, []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6})
	require.Equal(t, []netip.AddrPort{ap("10.0.0.1:2"), ap("192.0.2.1:7"), ap("203.0.113.5:1"), ap("[2001:db8::1]:8")}, got)
	var many []netip.AddrPort
	for i := range 100 {
		many = append(many, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(100+i)))
	}
	require.Len(t, Candidates(many, nil), protocol.MaxNodeCandidates)
}

func TestNext(t *testing.T) {
	v := &Netmaps{Version: protocol.NetmapVersion{Epoch: 2, Version: 10}}
	for have, want := range map[protocol.NetmapVersion]protocol.NetmapVersion{
		{}:                                 {Epoch: 2, Version: 10},
		{Epoch: 2, Version: 9, Minor: 7}:   {Epoch: 2, Version: 10},
		{Epoch: 2, Version: 10, Minor: 7}:  {Epoch: 2, Version: 10, Minor: 8},
		{Epoch: 2, Version: 12}:            {Epoch: 2, Version: 12, Minor: 1}, // another hub was ahead
		{Epoch: 1, Version: 99, Minor: 99}: {Epoch: 2, Version: 10},
	} {
		got := v.Next(have)
		require.Equal(t, want, got)
		require.True(t, have.Less(got))
	}
}

// sent is what an agent decodes of an update.
func sent(t require.TestingT, u Update) (m protocol.Netmap) {
	parts, err := u.Parts()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(bytes.Join(parts, nil), &m))
	return m
}

func same(a, b protocol.Netmap) string {
	a.NetmapVersion, b.NetmapVersion = protocol.NetmapVersion{}, protocol.NetmapVersion{}
	return cmp.Diff(a, b, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
}

// Whatever changes between two views: what each node is sent makes its netmap of
// the second from that of the first, says whether they differ, and the digest
// is that of the peers it then holds; no netmap has a prefix twice.
func TestChangeProperty(t *testing.T) {
	pool := []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "172.16.0.0/12"}
	rapid.Check(t, func(rt *rapid.T) {
		c := newCluster(t)
		var nodes []protocol.NodeNumber
		var before *Netmaps
		held := map[protocol.NodeNumber]protocol.Netmap{}
		for i := range rapid.IntRange(1, 8).Draw(rt, "steps") {
			if rapid.Bool().Draw(rt, "join") || len(nodes) == 0 {
				n := c.node("a", fmt.Sprintf("n%d", i))
				nodes = append(nodes, n)
				p := pfx(rapid.SampledFrom(pool).Draw(rt, "route"))
				require.NoError(rt, state.AnnounceRoutes(c.d, n, []netip.Prefix{p}))
				require.NoError(rt, state.DecideRoute(c.d, fmt.Sprintf("n%d", i), p, true, "x"))
			} else if n := rapid.SampledFrom(nodes).Draw(rt, "gone"); n != nodes[0] {
				if rapid.Bool().Draw(rt, "quarantine") && c.d.Nodes.Get(n).Live() && c.d.Nodes.Get(n).Quarantine == "" {
					require.NoError(rt, state.Quarantine(c.d, n, "x"))
				} else {
					require.NoError(rt, state.Remove(c.d, n, state.GoneLeft))
				}
			}
			c.d.Seq++
			live := map[protocol.NodeNumber]Live{}
			for _, n := range nodes {
				live[n] = Live{Online: rapid.Bool().Draw(rt, "online"), Candidates: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(rapid.IntRange(1, 3).Draw(rt, "port")))}}
			}
			who := groups(rt, nodes)
			v := Compute(c.d.State, live, who, nil, before)
			require.True(rt, Compute(c.d.State, live, who, nil, v).SameAs(v))
			for _, n := range nodes {
				full, ok := v.For(n)
				require.Equal(rt, ok, v.Has(n))
				if !ok {
					delete(held, n)
					continue
				}
				seen := map[netip.Prefix]bool{}
				for _, p := range full.Peers {
					require.True(rt, who == nil || who.Talk(who.Nodes[n], who.Nodes[p.Number()]), "a peer that it may not talk to")
					require.True(rt, v.Knows(n, p.Number()))
					for _, r := range p.Prefixes() {
						require.False(rt, seen[r], "%s twice", r)
						seen[r] = true
					}
				}
				got := sent(rt, v.Full(n, full.NetmapVersion))
				require.Empty(rt, same(full, got))
				if h, ok := held[n]; ok {
					next := v.Next(h.NetmapVersion)
					u, changed := v.Change(before, n, h.NetmapVersion, next)
					require.Equal(rt, same(h, full) != "", changed)
					var err error
					got, err = sent(rt, u).Apply(&h)
					require.NoError(rt, err)
					require.Empty(rt, same(full, got))
					require.Equal(rt, next, got.NetmapVersion)
					confirmed, err := sent(rt, v.Confirm(n, got.NetmapVersion, v.Next(got.NetmapVersion))).Apply(&got)
					require.NoError(rt, err)
					require.Empty(rt, same(full, confirmed))
				}
				sum, err := protocol.SumPeers(got.Peers) // as it came over the wire
				require.NoError(rt, err)
				require.Equal(rt, sum, v.Sum(n))
				held[n] = got
			}
			before = v
		}
	})
}

// groups are some groups of nodes, some of which may talk; nil: there is no policy.
func groups(rt *rapid.T, nodes []protocol.NodeNumber) *policy.Enforcement {
	const n = 3
	if rapid.Bool().Draw(rt, "open") {
		return nil
	}
	of := map[protocol.NodeNumber]int{}
	for _, x := range nodes {
		of[x] = rapid.IntRange(0, n-1).Draw(rt, "group")
	}
	talk := rapid.SliceOfN(rapid.Bool(), n*n, n*n).Draw(rt, "talk")
	e := &policy.Enforcement{Groups: policy.NewGroups(of, n, func(a, b int) bool { return talk[a*n+b] }), Classes: map[protocol.NodeNumber][]protocol.AddressClass{}}
	for g := range n {
		e.Items = append(e.Items, []protocol.Item{{Kind: protocol.ItemPolicy, Name: "main", Generation: uint64(rapid.IntRange(1, 2).Draw(rt, "generation")), Body: json.RawMessage(fmt.Sprintf(`{"rules":[],"group":%d}`, g))}})
	}
	for _, x := range nodes {
		e.Classes[x] = []protocol.AddressClass{{Prefix: pfx("10.0.0.0/8"), Class: uint32(rapid.IntRange(1, 2).Draw(rt, "class"))}}
	}
	return e
}

// The JSON that is put together of shared pieces is that of the whole, and peers
// that stay the same are encoded once.
func TestPartsAreTheNetmap(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a", "a1", "10.1.0.0/16"), c.node("b", "b1", "10.2.0.0/16")
	c.node("b", "b2")
	v := Compute(c.d.State, nil, nil, nil, nil)
	full, _ := v.For(a)
	want, err := json.Marshal(full)
	require.NoError(t, err)
	parts, err := v.Full(a, full.NetmapVersion).Parts()
	require.NoError(t, err)
	require.Equal(t, string(want), string(bytes.Join(parts, nil)))
	c.d.Seq++
	w := Compute(c.d.State, map[protocol.NodeNumber]Live{b: {Candidates: []netip.AddrPort{ap("192.0.2.1:1")}}}, nil, nil, v)
	kept := 0
	for _, e := range w.peers {
		if old, _ := v.row(a).find(e.number()); old == e {
			kept++
		}
	}
	require.Equal(t, 2, kept)
	u, changed := w.Change(v, a, v.Version, w.Version)
	require.True(t, changed)
	require.Len(t, u.peers, 1)
	_, changed = w.Change(v, b, v.Version, w.Version)
	require.False(t, changed, "its own addresses are no news to it")
}

// One node's address changes: what the hub computes for itself and for each of
// 2500 agents.
func BenchmarkChange2500(b *testing.B) {
	const nodes = 2500
	c := newCluster(b)
	for i := range nodes {
		c.node("a", fmt.Sprintf("n%d", i))
	}
	v := Compute(c.d.State, nil, nil, nil, nil)
	port := uint16(0)
	b.ResetTimer()
	for b.Loop() {
		port++
		w := Compute(c.d.State, map[protocol.NodeNumber]Live{2: {Candidates: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)}}}, nil, nil, v)
		for n := range protocol.NodeNumber(nodes) {
			u, changed := w.Change(v, n+2, v.Version, w.Version)
			if changed != (n != 0) {
				b.Fatal(n)
			}
			if _, err := u.Parts(); err != nil {
				b.Fatal(err)
			}
		}
		v = w
	}
}
