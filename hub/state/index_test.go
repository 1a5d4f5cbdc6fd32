package state

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/protocol"
)

// What the index finds is what looking at everything finds, whatever was changed in whatever order; and
// a copy and its original go their own ways.
func TestIndex(t *testing.T) {
	prefixes := rapid.Custom(func(t *rapid.T) netip.Prefix {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, rapid.Byte().Draw(t, "second"), rapid.Byte().Draw(t, "third") & 0xc0, 0}), rapid.IntRange(0, 32).Draw(t, "bits"))
		if rapid.Bool().Draw(t, "six") {
			a := netip.MustParseAddr("fd00::").As16()
			a[1], a[15] = rapid.Byte().Draw(t, "second")&3, rapid.Byte().Draw(t, "last")&1
			p = netip.PrefixFrom(netip.AddrFrom16(a), rapid.SampledFrom([]int{0, 8, 14, 15, 16, 64, 127, 128}).Draw(t, "bits"))
		}
		return p.Masked()
	})
	rapid.Check(t, func(t *rapid.T) {
		s, before := New(), New()
		for range rapid.IntRange(1, 60).Draw(t, "changes") {
			site := fmt.Sprintf("s%d", rapid.IntRange(1, 4).Draw(t, "site"))
			n := protocol.NodeNumber(rapid.IntRange(1, 6).Draw(t, "node"))
			k := RouteKey{n, prefixes.Draw(t, "prefix")}
			switch rapid.IntRange(0, 6).Draw(t, "change") {
			case 0:
				s.putSite(Site{Name: site, Ranges: rapid.SliceOfN(prefixes, 0, 4).Draw(t, "ranges")})
			case 1:
				s.dropSite(site)
			case 2, 3:
				s.putRoute(Route{RouteKey: k, State: rapid.SampledFrom([]protocol.RouteState{protocol.RouteApproved, protocol.RoutePending, protocol.RouteRejected}).Draw(t, "state")})
			case 4:
				for of := range s.Routes {
					s.dropRoute(of)
					break
				}
			case 5:
				s.putNode(Node{Number: n, Site: fmt.Sprintf("s%d", n%3), Gone: rapid.SampledFrom([]Gone{"", GoneLeft}).Draw(t, "gone")})
			case 6:
				before, s = s, s.clone()
			}
		}
		for _, x := range []*State{before, s} {
			anew := *x
			anew.reindex()
			require.True(t, x.found.Equal(anew.found))
			for n := protocol.NodeNumber(1); n <= 6; n++ {
				slow := *x
				slow.found = &index{}
				require.Equal(t, slow.NodeRoutes(n), x.NodeRoutes(n))
			}
			p := prefixes.Draw(t, "asked")
			want, got := map[claim]bool{}, map[claim]bool{}
			for _, r := range x.Routes {
				if r.State == protocol.RouteApproved && r.Prefix.Overlaps(p) {
					want[claim{prefix: r.Prefix, node: r.Node}] = true
				}
			}
			for _, site := range x.Sites {
				for _, r := range site.Ranges {
					if r.Overlaps(p) {
						want[claim{prefix: r, site: site.Name}] = true
					}
				}
			}
			for _, c := range []*claims{x.found.ranges, x.found.carried} {
				c.overlapping(p, func(c claim) bool { got[c] = true; return true })
			}
			require.Equal(t, want, got, p)
			first := 0
			x.found.carried.overlapping(p, func(claim) bool { first++; return false })
			require.LessOrEqual(t, first, 1)
		}
	})
}
