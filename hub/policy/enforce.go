package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"causeway/protocol"
)

// Enforcement is what follows from what is declared for each node: who its peers are, of which classes its addresses
// are, and what is open to and from them.
type Enforcement struct {
	*Groups
	Classes map[protocol.NodeNumber][]protocol.AddressClass // by prefix
	Items   [][]protocol.Item                               // of each group, by kind and name
	// Realm is the realm of each node that has an address: what one of them carries, nodes of another may too.
	Realm map[protocol.NodeNumber]string

	bad map[protocol.ItemKey]error // what no agent would take
}

// ClassesOf are the classes of what a node has; of nil, none.
func (e *Enforcement) ClassesOf(n protocol.NodeNumber) []protocol.AddressClass {
	if e == nil {
		return nil
	}
	return e.Classes[n]
}

// RealmOf is the realm of a node: nobody talks to one that nothing is known of. Of nil, all are in one.
func (e *Enforcement) RealmOf(n protocol.NodeNumber) string {
	if e == nil {
		return Unassigned
	}
	if r, ok := e.Realm[n]; ok {
		return r
	}
	return nowhere
}

// Check says what no agent would take of what nodes are told.
func (e *Enforcement) Check() error {
	if e == nil {
		return nil
	}
	for g, items := range e.Items {
		for _, i := range items {
			if err := cmp.Or(i.Check(), e.bad[i.Key()]); err != nil {
				for n, of := range e.Nodes {
					if of == g {
						return fmt.Errorf("what node %d would be told is too much: %w; write it with fewer rules, or wider sides", n, err)
					}
				}
			}
		}
	}
	return nil
}

// Enforce works out what nodes are told of all of it; nil: nothing is declared.
func (c *Compiled) Enforce() *Enforcement { return c.All().Enforce() }

// Enforce is what nodes are told at this stage, worked out once; nil: nothing is declared. Nobody changes it.
func (e *Enforced) Enforce() *Enforcement {
	e.once.Do(func() { e.told = e.enforce() })
	return e.told
}

func (e *Enforced) enforce() *Enforcement {
	if e.Open {
		return nil
	}
	out := &Enforcement{Groups: e.groups(), Classes: map[protocol.NodeNumber][]protocol.AddressClass{}, bad: map[protocol.ItemKey]error{}, Realm: make(map[protocol.NodeNumber]string, len(e.segments))}
	for n := range e.segments {
		out.Realm[n] = e.RealmOf(n)
	}
	has := make([][]*Class, out.Len()) // classes of each group
	for _, u := range e.Units {
		for _, n := range u.At {
			out.Classes[n] = append(out.Classes[n], protocol.AddressClass{Prefix: u.Prefix, Class: uint32(u.Class)})
			if g, k := out.Nodes[n], e.byID[u.Class]; !slices.Contains(has[g], k) {
				has[g] = append(has[g], k)
			}
		}
	}
	sides := e.sides()
	for _, local := range has {
		slices.SortFunc(local, func(a, b *Class) int { return int(a.ID) - int(b.ID) })
		out.Items = append(out.Items, e.items(local, sides, out.bad))
	}
	return out
}

// sides are the classes that rules mean, of those in force, by segment.
type sides struct{ from, to []map[string][]*Class }

func (e *Enforced) sides() sides {
	s := sides{make([]map[string][]*Class, len(e.rules)), make([]map[string][]*Class, len(e.rules))}
	add := func(at []map[string][]*Class, r int, k *Class) {
		if at[r] == nil {
			at[r] = map[string][]*Class{}
		}
		at[r][k.Segment] = append(at[r][k.Segment], k)
	}
	for _, k := range e.Classes {
		for r := range k.from.both(k.from) {
			add(s.from, r, k)
		}
		for r := range k.to.both(k.to) {
			add(s.to, r, k)
		}
	}
	return s
}

// items are what a node is told that has some classes.
func (e *Enforced) items(local []*Class, of sides, bad map[protocol.ItemKey]error) (out []protocol.Item) {
	rules := map[string][]protocol.Opening{} // by policy, or by segment where there is none
	mine := newBits(len(e.rules))
	for _, k := range local {
		mine.add(k.from)
		mine.add(k.to)
	}
	for i := range mine.both(mine) {
		r := e.rules[i]
		for _, a := range slices.Sorted(maps.Keys(of.from[i])) {
			for _, b := range slices.Sorted(maps.Keys(of.to[i])) {
				if !r.joins(a, b) {
					continue
				}
				in, name := a, insideRule
				if e.policies {
					in, name = r.split()
				}
				rules[in] = append(rules[in], e.openings(i, name, of.from[i][a], of.to[i][b], local)...)
			}
		}
	}
	for _, p := range e.declared.Policies {
		out = append(out, item(protocol.ItemPolicy, p.Name, p.Generation, rules[p.Name], bad))
	}
	for _, s := range e.declared.Segments {
		if slices.ContainsFunc(local, func(k *Class) bool { return k.Segment == s.Name }) {
			out = append(out, item(protocol.ItemSegment, s.Name, s.Generation, e.inside(rules[s.Name]), bad))
		}
	}
	if !e.policies && slices.ContainsFunc(local, func(k *Class) bool { return k.Segment == Unassigned }) {
		out = append(out, item(protocol.ItemSegment, UnassignedItem, 0, rules[Unassigned], bad))
	}
	slices.SortFunc(out, protocol.CompareItems)
	return out
}

// UnassignedItem is the name of the item of nodes that are in no segment, which no segment may have.
const UnassignedItem = "unassigned"

// inside is what a segment opens by itself: nothing where there is a policy, be it one of the same name.
func (e *Enforced) inside(rules []protocol.Opening) []protocol.Opening {
	if e.policies {
		return nil
	}
	return rules
}

// openings are what a rule opens between classes of two segments, as a node is told that has some of them.
func (e *Enforced) openings(rule int, name string, from, to, local []*Class) (out []protocol.Opening) {
	add := func(from, to []*Class, ports []protocol.Ports, arrives bool) {
		if len(from) > 0 && len(to) > 0 && len(ports) > 0 {
			out = append(out, protocol.Opening{Rule: name, From: ids(from), To: ids(to), Allow: texts(ports), Arrives: arrives})
		}
	}
	allow := e.rules[rule].Allow
	for _, x := range e.alike(rule, from) {
		here, away := both(x.from, local), without(x.from, local)
		if x.row == nil {
			// What begins here, and of what comes here that which did not begin here.
			add(here, to, allow, false)
			add(away, both(to, local), allow, false)
			continue
		}
		for _, p := range *x.row {
			to := slices.DeleteFunc(slices.Clone(to), func(k *Class) bool { return !p.to.has(k.place) })
			add(here, to, p.ports, false)
			if e.Stage == Receiving && !p.all {
				add(x.from, both(to, local), allow, true)
			} else {
				add(away, both(to, local), p.ports, false)
			}
		}
	}
	return out
}

// alike are classes from which the same of a rule is early.
type alike struct {
	row  *row
	from []*Class
}

func (e *Enforced) alike(rule int, from []*Class) (out []alike) {
	if e.early == nil || e.early[rule] == nil {
		return []alike{{nil, from}}
	}
	for _, k := range from {
		r := e.row(rule, k)
		i := slices.IndexFunc(out, func(x alike) bool { return x.row == r })
		if i < 0 {
			i, out = len(out), append(out, alike{row: r})
		}
		out[i].from = append(out[i].from, k)
	}
	return out
}

func item(kind, name string, generation uint64, rules []protocol.Opening, bad map[protocol.ItemKey]error) protocol.Item {
	o := protocol.Openings{Rules: rules}
	b, err := json.Marshal(o)
	if err != nil { // it holds nothing that does not encode
		panic(err)
	}
	i := protocol.Item{Kind: kind, Name: name, Generation: generation, Body: b}
	if err := o.Check(); err != nil {
		bad[i.Key()] = err
	}
	return i
}

func ids(l []*Class) []uint32 {
	out := make([]uint32, len(l))
	for i, k := range l {
		out[i] = uint32(k.ID)
	}
	return out
}

func texts(l []protocol.Ports) []string {
	out := make([]string, len(l))
	for i, p := range l {
		out[i] = p.String()
	}
	return out
}

// both are those of l that are in m, without those that are not.
func both(l, m []*Class) []*Class {
	return slices.DeleteFunc(slices.Clone(l), func(k *Class) bool { return !slices.Contains(m, k) })
}

func without(l, m []*Class) []*Class {
	return slices.DeleteFunc(slices.Clone(l), func(k *Class) bool { return slices.Contains(m, k) })
}
