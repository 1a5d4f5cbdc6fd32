package service

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"

	"causeway/protocol"
)

// pair is a label.
type pair struct{ key, value string }

// Table works out all services, and keeps what it worked out. One goroutine alone uses it.
type Table struct {
	world      *World
	declared   map[string]*Declared
	results    map[string]*Result
	containers map[protocol.NodeNumber][]Container

	// A selector is found by one of its labels: the one that the fewest others are found by.
	users map[pair]map[string]int // names of services, and how many of their selectors are found by it
	pairs map[string][]pair       // of services
	by    map[pair]map[protocol.NodeNumber][]*Container
	fresh map[pair]bool // of by, not made yet

	dirty map[string]bool // services to be worked out anew
	all   bool            // all are
	moved bool            // who is told what may be another
	told  *Told
}

// NewTable returns one without services, in a world without nodes.
func NewTable() *Table {
	return &Table{world: NewWorld(nil, func(s string) string { return s }, func(string) bool { return false }), declared: map[string]*Declared{}, results: map[string]*Result{},
		containers: map[protocol.NodeNumber][]Container{}, users: map[pair]map[string]int{}, pairs: map[string][]pair{}, by: map[pair]map[protocol.NodeNumber][]*Container{},
		fresh: map[pair]bool{}, dirty: map[string]bool{}, told: &Told{Services: map[string]*Result{}}}
}

// Len is how many services there are.
func (t *Table) Len() int { return len(t.declared) }

// Names are those of the services.
func (t *Table) Names() iter.Seq[string] { return maps.Keys(t.declared) }

// Has reports whether a service is there as it was declared by a transaction.
func (t *Table) Has(name string, generation uint64) bool {
	d := t.declared[name]
	return d != nil && d.Generation == generation
}

// Put declares a service, in place of what it was. It is normal.
func (t *Table) Put(d Declared) {
	had := t.declared[d.Name]
	t.declared[d.Name], t.dirty[d.Name] = &d, true
	if had != nil && slices.EqualFunc(had.Backends, d.Backends, func(a, b protocol.ServiceBackend) bool { return maps.Equal(a.Selector, b.Selector) }) {
		return
	}
	t.leave(d.Name)
	for _, b := range d.Backends {
		if len(b.Selector) == 0 {
			continue
		}
		var best pair
		for i, k := range slices.Sorted(maps.Keys(b.Selector)) {
			if p := (pair{k, b.Selector[k]}); i == 0 || len(t.users[p]) < len(t.users[best]) {
				best = p
			}
		}
		if t.users[best] == nil {
			t.users[best], t.fresh[best] = map[string]int{}, true
		}
		t.users[best][d.Name]++
		t.pairs[d.Name] = append(t.pairs[d.Name], best)
	}
}

// Remove takes a service away.
func (t *Table) Remove(name string) {
	t.leave(name)
	delete(t.declared, name)
	delete(t.dirty, name)
	delete(t.results, name)
	t.moved = true
}

// leave forgets by which labels a service is found.
func (t *Table) leave(name string) {
	for _, p := range t.pairs[name] {
		if t.users[p][name]--; t.users[p][name] == 0 {
			delete(t.users[p], name)
		}
		if len(t.users[p]) == 0 {
			delete(t.users, p)
			delete(t.by, p)
			delete(t.fresh, p)
		}
	}
	delete(t.pairs, name)
}

// AsksContainers reports whether a service has a selector.
func (t *Table) AsksContainers() bool { return len(t.users) > 0 }

// SetWorld replaces the nodes. Where nodes alone change that carry nothing, services are worked out anew that name them. Containers of
// nodes that are gone are forgotten.
func (t *Table) SetWorld(w *World) {
	old := t.world
	t.world = w
	for n := range t.containers {
		if w.nodes[n] == nil {
			t.SetContainers(n, nil)
		}
	}
	changed := map[string]bool{} // names of nodes at which nothing is but themselves
	plain := old.split == w.split
	for _, x := range [][2]*World{{old, w}, {w, old}} {
		for number, n := range x[0].nodes {
			if o := x[1].nodes[number]; o == nil || !o.same(n) || x[0].realm[n] != x[1].realm[o] {
				changed[n.Name] = true
				plain = plain && len(n.Carries) == 0 && len(t.containers[number]) == 0
			}
		}
	}
	for _, d := range t.declared {
		segment := w.segment(d)
		plain = plain && old.realmOf(segment) == w.realmOf(segment)
	}
	t.all, t.moved = t.all || !plain, t.moved || len(changed) > 0 || !plain
	for name, d := range t.declared {
		if len(changed) > 0 && slices.ContainsFunc(d.Backends, func(b protocol.ServiceBackend) bool { return b.Node != "" && changed[b.Node] }) {
			t.dirty[name] = true
		}
	}
}

// ForgetContainers takes those of all nodes away.
func (t *Table) ForgetContainers() {
	for n := range t.containers {
		t.SetContainers(n, nil)
	}
}

// SetContainers replaces those of a node, which are in order.
func (t *Table) SetContainers(n protocol.NodeNumber, l []Container) {
	had := t.containers[n]
	if l == nil {
		delete(t.containers, n)
	} else {
		t.containers[n] = l
	}
	for c := range differing(had, l) {
		for k, v := range c.Labels {
			p := pair{k, v}
			for name := range t.users[p] {
				if !t.dirty[name] && slices.ContainsFunc(t.declared[name].Backends, func(b protocol.ServiceBackend) bool { return len(b.Selector) > 0 && c.has(b.Selector) }) {
					t.dirty[name] = true
				}
			}
		}
	}
	for i := range had { // the containers lie elsewhere by now
		for k, v := range had[i].Labels {
			if by := t.by[pair{k, v}]; by != nil {
				delete(by, n)
			}
		}
	}
	for i := range l {
		for k, v := range l[i].Labels {
			if by := t.by[pair{k, v}]; by != nil {
				by[n] = append(by[n], &l[i])
			}
		}
	}
}

// differing yields the containers that are not the same in both lists, which are in order.
func differing(a, b []Container) iter.Seq[*Container] {
	return func(yield func(*Container) bool) {
		for len(a) > 0 || len(b) > 0 {
			order := 0
			switch {
			case len(b) == 0:
				order = -1
			case len(a) == 0:
				order = 1
			default:
				order = CompareContainers(a[0], b[0])
			}
			same := order == 0 && reflect.DeepEqual(a[0], b[0])
			if order <= 0 {
				if !same && !yield(&a[0]) {
					return
				}
				a = a[1:]
			}
			if order >= 0 {
				if !same && !yield(&b[0]) {
					return
				}
				b = b[1:]
			}
		}
	}
}

// having yields containers among which are all that have these labels, by node.
func (t *Table) having(labels map[string]string) iter.Seq2[protocol.NodeNumber, []*Container] {
	var best map[protocol.NodeNumber][]*Container
	found := false
	for k, v := range labels {
		if l, known := t.by[pair{k, v}]; known && (!found || len(l) < len(best)) {
			best, found = l, true
		}
	}
	return maps.All(best)
}

// Settle works out what changed. The same pointer again says that nothing did.
func (t *Table) Settle() *Told {
	t.indexFresh()
	if t.all {
		for name := range t.declared {
			t.dirty[name] = true
		}
	}
	changed := t.moved
	for name := range t.dirty {
		had := t.results[name]
		r := t.work(t.declared[name], had)
		t.results[name] = r
		changed = changed || r != had
	}
	t.dirty, t.all, t.moved = map[string]bool{}, false, false
	if changed {
		t.tell()
	}
	return t.told
}

// indexFresh goes over all containers once, for all labels that are asked for the first time.
func (t *Table) indexFresh() {
	if len(t.fresh) == 0 {
		return
	}
	for p := range t.fresh {
		t.by[p] = map[protocol.NodeNumber][]*Container{}
	}
	for n, l := range t.containers {
		for i := range l {
			for k, v := range l[i].Labels {
				if p := (pair{k, v}); t.fresh[p] {
					t.by[p][n] = append(t.by[p][n], &l[i])
				}
			}
		}
	}
	t.fresh = map[pair]bool{}
}

// tell makes what nodes are told.
func (t *Table) tell() {
	next := &Told{Nodes: map[protocol.NodeNumber]*Set{}, Services: maps.Clone(t.results), LeftOut: map[string]bool{}, sets: map[string]*Set{}}
	of := map[string][]*Result{} // by segment of the clients
	extra := map[protocol.NodeNumber][]*Result{}
	for _, r := range t.results {
		of[r.at] = append(of[r.at], r)
		for _, n := range r.extra {
			extra[n] = append(extra[n], r)
		}
	}
	for segment, nodes := range t.world.clients {
		for _, n := range nodes {
			key := fmt.Sprintf("%q", segment)
			l := extra[n]
			if len(l) > 0 {
				slices.SortFunc(l, byName)
				var b strings.Builder
				for _, r := range l {
					b.WriteString("\n" + r.Name)
				}
				key += b.String()
			}
			s := next.sets[key]
			if s == nil {
				s = t.set(key, slices.Concat(of[segment], l), next.LeftOut)
				next.sets[key] = s
			}
			if len(s.Items) > 0 {
				next.Nodes[n] = s
			}
		}
	}
	t.told = next
}

func byName(a, b *Result) int { return cmp.Compare(a.Name, b.Name) }

// set is the set of services, that of before if it is the same.
func (t *Table) set(key string, l []*Result, leftOut map[string]bool) *Set {
	size := 0
	for _, r := range l {
		size += len(r.item.Body)
	}
	if len(l) > MaxItems || size > MaxBytes {
		slices.SortFunc(l, func(a, b *Result) int { return cmp.Or(a.Created.Compare(b.Created), byName(a, b)) })
		n, room := 0, MaxBytes
		for _, r := range l {
			if n == MaxItems || room < len(r.item.Body) {
				leftOut[r.Name] = true
				continue
			}
			room -= len(r.item.Body)
			l[n], n = r, n+1
		}
		l = l[:n]
	}
	slices.SortFunc(l, byName)
	items := make([]*protocol.Item, len(l))
	for i, r := range l {
		items[i] = r.item
	}
	if had := t.told.sets[key]; had != nil && slices.Equal(had.Items, items) {
		return had
	}
	return &Set{items}
}
