package state

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"net/netip"
	"strings"

	"github.com/benbjohnson/immutable"

	"causeway/protocol"
)

// Map is a table of a State, in the order of its keys. Copying it costs nothing: copies share all that is the same
// in them, and a change of one is none of the other. The zero value is empty. A copy that nobody
// changes may be read by any number of goroutines, while other copies are changed.
type Map[K comparable, V any] struct {
	m *immutable.SortedMap[K, V] // nil: empty
}

// Find returns what is at k, and whether anything is.
func (m Map[K, V]) Find(k K) (v V, ok bool) {
	if m.m == nil {
		return v, false
	}
	return m.m.Get(k)
}

// Get returns what is at k, the zero value if nothing is.
func (m Map[K, V]) Get(k K) V {
	v, _ := m.Find(k)
	return v
}

// Has reports whether anything is at k.
func (m Map[K, V]) Has(k K) bool {
	_, ok := m.Find(k)
	return ok
}

// Len is the number of keys.
func (m Map[K, V]) Len() int {
	if m.m == nil {
		return 0
	}
	return m.m.Len()
}

// All yields everything as it is when it is called, whatever becomes of m meanwhile.
func (m Map[K, V]) All() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m.m != nil {
			each(m.m.Iterator(), yield)
		}
	}
}

// From is All from k on.
func (m Map[K, V]) From(k K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m.m == nil {
			return
		}
		it := m.m.Iterator()
		it.Seek(k)
		each(it, yield)
	}
}

func each[K comparable, V any](it *immutable.SortedMapIterator[K, V], yield func(K, V) bool) {
	for k, v, ok := it.Next(); ok && yield(k, v); k, v, ok = it.Next() {
	}
}

// Keys yields the keys.
func (m Map[K, V]) Keys() iter.Seq[K] {
	return func(yield func(K) bool) {
		for k := range m.All() {
			if !yield(k) {
				return
			}
		}
	}
}

// Set puts v at k.
func (m *Map[K, V]) Set(k K, v V) {
	if m.m == nil {
		m.m = immutable.NewSortedMap[K, V](order[K]())
	}
	m.m = m.m.Set(k, v)
}

// Delete takes away what is at k, if anything is.
func (m *Map[K, V]) Delete(k K) {
	if m.m != nil {
		m.m = m.m.Delete(k)
	}
}

// IsZero reports whether the map is empty: encoding/json leaves it out where it is told to.
func (m Map[K, V]) IsZero() bool { return m.Len() == 0 }

// plain is a map of Go with the same in it.
func (m Map[K, V]) plain() any {
	out := make(map[K]V, m.Len())
	for k, v := range m.All() {
		out[k] = v
	}
	return out
}

// MarshalJSON writes what a map of Go is written as.
func (m Map[K, V]) MarshalJSON() ([]byte, error) { return json.Marshal(m.plain()) }

// UnmarshalJSON reads what MarshalJSON wrote. Unknown fields are refused, as everywhere in a snapshot.
func (m *Map[K, V]) UnmarshalJSON(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var all map[K]V
	if err := d.Decode(&all); err != nil {
		return err
	}
	m.fill(func(set func(K, V)) {
		for k, v := range all {
			set(k, v)
		}
	})
	return nil
}

// fill makes m what is set, for less than Set costs.
func (m *Map[K, V]) fill(from func(set func(K, V))) {
	b := immutable.NewSortedMapBuilder[K, V](order[K]())
	from(b.Set)
	m.m = b.Map()
}

// ordered compares keys: -1, 0 or 1.
type ordered[K any] func(a, b K) int

// Compare implements immutable.Comparer.
func (f ordered[K]) Compare(a, b K) int { return f(a, b) }

// order is that of the keys of a state's tables.
func order[K comparable]() immutable.Comparer[K] {
	var f any
	switch any(*new(K)).(type) {
	case string:
		f = ordered[string](strings.Compare)
	case protocol.NodeNumber:
		f = ordered[protocol.NodeNumber](cmp.Compare[protocol.NodeNumber])
	case protocol.TokenID:
		f = ordered[protocol.TokenID](func(a, b protocol.TokenID) int { return bytes.Compare(a[:], b[:]) })
	case protocol.WireGuardPublicKey:
		f = ordered[protocol.WireGuardPublicKey](func(a, b protocol.WireGuardPublicKey) int { return bytes.Compare(a[:], b[:]) })
	case protocol.IdentityPublicKey:
		f = ordered[protocol.IdentityPublicKey](func(a, b protocol.IdentityPublicKey) int { return bytes.Compare(a[:], b[:]) })
	case rangeKey:
		f = ordered[rangeKey](compareRanges)
	case claimKey:
		f = ordered[claimKey](compareClaims)
	case RouteKey:
		f = ordered[RouteKey](compareRoutes)
	case netip.Addr:
		f = ordered[netip.Addr](netip.Addr.Compare)
	case ObjectKey:
		f = ordered[ObjectKey](CompareKeys)
	default:
		panic(fmt.Sprintf("a table by %T has no order", *new(K)))
	}
	return f.(immutable.Comparer[K])
}
