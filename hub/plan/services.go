package plan

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"weak"

	"causeway/hub/service"
	"causeway/protocol"
)

// services are the items of services. Nodes that are told the same share one set, so that what a change costs does not grow
// with the product of nodes and services.
type services struct {
	told  *service.Told // that it is made of
	items map[*protocol.Item]*item
	made  map[*service.Set]*itemSet
	sets  map[protocol.NodeNumber]*itemSet
}

// newServices makes them, of those of before as far as they are the same.
func newServices(told *service.Told, before services) services {
	if told == before.told {
		return before
	}
	v := services{told: told, items: map[*protocol.Item]*item{}, made: map[*service.Set]*itemSet{}, sets: map[protocol.NodeNumber]*itemSet{}}
	if told == nil {
		return v
	}
	for n, s := range told.Nodes {
		if v.made[s] == nil {
			set := before.made[s]
			if set == nil {
				set = &itemSet{}
			}
			fresh := set.items == nil
			for _, i := range s.Items {
				x := before.items[i]
				if x == nil {
					x = v.items[i]
				}
				if x == nil {
					x = newItem(*i)
				}
				if v.items[i] = x; fresh {
					set.items = append(set.items, x)
				}
			}
			v.made[s] = set
		}
		v.sets[n] = v.made[s]
	}
	return v
}

func (v services) of(n protocol.NodeNumber) *itemSet {
	if s := v.sets[n]; s != nil {
		return s
	}
	return noItems
}

// same reports whether all nodes are told the same.
func (v services) same(w services) bool { return v.told == w.told || maps.Equal(v.sets, w.sets) }

// itemSet is items that nodes are told together, by name. Its items are never changed once it is made.
type itemSet struct {
	items []*item

	mu     sync.Mutex
	deltas []itemDelta // from those that agents hold
}

// noItems is of nodes that are told of none.
var noItems = &itemSet{}

// itemDelta is what differs between two sets.
type itemDelta struct {
	from    weak.Pointer[itemSet] // or each would keep all before it
	changed []*item
	removed []protocol.ItemKey
}

// since is what differs in s from held. The last ones are kept, as those of rows are.
func (s *itemSet) since(held *itemSet) (d itemDelta) {
	if s == held {
		return d
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.from = weak.Make(held)
	for _, x := range s.deltas {
		if x.from == d.from {
			return x
		}
	}
	olds, news := held.items, s.items
	for len(olds) > 0 || len(news) > 0 {
		switch {
		case len(news) == 0 || len(olds) > 0 && olds[0].Name < news[0].Name:
			d.removed, olds = append(d.removed, olds[0].Key()), olds[1:]
		case len(olds) == 0 || news[0].Name < olds[0].Name:
			d.changed, news = append(d.changed, news[0]), news[1:]
		default:
			if olds[0] != news[0] {
				d.changed = append(d.changed, news[0])
			}
			olds, news = olds[1:], news[1:]
		}
	}
	if s.deltas = append(s.deltas, d); len(s.deltas) > keptDeltas {
		s.deltas = s.deltas[1:]
	}
	return d
}

// ServiceTold is which transaction's service node n is told by these netmaps; false: none of that name.
func (v *Netmaps) ServiceTold(n protocol.NodeNumber, name string) (generation uint64, told bool) {
	l := v.services.of(n).items
	i, told := slices.BinarySearchFunc(l, name, func(x *item, name string) int { return strings.Compare(x.Name, name) })
	if !told {
		return 0, false
	}
	return l[i].Generation, true
}
