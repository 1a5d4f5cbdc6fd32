package state

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/protocol"
)

// In a site with a range a node gets by itself what no other node claims, and nothing that
// is another's: neither the same prefix nor a longer or wider one, pending or approved.
func TestRangeApprovesNoNeighbours(t *testing.T) {
	d := draft(t) // site a has 10.1.0.0/16
	victim, thief := node(t, d, 1, "a", "victim"), node(t, d, 2, "a", "thief")
	announce := func(n protocol.NodeNumber, ps ...string) {
		var l []netip.Prefix
		for _, p := range ps {
			l = append(l, prefix(p))
		}
		require.NoError(t, AnnounceRoutes(d, n, l))
	}
	is := func(n protocol.NodeNumber, p string) protocol.RouteState {
		return d.WithWaiting(d.announced).Routes.Get(RouteKey{n, prefix(p)}).State
	}
	why := func(n protocol.NodeNumber, p string) string {
		return NewClaims(d.WithWaiting(d.announced)).Why(n, prefix(p))
	}
	announce(victim, "10.1.1.0/24", "10.1.1.128/25", "172.16.0.0/24")
	require.Equal(t, protocol.RouteApproved, is(victim, "10.1.1.0/24"))
	require.Equal(t, protocol.RouteApproved, is(victim, "10.1.1.128/25"), "its own may lie in each other")

	taken := map[string]string{
		"10.1.1.0/24":    "it is the same as route 10.1.1.0/24 of node victim, which is approved, and 1 more",
		"10.1.1.7/32":    "it lies inside route 10.1.1.0/24 of node victim, which is approved",
		"10.1.1.200/32":  "it lies inside route 10.1.1.128/25 of node victim, which is approved, and 1 more",
		"10.1.0.0/16":    "it lies over route 10.1.1.0/24 of node victim, which is approved, and 1 more",
		"172.16.0.16/28": "it lies inside route 172.16.0.0/24 of node victim, which is pending",
	}
	for p, want := range taken {
		announce(thief, p, "10.1.2.0/24")
		require.Equal(t, protocol.RoutePending, is(thief, p), p)
		require.Equal(t, want, why(thief, p), p)
		require.Equal(t, protocol.RouteApproved, is(thief, "10.1.2.0/24"))
		require.Empty(t, why(thief, "10.1.2.0/24"))
		// Nor by a range that comes later.
		later := &Draft{State: d.State.clone(), Now: d.Now, announced: d.announced}
		require.NoError(t, setRanges(later, "a", prefix("10.1.0.0/16"), prefix("172.16.0.0/16")))
		require.Equal(t, protocol.RoutePending, later.WithWaiting(d.announced).Routes.Get(RouteKey{thief, prefix(p)}).State, p)
	}
	// An operator may, and then it is so over a restart of the node's agent.
	announce(thief, "10.1.1.0/24")
	require.NoError(t, DecideRoute(d, "thief", prefix("10.1.1.0/24"), true, "admin:x"))
	announce(thief)
	announce(thief, "10.1.1.0/24")
	require.Equal(t, protocol.RouteApproved, is(thief, "10.1.1.0/24"))
	// What a node that left had is free.
	require.NoError(t, Remove(d, victim, GoneLeft))
	announce(thief, "10.1.1.128/25")
	require.Equal(t, protocol.RouteApproved, is(thief, "10.1.1.128/25"))
}

// A token's grant holds for what the operator was told of, and for groups that operators
// made; a claim that came since keeps it waiting.
func TestTokenGrantsBesideNeighbours(t *testing.T) {
	for name, c := range map[string]struct {
		before, between []string // what the neighbour announces before the token is made, and then
		operator        string   // approved by name
		grant           string
		over            int
		want            protocol.RouteState
	}{
		"free":                          {nil, nil, "", "10.1.1.0/24", 0, protocol.RouteApproved},
		"the same, known":               {[]string{"10.1.1.0/24"}, nil, "", "10.1.1.0/24", 1, protocol.RouteApproved},
		"longer, known":                 {[]string{"10.1.1.0/24"}, nil, "", "10.1.1.64/26", 1, protocol.RouteApproved},
		"the same, since":               {nil, []string{"10.1.1.0/24"}, "", "10.1.1.0/24", 0, protocol.RoutePending},
		"longer, since":                 {nil, []string{"10.1.1.0/24"}, "", "10.1.1.64/26", 0, protocol.RoutePending},
		"wider, one known, one since":   {[]string{"10.1.1.0/24"}, []string{"10.1.1.0/24", "10.1.2.0/24"}, "", "10.1.0.0/16", 1, protocol.RoutePending},
		"the same, since, by operators": {nil, []string{"172.16.1.0/24"}, "172.16.1.0/24", "172.16.1.0/24", 0, protocol.RouteApproved},
		"longer, since, by operators":   {nil, []string{"172.16.1.0/24"}, "172.16.1.0/24", "172.16.1.0/28", 0, protocol.RoutePending},
	} {
		t.Run(name, func(t *testing.T) {
			d := draft(t)
			n := node(t, d, 1, "a", "neighbour")
			announce := func(ps []string) {
				var l []netip.Prefix
				for _, p := range ps {
					l = append(l, prefix(p))
				}
				require.NoError(t, AnnounceRoutes(d, n, l))
			}
			announce(c.before)
			grant := []netip.Prefix{prefix(c.grant)}
			over := d.Over("a", nil, grant, "")
			require.Len(t, over, c.over)
			token(t, d, 2, TokenCreated{Site: "a", Routes: grant, Over: over})
			if c.between != nil {
				announce(c.between)
			}
			if c.operator != "" {
				require.NoError(t, DecideRoute(d, "neighbour", prefix(c.operator), true, "admin:x"))
			}
			require.NoError(t, Redeem(d, redeem(2, "new")))
			require.Equal(t, c.want, d.Routes.Get(RouteKey{d.NextNumber - 1, grant[0]}).State)
		})
	}
	// A node that is replaced is no neighbour.
	d := draft(t)
	n := node(t, d, 1, "a", "old")
	grant := []netip.Prefix{prefix("10.1.1.0/24")}
	require.NoError(t, AnnounceRoutes(d, n, grant))
	require.Empty(t, d.Over("a", nil, grant, "old"))
	token(t, d, 2, TokenCreated{Site: "a", Routes: grant, Replace: "old"})
	r := redeem(2, "old")
	r.Replace = true
	require.NoError(t, Redeem(d, r))
	require.Equal(t, protocol.RouteApproved, d.Routes.Get(RouteKey{d.NextNumber - 1, grant[0]}).State)
}

// What Claims finds is what overlaps.
func TestClaimsFindWhatOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		any := rapid.Custom(func(t *rapid.T) netip.Prefix {
			a := netip.AddrFrom4([4]byte{10, rapid.ByteRange(0, 3).Draw(t, "b"), rapid.ByteRange(0, 255).Draw(t, "c"), 0})
			return netip.PrefixFrom(a, rapid.IntRange(0, 32).Draw(t, "bits")).Masked()
		})
		s := New()
		for i := range rapid.IntRange(0, 30).Draw(t, "claims") {
			k := RouteKey{protocol.NodeNumber(2 + i%3), any.Draw(t, "claim")}
			s.Routes.Set(k, Route{RouteKey: k, State: rapid.SampledFrom([]protocol.RouteState{protocol.RouteApproved, protocol.RoutePending, protocol.RouteRejected}).Draw(t, "state"), Announced: true})
		}
		p := any.Draw(t, "p")
		if had := slices.Collect(s.Routes.Keys()); len(had) > 0 {
			for range rapid.IntRange(0, 5).Draw(t, "gone") {
				s.Routes.Delete(rapid.SampledFrom(had).Draw(t, "one"))
			}
		}
		around, inside := []Route{}, []Route{}
		for _, r := range s.Routes.All() {
			if r.Prefix.Overlaps(p) && r.Prefix.Bits() > p.Bits() {
				inside = append(inside, r)
			} else if r.Prefix.Overlaps(p) {
				around = append(around, r)
			}
		}
		require.ElementsMatch(t, around, slices.Collect(s.Routes.Over(p)))
		require.ElementsMatch(t, inside, slices.Collect(s.Routes.Inside(p)))
		want := false
		for _, r := range s.Routes.All() {
			want = want || r.Node != 2 && r.State != protocol.RouteRejected && r.Prefix.Overlaps(p)
		}
		got := NewClaims(s).Met(2, p)
		if (len(got) > 0) != want || slices.ContainsFunc(got, func(r Route) bool { return r.Node == 2 || !r.Prefix.Overlaps(p) }) {
			t.Fatalf("%s: %v", p, got)
		}
	})
}

func BenchmarkClaims(b *testing.B) {
	s := New()
	for i := range 20000 {
		k := RouteKey{protocol.NodeNumber(2 + i), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)}
		s.Routes.Set(k, Route{RouteKey: k, State: protocol.RouteApproved, Announced: true})
	}
	for b.Loop() {
		NewClaims(s).Met(1, prefix("10.1.0.0/16"))
	}
}
