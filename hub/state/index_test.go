package state

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/protocol"
)

// What is found by what it overlaps is what looking at everything finds, whatever was changed in whatever order; and
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
	type found struct {
		prefix netip.Prefix
		whose  any
	}
	rapid.Check(t, func(t *rapid.T) {
		s, before := New(), New()
		for range rapid.IntRange(1, 60).Draw(t, "changes") {
			site := fmt.Sprintf("s%d", rapid.IntRange(1, 4).Draw(t, "site"))
			n := protocol.NodeNumber(rapid.IntRange(1, 6).Draw(t, "node"))
			k := RouteKey{n, prefixes.Draw(t, "prefix")}
			switch rapid.IntRange(0, 6).Draw(t, "change") {
			case 0:
				s.Sites.Set(site, Site{Name: site, Ranges: rapid.SliceOfN(prefixes, 0, 4).Draw(t, "ranges")})
			case 1:
				s.Sites.Delete(site)
			case 2, 3:
				s.Routes.Set(k, Route{RouteKey: k, State: rapid.SampledFrom([]protocol.RouteState{protocol.RouteApproved, protocol.RoutePending, protocol.RouteRejected}).Draw(t, "state")})
			case 4:
				for of := range s.Routes.All() {
					s.Routes.Delete(of)
					break
				}
			case 5:
				s.Nodes.Set(n, Node{Number: n, Site: fmt.Sprintf("s%d", n%3), Gone: rapid.SampledFrom([]Gone{"", GoneLeft}).Draw(t, "gone")})
			case 6:
				before, s = s, s.clone()
			}
		}
		for _, x := range []*State{before, s} {
			p := prefixes.Draw(t, "asked")
			want, got := map[found]int{}, map[found]int{}
			for _, r := range x.Routes.All() {
				if r.Prefix.Overlaps(p) {
					want[found{r.Prefix, r}]++
				}
			}
			for r := range x.Routes.Over(p) {
				got[found{r.Prefix, r}]++
			}
			for r := range x.Routes.Inside(p) {
				got[found{r.Prefix, r}]++
			}
			for _, site := range x.Sites.All() {
				for _, r := range site.Ranges {
					if r.Overlaps(p) {
						want[found{r, site.Name}] = 1
					}
				}
			}
			for r, site := range x.Sites.Overlapping(p) {
				got[found{r, site}]++
			}
			require.Equal(t, want, got, p)
			live := map[string][]protocol.NodeNumber{}
			for _, n := range x.Nodes.All() {
				if n.Live() {
					live[n.Site] = append(live[n.Site], n.Number)
				}
			}
			for _, site := range []string{"s0", "s1", "s2", "s3"} {
				require.ElementsMatch(t, live[site], x.LiveNodesOf(site))
			}
		}
	})
}
