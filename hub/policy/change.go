package policy

import (
	"net/netip"
	"slices"
)

// Change compares what is in force with what would be.
type Change struct {
	Before, After *Compiled
	// Kinds are sets of addresses that neither of the two tells apart, in the order of their first prefixes.
	Kinds []Kind

	was map[ClassID][]ClassID
}

// Kind is a set of addresses which are of one class before and of one after.
type Kind struct {
	// Before and After are the classes; 0: nobody has these addresses, or nothing is declared.
	Before, After ClassID
	First         netip.Prefix // one of them
}

// NewChange compares two compilations.
func NewChange(before, after *Compiled) *Change {
	c := &Change{Before: before, After: after, was: map[ClassID][]ClassID{}}
	prefixes := make([]netip.Prefix, 0, len(before.Units)+len(after.Units))
	for _, units := range [][]Unit{before.Units, after.Units} {
		for _, u := range units {
			prefixes = append(prefixes, u.Prefix)
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	seen := map[[2]ClassID]bool{}
	for _, p := range slices.Compact(prefixes) {
		k := Kind{before.classAround(p), after.classAround(p), p}
		if id := [2]ClassID{k.Before, k.After}; !seen[id] {
			seen[id] = true
			c.Kinds = append(c.Kinds, k)
			c.was[k.After] = append(c.was[k.After], k.Before)
		}
	}
	return c
}

// Was lists the classes of before that addresses of a class of after were of.
func (c *Change) Was(after ClassID) []ClassID { return c.was[after] }

// classAround is the class of the addresses in p that are in no longer unit inside it; 0: nobody has them.
func (c *Compiled) classAround(p netip.Prefix) ClassID {
	v := 0
	if p.Addr().Is6() {
		v = 1
	}
	for _, bits := range c.lengths[v] {
		if bits > p.Bits() {
			continue
		}
		if u, ok := c.units[netip.PrefixFrom(p.Addr(), bits).Masked()]; ok {
			return u.Class
		}
	}
	return 0
}
