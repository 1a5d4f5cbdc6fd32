package state

import (
	"cmp"
	"iter"
	"net/netip"

	"causeway/protocol"
)

// Routes are the routes of a State, by node and prefix, which also finds those that overlap a prefix. Of copies of it
// holds what holds of those of a Map.
type Routes struct {
	Map[RouteKey, Route]
	claimed Map[claimKey, Route] // of prefixes that can be carried
	lengths lengths              // of these
}

// claimKey is a RouteKey in the order in which prefixes that overlap are found: a prefix stands before those inside it.
type claimKey struct {
	prefix netip.Prefix
	node   protocol.NodeNumber
}

func compareClaims(a, b claimKey) int {
	return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), cmp.Compare(a.node, b.node))
}

// claim is the key of a route that can be carried.
func (k RouteKey) claim() (c claimKey, ok bool) {
	return claimKey{k.Prefix, k.Node}, k.Prefix.IsValid() && k.Prefix == k.Prefix.Masked()
}

// Set puts a route at its key.
func (r *Routes) Set(k RouteKey, v Route) {
	r.Map.Set(k, v)
	if c, ok := k.claim(); ok {
		if !r.claimed.Has(c) {
			r.lengths.add(k.Prefix, 1)
		}
		r.claimed.Set(c, v)
	}
}

// Delete takes a route away, if it is there.
func (r *Routes) Delete(k RouteKey) {
	r.Map.Delete(k)
	if c, ok := k.claim(); ok && r.claimed.Has(c) {
		r.claimed.Delete(c)
		r.lengths.add(k.Prefix, -1)
	}
}

// fill makes r what is set, for less than Set costs.
func (r *Routes) fill(from func(set func(RouteKey, Route))) {
	r.Map.fill(from)
	var n [2][129]int32
	r.claimed.fill(func(set func(claimKey, Route)) {
		for k, v := range r.All() {
			if c, ok := k.claim(); ok {
				set(c, v)
				n[family(k.Prefix)][k.Prefix.Bits()]++
			}
		}
	})
	r.lengths = lengths{&n}
}

// ByPrefix yields the routes of prefixes that can be carried, by prefix and node.
func (r Routes) ByPrefix() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		for _, v := range r.claimed.All() {
			if !yield(v) {
				return
			}
		}
	}
}

// Over yields the routes of p, and then of the prefixes around it, the nearest first. p is masked.
func (r Routes) Over(p netip.Prefix) iter.Seq[Route] {
	return func(yield func(Route) bool) {
		if r.claimed.m == nil || !p.IsValid() {
			return
		}
		it := r.claimed.m.Iterator()
		for x := range r.lengths.around(p) {
			it.Seek(claimKey{prefix: x})
			for k, v, ok := it.Next(); ok && k.prefix == x; k, v, ok = it.Next() {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// Inside yields the routes of prefixes inside p, without p itself, by address and then the wider first. p is masked.
func (r Routes) Inside(p netip.Prefix) iter.Seq[Route] {
	return func(yield func(Route) bool) {
		if !p.IsValid() {
			return
		}
		for k, v := range r.claimed.From(claimKey{prefix: p}) {
			if !p.Contains(k.prefix.Addr()) {
				return
			}
			if k.prefix.Bits() > p.Bits() && !yield(v) {
				return
			}
		}
	}
}
