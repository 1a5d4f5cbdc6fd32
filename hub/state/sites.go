package state

import (
	"cmp"
	"iter"
	"net/netip"
)

// Sites are the sites of a State, by name, which also finds those whose ranges overlap a prefix. Of copies of it
// holds what holds of those of a Map.
type Sites struct {
	Map[string, Site]
	ranges  Map[rangeKey, struct{}]
	lengths lengths // of them
}

// rangeKey is a range of a site. A range stands before those inside it.
type rangeKey struct {
	prefix netip.Prefix
	site   string
}

func compareRanges(a, b rangeKey) int {
	return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), cmp.Compare(a.site, b.site))
}

// Set puts a site at its name.
func (s *Sites) Set(name string, v Site) {
	s.drop(name)
	s.Map.Set(name, v)
	for _, p := range v.Ranges {
		if k := (rangeKey{p, name}); p.IsValid() && !s.ranges.Has(k) {
			s.ranges.Set(k, struct{}{})
			s.lengths.add(p, 1)
		}
	}
}

// Delete takes a site away, if it is there.
func (s *Sites) Delete(name string) {
	s.drop(name)
	s.Map.Delete(name)
}

func (s *Sites) drop(name string) {
	for _, p := range s.Get(name).Ranges {
		if k := (rangeKey{p, name}); s.ranges.Has(k) {
			s.ranges.Delete(k)
			s.lengths.add(p, -1)
		}
	}
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Sites) UnmarshalJSON(b []byte) error {
	var all Map[string, Site]
	if err := all.UnmarshalJSON(b); err != nil {
		return err
	}
	*s = Sites{}
	for name, v := range all.All() {
		s.Set(name, v)
	}
	return nil
}

// Overlapping yields the ranges that p, which is masked, overlaps, and whose they are: p itself, those around it, those
// inside it.
func (s Sites) Overlapping(p netip.Prefix) iter.Seq2[netip.Prefix, string] {
	return func(yield func(netip.Prefix, string) bool) {
		if s.ranges.m == nil || !p.IsValid() {
			return
		}
		it := s.ranges.m.Iterator()
		for x := range s.lengths.around(p) {
			it.Seek(rangeKey{prefix: x})
			for k, _, ok := it.Next(); ok && k.prefix == x; k, _, ok = it.Next() {
				if !yield(k.prefix, k.site) {
					return
				}
			}
		}
		for k := range s.ranges.From(rangeKey{prefix: p}) {
			if !p.Contains(k.prefix.Addr()) {
				return
			}
			if k.prefix.Bits() > p.Bits() && !yield(k.prefix, k.site) {
				return
			}
		}
	}
}
