package relay

import (
	"maps"
	"net/netip"
	"sync/atomic"
)

// table finds things by address. Looking up takes no lock; the caller orders
// changes, and each copies one shard.
type table[V any] struct {
	shards [256]atomic.Pointer[map[netip.AddrPort]*V] // the maps are never changed
}

func shardOf(a netip.AddrPort) uint8 {
	b := a.Addr().As16()
	return b[15] ^ uint8(a.Port()) ^ uint8(a.Port()>>8)
}

// get returns nil if there is nothing at a.
func (t *table[V]) get(a netip.AddrPort) *V {
	if m := t.shards[shardOf(a)].Load(); m != nil {
		return (*m)[a]
	}
	return nil
}

// set replaces what is at a; nil removes it.
func (t *table[V]) set(a netip.AddrPort, v *V) {
	s := &t.shards[shardOf(a)]
	m := map[netip.AddrPort]*V{}
	if old := s.Load(); old != nil {
		maps.Copy(m, *old)
	}
	if v == nil {
		delete(m, a)
	} else {
		m[a] = v
	}
	s.Store(&m)
}

// replace makes m all that there is.
func (t *table[V]) replace(m map[netip.AddrPort]*V) {
	var shards [len(t.shards)]map[netip.AddrPort]*V
	for a, v := range m {
		i := shardOf(a)
		if shards[i] == nil {
			shards[i] = map[netip.AddrPort]*V{}
		}
		shards[i][a] = v
	}
	for i := range shards {
		t.shards[i].Store(&shards[i])
	}
}

// all yields everything, each shard as it is when its turn comes.
func (t *table[V]) all(yield func(netip.AddrPort, *V) bool) {
	for i := range t.shards {
		m := t.shards[i].Load()
		if m == nil {
			continue
		}
		for a, v := range *m {
			if !yield(a, v) {
				return
			}
		}
	}
}
