package protocol

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The rows of https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority: percents of
// healthy endpoints of each level, and of the traffic that it gets.
func TestEnvoysPriorities(t *testing.T) {
	for _, row := range [][2][]int{
		{{100, 100}, {100, 0}}, {{72, 100}, {100, 0}}, {{71, 100}, {99, 1}}, {{50, 100}, {70, 30}}, {{25, 100}, {35, 65}}, {{0, 100}, {0, 100}},
		{{100, 100}, {100, 0}}, {{72, 72}, {100, 0}}, {{71, 71}, {99, 1}}, {{50, 50}, {70, 30}}, {{25, 100}, {35, 65}}, {{25, 25}, {50, 50}},
		{{100, 100, 100}, {100, 0, 0}}, {{72, 72, 100}, {100, 0, 0}}, {{71, 71, 100}, {99, 1, 0}}, {{50, 50, 100}, {70, 30, 0}}, {{25, 100, 100}, {35, 65, 0}}, {{25, 25, 100}, {35, 35, 30}}, {{25, 25, 20}, {36, 36, 28}},
	} {
		s := Service{Mode: ServiceSpread, Prefer: PreferOrder}
		var sites []siteUse
		for i, percent := range row[0] {
			name := fmt.Sprintf("p%d", i)
			s.Order = append(s.Order, name)
			sites = append(sites, siteUse{name: name, all: 100, used: percent, ramp: 100})
		}
		var got []int
		for _, x := range s.shares("elsewhere", sites) {
			got = append(got, x/1000)
		}
		require.Equal(t, row[1], got, "healthy %v", row[0])
	}
}

func candidates(n int, sites ...string) (l []Candidate) {
	for i := range n {
		l = append(l, Candidate{Addr: netip.AddrFrom4([4]byte{10, byte(i / 250), 0, byte(i%250 + 1)}), Site: sites[i%len(sites)], Use: true, Ramp: 100})
	}
	return l
}

// shareOf is the percent of slots that lead to a site.
func shareOf(l []Candidate, slots []int, site string) float64 {
	n := 0
	for _, c := range slots {
		if l[c].Site == site {
			n++
		}
	}
	return 100 * float64(n) / float64(len(slots))
}

func moved(a, b []int) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

func TestDistribute(t *testing.T) {
	l := candidates(6, "sh", "eu", "us")
	normal := func(s Service) Service {
		s.Ports = []ServicePort{{Port: 80}}
		s, err := s.Normal()
		require.NoError(t, err)
		return s
	}
	share := func(s Service, here string, want map[string]float64) []int {
		t.Helper()
		slots := normal(s).Distribute(here, l)
		for site, percent := range want {
			require.InDelta(t, percent, shareOf(l, slots, site), 1.5, site)
		}
		return slots
	}
	spread := share(Service{}, "sh", map[string]float64{"sh": 100})
	share(Service{}, "nowhere", map[string]float64{"sh": 34, "eu": 33, "us": 33})
	share(Service{Prefer: PreferWeights, Weights: map[string]int{"sh": 90, "eu": 10}}, "us", map[string]float64{"sh": 90, "eu": 10, "us": 0})
	share(Service{Prefer: PreferWeights, Weights: map[string]int{"sh": 1, "eu": 0}}, "us", map[string]float64{"sh": 100})
	share(Service{Prefer: PreferOrder, Order: []string{"eu", "us"}}, "sh", map[string]float64{"eu": 100})
	share(Service{Mode: ServiceSingleWriter, Writer: "us"}, "sh", map[string]float64{"us": 100})
	share(Service{Exclude: []string{"sh"}, Weights: map[string]int{"eu": 3, "us": 1}}, "sh", map[string]float64{"eu": 75, "us": 25})
	share(Service{Stay: []string{"us"}}, "sh", map[string]float64{"us": 100})

	l[0].Use = false // one of two at sh: it takes 70 % of what the site took
	half := share(Service{}, "sh", map[string]float64{"sh": 70, "eu": 15, "us": 15})
	for i := range spread {
		require.True(t, spread[i] == 0 || half[i] == spread[i] || l[half[i]].Site != "sh", "what stays at the site stays at its backend")
	}
	share(Service{Mode: ServiceFailover, Order: []string{"sh", "eu"}}, "eu", map[string]float64{"sh": 100})
	l[3].Use = false
	share(Service{}, "sh", map[string]float64{"eu": 50, "us": 50})
	share(Service{Mode: ServiceFailover, Order: []string{"sh", "us"}}, "eu", map[string]float64{"us": 100})
	require.Nil(t, normal(Service{Stay: []string{"sh"}}).Distribute("sh", l), "it goes nowhere else")
	require.Nil(t, normal(Service{Mode: ServiceSingleWriter, Writer: "sh"}).Distribute("eu", l))
	require.Nil(t, normal(Service{}).Distribute("eu", nil))
	l[0].Use, l[0].Ramp, l[3].Use, l[3].Ramp = true, 10, true, 10
	share(Service{}, "sh", map[string]float64{"sh": 10, "eu": 45, "us": 45})
	share(Service{Prefer: PreferWeights, Weights: map[string]int{"sh": 50, "eu": 50}}, "us", map[string]float64{"sh": 9, "eu": 91})
}

// Whatever the candidates are, no slot leads to one that is not used, each that is used in the only level gets its part, and a
// candidate or site that goes moves nobody else's slots.
func TestDistributeMovesNobodyElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := []string{"a", "b", "c", "d", "e"}[:rapid.IntRange(1, 5).Draw(t, "sites")]
		l := candidates(rapid.IntRange(1, 60).Draw(t, "candidates"), names...)
		s := Service{Mode: ServiceSpread, Prefer: PreferWeights, Weights: map[string]int{}}
		for _, n := range names {
			s.Weights[n] = rapid.IntRange(1, 100).Draw(t, "weight")
		}
		before := s.Distribute("a", l)
		gone := rapid.SampledFrom(names).Draw(t, "gone")
		for i := range l {
			l[i].Use = l[i].Site != gone
		}
		after := s.Distribute("a", l)
		for i := range after {
			require.True(t, l[after[i]].Use)
			if l[before[i]].Site != gone {
				require.Equal(t, l[before[i]].Site, l[after[i]].Site)
			}
		}
		for i := range l {
			l[i].Use = rapid.IntRange(0, 3).Draw(t, "use") > 0
			l[i].Ramp = rapid.IntRange(0, 100).Draw(t, "ramp")
		}
		some := s.Distribute("a", l)
		for _, c := range some {
			require.True(t, l[c].Use)
		}
		require.Equal(t, slices.ContainsFunc(l, func(c Candidate) bool { return c.Use }), some != nil)
	})
}

// Clients that stick by the slots of their address: 10 % more weight moves about a tenth of them, a site that dies only its own.
func TestStickySlots(t *testing.T) {
	worst, sum, n := 0.0, 0, 0
	for _, names := range [][]string{{"a", "b"}, {"idc-sh", "cloud-eu", "cloud-us"}, {"w", "x", "y", "z"}} {
		for _, many := range []int{2, 4, 12, 13, 24, 48} {
			l := candidates(many*len(names), names...)
			s := Service{Mode: ServiceSpread, Prefer: PreferWeights, Sticky: StickyClient, Weights: map[string]int{}}
			for _, x := range names {
				s.Weights[x] = 100 / len(names)
			}
			before := s.Distribute("", l)
			s.Weights = maps.Clone(s.Weights)
			s.Weights[names[0]] += 10
			for _, x := range names[1:] {
				s.Weights[x] -= 10 / (len(names) - 1)
			}
			m := moved(before, s.Distribute("", l))
			if testing.Verbose() {
				t.Logf("%d sites of %d candidates: %d of %d slots moved", len(names), many, m, len(before))
			}
			worst, sum, n = max(worst, 100*float64(m)/float64(len(before))), sum+m, n+len(before)
		}
	}
	t.Logf("moved: worst %.1f %%, on average %.1f %%", worst, 100*float64(sum)/float64(n))
	require.LessOrEqual(t, worst, 15.0)
	require.LessOrEqual(t, 100*float64(sum)/float64(n), 12.0)
}

// The slots are the same on every node, whatever it runs on and whichever version of the last ones it has: a sum of those that
// are there today.
func TestSlotsAreTheSame(t *testing.T) {
	var all []byte
	for _, s := range []Service{
		{Mode: ServiceSpread, Prefer: PreferWeights, Weights: map[string]int{"sh": 3, "eu": 1}}, {Mode: ServiceSpread, Prefer: PreferNear, Order: []string{"us"}},
		{Mode: ServiceFailover, Prefer: PreferOrder, Order: []string{"us", "sh"}}, {Mode: ServiceSpread, Prefer: PreferNear, Sticky: StickyClient, Weights: map[string]int{"us": 7}},
	} {
		for _, n := range []int{1, 5, 12, 31} {
			l := candidates(n, "sh", "eu", "us")
			l[n/2].Use, l[n/3].Ramp = false, 37
			for _, c := range s.Distribute("sh", l) {
				all = append(all, byte(c))
			}
		}
	}
	require.Equal(t, "a751a33ea7a517ba8d4076861d17f09b4e9ab1a5bd35f3a9abca8ab4fc4f46d5", fmt.Sprintf("%x", sha256.Sum256(all)))
}

func BenchmarkDistribute(b *testing.B) {
	for _, n := range []int{2, 12, 50} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := candidates(n, "a", "b", "c")
			s := Service{Mode: ServiceSpread, Prefer: PreferNear}
			for b.Loop() {
				s.Distribute("a", l)
			}
		})
	}
}
