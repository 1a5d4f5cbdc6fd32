package protocol

import (
	"net/netip"
	"slices"
	"strings"
)

// Candidate is an endpoint of a service as a node judges it.
type Candidate struct {
	Addr netip.Addr
	Site string
	Use  bool // it takes new connections
	Ramp int  // how much of its share, in percent, it has yet (slow start); 100: all of it
}

// Numbers of slots of a service's address.
const (
	FewSlots  = 64
	ManySlots = 256 // for more candidates than fewUntil, and where shares are exact or clients stick
	fewUntil  = 12
)

// slots is how many slots so many candidates are distributed over.
func (s Service) slots(candidates int) int {
	if candidates > fewUntil || s.Prefer == PreferWeights || s.Sticky == StickyClient {
		return ManySlots
	}
	return FewSlots
}

// Distribute says which of the candidates each slot of an address leads to, by its place in l; nil: none takes connections.
// here is the client's site. It is pure: equal views give equal slots on every node. A slot keeps its candidate while that
// can be: those of one that goes are spread over the others, and what comes back has its own again.
func (s Service) Distribute(here string, l []Candidate) []int {
	sites := s.sitesOf(l)
	n := s.slots(len(l))
	whole := slices.Clone(sites)
	for i := range whole {
		whole[i].used, whole[i].ramp = whole[i].all, 100
	}
	all := parts(s.shares(here, whole), n, nil)
	quotas := parts(s.shares(here, sites), n, all)
	if quotas == nil {
		return nil
	}
	keys := make([]uint64, len(sites))
	for i, x := range sites {
		keys[i] = hashString(x.name)
	}
	a := assigner{keys: keys, slots: make([]int, n)}
	for i := range a.slots {
		a.slots[i] = i
	}
	slotSites := a.keep(quotas, a.fit(all))
	out := make([]int, n)
	for i, x := range sites {
		if quotas[i] > 0 {
			x.endpoints(l, s.Sticky == StickyClient, slotSites, i, out)
		}
	}
	return out
}

// siteUse is a site with candidates.
type siteUse struct {
	name      string
	at        []int // places of its candidates
	all, used int
	ramp      int // of those in use together, in percent
}

// sitesOf are the sites of candidates that the service may use, by name.
func (s Service) sitesOf(l []Candidate) (out []siteUse) {
	for i, c := range l {
		if len(s.Stay) > 0 && !slices.Contains(s.Stay, c.Site) || slices.Contains(s.Exclude, c.Site) || s.Mode == ServiceSingleWriter && !s.MayServe(c.Site) {
			continue
		}
		k, found := slices.BinarySearchFunc(out, c.Site, func(x siteUse, name string) int { return strings.Compare(x.name, name) })
		if !found {
			out = slices.Insert(out, k, siteUse{name: c.Site})
		}
		x := &out[k]
		x.at = append(x.at, i)
		if x.all++; c.Use {
			x.used++
			x.ramp += c.Ramp
		}
	}
	for i := range out {
		if out[i].used > 0 {
			out[i].ramp = max(1, out[i].ramp/out[i].used)
		}
	}
	return out
}

// shares are the shares of sites in thousandths of a percent.
func (s Service) shares(here string, sites []siteUse) []int {
	levels := s.levels(here, sites)
	health := make([]int, len(levels))
	for i, l := range levels {
		health[i] = s.health(sites, l)
	}
	out := make([]int, len(sites))
	for i, load := range s.loads(health) {
		weights, sum := make([]int, len(levels[i])), 0
		for k, x := range levels[i] {
			weights[k] = s.weight(sites[x]) * s.health(sites, []int{x})
			sum += weights[k]
		}
		for k, x := range levels[i] {
			if sum > 0 {
				out[x] = load * 1000 * weights[k] / sum
			}
		}
	}
	return out
}

// levels are the sites in the order in which they are preferred, by their places.
func (s Service) levels(here string, sites []siteUse) (out [][]int) {
	var rest []int
	taken := make([]bool, len(sites))
	take := func(name string) {
		for i, x := range sites {
			if x.name == name && !taken[i] {
				out, taken[i] = append(out, []int{i}), true
			}
		}
	}
	if s.Prefer == PreferNear {
		take(here)
	}
	if s.Prefer == PreferNear || s.Prefer == PreferOrder {
		for _, name := range s.Order {
			take(name)
		}
	}
	if s.Prefer == PreferWeights {
		var named []int
		for i, x := range sites {
			if _, is := s.Weights[x.name]; is {
				named, taken[i] = append(named, i), true
			}
		}
		out = append(out, named)
	}
	for i := range sites {
		if !taken[i] {
			rest = append(rest, i)
		}
	}
	if s.Mode == ServiceFailover { // one site alone at a time
		for _, i := range rest {
			out = append(out, []int{i})
		}
		return out
	}
	return append(out, rest)
}

// weight is a site's among others of its level; without any it takes nothing.
func (s Service) weight(x siteUse) int {
	if w, is := s.Weights[x.name]; is {
		return w
	}
	return 1
}

// health is how much of all traffic a level can take, in percent: one of which more than 71 % of the candidates are usable takes
// all. Sites whose weight is 0 count for nothing.
func (s Service) health(sites []siteUse, level []int) int {
	all, used, ramp := 0, 0, 0
	for _, i := range level {
		if x := sites[i]; s.weight(x) > 0 {
			all, used = all+x.all, used+x.used
			if x.used > 0 {
				ramp = max(ramp, x.ramp) // what starts slowly leaves its share to the others of its level
			}
		}
	}
	switch {
	case used == 0:
		return 0
	case s.Mode != ServiceSpread:
		return 100
	}
	return max(1, min(100, 140*used/all)*ramp/100)
}

// loads are the percents of traffic of levels of such health: each takes what it can, and the next what is left
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority). Where all together cannot
// take 100 % they take it all the same, each in proportion.
func (s Service) loads(health []int) []int {
	sum := 0
	for _, h := range health {
		sum += h
	}
	out := make([]int, len(health))
	if sum == 0 {
		return out
	}
	sum = min(100, sum)
	left, first := 100, -1
	for i, h := range health {
		out[i] = min(left, (h*100+sum/2)/sum)
		if left -= out[i]; first < 0 && out[i] > 0 {
			first = i
		}
	}
	out[first] += left // of rounding
	return out
}

// parts divides n in proportion, rounding by the largest remainders; nil: there is nothing to divide. Who had a part before that
// still rounds to his share keeps it, so that he loses none where others go. before may be nil.
func parts(shares []int, n int, before []int) []int {
	sum := 0
	for _, x := range shares {
		sum += x
	}
	if sum == 0 {
		return nil
	}
	out, left := make([]int, len(shares)), n
	order := make([]int, len(shares))
	for i, x := range shares {
		out[i], order[i] = x*n/sum, i
		left -= out[i]
	}
	had := func(i int) bool { return before != nil && shares[i]*n%sum > 0 && before[i] == out[i]+1 }
	slices.SortStableFunc(order, func(a, b int) int {
		if x, y := had(a), had(b); x != y {
			if x {
				return -1
			}
			return 1
		}
		return shares[b]*n%sum - shares[a]*n%sum
	})
	for _, i := range order[:left] {
		out[i]++
	}
	return out
}

// endpoints distributes the slots of one site over its candidates in use. What sticks has its candidate by the slot alone,
// whichever slots the site has.
func (x siteUse) endpoints(l []Candidate, sticky bool, slotSites []int, site int, out []int) {
	keys, whole, now := make([]uint64, len(x.at)), make([]int, len(x.at)), make([]int, len(x.at))
	for i, at := range x.at {
		keys[i], whole[i] = hashAddr(l[at].Addr), 1
		if l[at].Use {
			now[i] = max(1, l[at].Ramp)
		}
	}
	var slots []int
	for slot, of := range slotSites {
		if of == site || sticky {
			slots = append(slots, slot)
		}
	}
	a := assigner{keys: keys, slots: slots}
	all := parts(whole, len(slots), nil)
	for i, e := range a.keep(parts(now, len(slots), all), a.keep(all, nil)) {
		if slotSites[slots[i]] == site {
			out[slots[i]] = x.at[e]
		}
	}
}

// assigner gives slots to keys so that each key has its quota, by rendezvous hashing: a slot goes to the key whose hash with it
// is the highest, as far as quotas let it. Quotas add up to the number of slots.
type assigner struct {
	keys  []uint64
	slots []int
}

const none = -1

// keep returns the key of each slot. Of base, which may be nil, each key keeps as many slots as its quota lets it.
func (a assigner) keep(quotas, base []int) []int {
	out := make([]int, len(a.slots))
	count := make([]int, len(a.keys))
	for i := range out {
		if out[i] = none; base == nil {
			out[i] = a.best(i, quotas)
		} else if quotas[base[i]] > 0 {
			out[i] = base[i]
		}
		if out[i] != none {
			count[out[i]]++
		}
	}
	for k := range count { // what is too much goes, that which fits least first
		for count[k] > quotas[k] {
			least := none
			for i, of := range out {
				if of == k && (least == none || a.score(i, k) < a.score(least, k)) {
					least = i
				}
			}
			out[least] = none
			count[k]--
		}
	}
	room := make([]int, len(quotas))
	for k := range room {
		room[k] = quotas[k] - count[k]
	}
	for i := range out {
		if out[i] == none {
			out[i] = a.best(i, room)
			room[out[i]]--
		}
	}
	return out
}

// fit returns the key of each slot so that their hashes are the highest together that quotas let be. A quota that grows takes little
// more than it grows by, and moves hardly anything between other keys. Slots go from keys that have too many to those
// that have too few on the cheapest way, perhaps over others (successive shortest paths).
func (a assigner) fit(quotas []int) []int {
	out, count := make([]int, len(a.slots)), make([]int, len(a.keys))
	for i := range out {
		out[i] = a.best(i, quotas)
		count[out[i]]++
	}
	for n := len(a.keys); ; {
		dist, from := make([]int64, n), make([]int, n)
		for k := range dist {
			if from[k] = none; count[k] <= quotas[k] {
				dist[k] = noWay
			}
		}
		cost, slot := a.costs(out, quotas)
		for changed := true; changed; {
			changed = false
			for i := range n {
				for j := range n {
					if c := cost[i*n+j]; dist[i] < noWay && c < noWay && dist[i]+c < dist[j] {
						dist[j], from[j], changed = dist[i]+c, i, true
					}
				}
			}
		}
		to := none
		for k := range dist {
			if count[k] < quotas[k] && (to == none || dist[k] < dist[to]) {
				to = k
			}
		}
		if to == none {
			return out
		}
		count[to]++
		for from[to] != none {
			out[slot[from[to]*n+to]] = to
			to = from[to]
		}
		count[to]--
	}
}

const noWay = 1 << 60

// costs are what it costs to move one slot from a key to another, and which one that is.
func (a assigner) costs(of, quotas []int) (cost []int64, slot []int) {
	n := len(a.keys)
	cost, slot = make([]int64, n*n), make([]int, n*n)
	for k := range cost {
		cost[k] = noWay
	}
	for i, k := range of {
		for j := range n {
			if at := k*n + j; j != k && quotas[j] > 0 {
				if c := a.score(i, k) - a.score(i, j); c < cost[at] {
					cost[at], slot[at] = c, i
				}
			}
		}
	}
	return cost, slot
}

// best is the key with the highest score of those with room.
func (a assigner) best(i int, room []int) int {
	to := none
	for k, r := range room {
		if r > 0 && (to == none || a.score(i, k) > a.score(i, to)) {
			to = k
		}
	}
	return to
}

// score is how well a slot fits a key.
func (a assigner) score(i, key int) int64 {
	return int64(mix(a.keys[key]^mix(uint64(a.slots[i])+1)) >> 16)
}

// mix is the finalizer of SplitMix64 (https://prng.di.unimi.it/splitmix64.c).
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// hashString is FNV-1a, mixed.
func hashString(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

func hashAddr(a netip.Addr) uint64 {
	b := a.As16()
	return hashString(string(b[:]))
}
