package state

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/internal/hijack"
	"causeway/protocol"
)

// Ten thousand claims on other sites' prefixes and on reserved ranges, through every
// door that the state has: none is ever carried.
func TestHijackClaims(t *testing.T) {
	base := draft(t)
	add(t, base, SiteCreated{"attacker", []netip.Prefix{prefix("10.66.0.0/16")}})
	token(t, base, 1, TokenCreated{Site: "a", Routes: []netip.Prefix{prefix("10.1.1.0/24"), prefix("fd10:1:1::/64")}})
	require.NoError(t, Redeem(base, redeem(1, "victim")))
	attacker := node(t, base, 2, "attacker", "attacker")

	neighbour := node(t, base, 4, "a", "neighbour")

	claims := hijack.Claims(10000, prefix("10.1.0.0/16"), prefix("10.1.1.0/24"), prefix("fd10:1:1::/64"))
	accepted, tried, kinds := map[string]int{}, 0, map[string]int{}
	fork := func(s *State) *Draft { return &Draft{State: s.clone(), Now: base.Now} }
	victims := []netip.Prefix{prefix("10.1.1.0/24"), prefix("fd10:1:1::/64")}
	carriedBy := func(s *State, n protocol.NodeNumber, p netip.Prefix) bool {
		for _, r := range s.Routes.All() {
			if r.Node == n && r.Prefix == p && r.State == protocol.RouteApproved {
				return true
			}
		}
		return false
	}
	carried := func(s *State, p netip.Prefix) bool { return carriedBy(s, attacker, p) }
	count := func(door string, in bool) {
		tried++
		if in {
			accepted[door]++
		}
	}
	for p, kind := range claims {
		kinds[kind]++
		d := fork(base.State)
		err := d.Add(TokenCreated{ID: protocol.TokenID{9}, Hash: make([]byte, 32), Site: "attacker", Expires: d.Now.Add(time.Hour), Routes: []netip.Prefix{p}})
		count("token", err == nil)

		d = fork(base.State)
		err = d.Add(SiteCreated{"another", []netip.Prefix{p}})
		count("site range", err == nil)

		d = fork(base.State)
		if err := AnnounceRoutes(d, attacker, []netip.Prefix{p}); err == nil {
			count("announce", carried(d.State, p))
			err = DecideRoute(d, "attacker", p, true, "admin")
			count("approve", err == nil || carried(d.State, p))
		} else {
			count("announce", false)
		}

		// A node of the victim's own site, whose range approves what is nobody's.
		d = fork(base.State)
		if slices.ContainsFunc(victims, p.Overlaps) {
			count("announce beside", AnnounceRoutes(d, neighbour, []netip.Prefix{p}) == nil && carriedBy(d.State, neighbour, p))
		}
	}
	early := &Draft{State: New(), Now: epoch0} // no site has a range
	add(t, early, ClusterCreated{protocol.ClusterPublicKey{1}, 1, base.Overlay}, HubAdded{1}, SiteCreated{"a", nil}, SiteCreated{"attacker", nil})
	// The join: tokens with routes that were free when they were made.
	for p := range claims {
		d := fork(early.State)
		hash := secretOf(3).Hash()
		if d.Add(TokenCreated{ID: protocol.TokenID{3}, Hash: hash[:], Site: "attacker", Expires: d.Now.Add(time.Hour), Routes: []netip.Prefix{p}}) != nil {
			count("join", false)
			continue
		}
		d2 := fork(d.State)
		token(t, d2, 1, TokenCreated{Site: "a"})
		require.NoError(t, Redeem(d2, redeem(1, "victim")))
		victim := d2.NextNumber - 1
		for _, v := range []netip.Prefix{prefix("10.1.1.0/24"), prefix("fd10:1:1::/64")} {
			require.NoError(t, d2.Add(RouteAnnounced{Node: victim, Prefix: v, State: protocol.RouteApproved, By: ByToken, FromToken: true}))
		}
		require.NoError(t, Redeem(d2, redeem(3, "attacker")))
		got := d2.Routes.Get(RouteKey{d2.NextNumber - 1, p})
		overlaps := p.Overlaps(prefix("10.1.1.0/24")) || p.Overlaps(prefix("fd10:1:1::/64"))
		count("join", overlaps && got.State == protocol.RouteApproved)
	}
	total := 0
	for _, n := range accepted {
		total += n
	}
	t.Logf("%d claims (%v), %d tries through 6 doors: %d accepted %v", len(claims), kinds, tried, total, accepted)
	require.Zero(t, total, accepted)
}
