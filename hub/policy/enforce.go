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

// insideRule is the name under which a segment opens what is inside it, where there is no policy.
const insideRule = "inside"

// Enforce works out what nodes are told; nil: nothing is declared.
func (c *Compiled) Enforce() *Enforcement {
	if c.Open {
		return nil
	}
	e := &Enforcement{Groups: c.Groups(), Classes: map[protocol.NodeNumber][]protocol.AddressClass{}, bad: map[protocol.ItemKey]error{}, Realm: make(map[protocol.NodeNumber]string, len(c.segments))}
	for n := range c.segments {
		e.Realm[n] = c.RealmOf(n)
	}
	has := make([][]*Class, e.Len()) // classes of each group
	for _, u := range c.Units {
		for _, n := range u.At {
			e.Classes[n] = append(e.Classes[n], protocol.AddressClass{Prefix: u.Prefix, Class: uint32(u.Class)})
			if g, k := e.Nodes[n], c.byID[u.Class]; !slices.Contains(has[g], k) {
				has[g] = append(has[g], k)
			}
		}
	}
	sides := c.sides()
	for _, local := range has {
		slices.SortFunc(local, func(a, b *Class) int { return int(a.ID) - int(b.ID) })
		e.Items = append(e.Items, c.items(local, sides, e.bad))
	}
	return e
}

// sides are the classes that rules mean, of those in force, by segment.
type sides struct{ from, to []map[string][]*Class }

func (c *Compiled) sides() sides {
	s := sides{make([]map[string][]*Class, len(c.rules)), make([]map[string][]*Class, len(c.rules))}
	add := func(at []map[string][]*Class, r int, k *Class) {
		if at[r] == nil {
			at[r] = map[string][]*Class{}
		}
		at[r][k.Segment] = append(at[r][k.Segment], k)
	}
	for _, k := range c.Classes {
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
func (c *Compiled) items(local []*Class, of sides, bad map[protocol.ItemKey]error) (out []protocol.Item) {
	rules := map[string][]protocol.Opening{} // by policy
	mine := newBits(len(c.rules))
	for _, k := range local {
		mine.add(k.from)
		mine.add(k.to)
	}
	for i := range mine.both(mine) {
		r := c.rules[i]
		policy, name := r.split()
		add := func(from, to []*Class) {
			if len(from) > 0 && len(to) > 0 {
				rules[policy] = append(rules[policy], protocol.Opening{Rule: name, From: ids(from), To: ids(to), Allow: texts(r.Allow)})
			}
		}
		for _, a := range slices.Sorted(maps.Keys(of.from[i])) {
			for _, b := range slices.Sorted(maps.Keys(of.to[i])) {
				if a == torn || b == torn || !r.joins(a, b) {
					continue
				}
				// What begins here, and of what comes here that which did not begin here.
				from, to := of.from[i][a], of.to[i][b]
				here := both(from, local)
				add(here, to)
				add(without(from, here), both(to, local))
			}
		}
	}
	for _, p := range c.declared.Policies {
		out = append(out, item(protocol.ItemPolicy, p.Name, p.Generation, rules[p.Name], bad))
	}
	for _, s := range c.declared.Segments {
		inside := slices.DeleteFunc(slices.Clone(local), func(k *Class) bool { return k.Segment != s.Name })
		if len(inside) > 0 {
			out = append(out, item(protocol.ItemSegment, s.Name, s.Generation, c.inside(s.Name, inside), bad))
		}
	}
	if outside := slices.DeleteFunc(slices.Clone(local), func(k *Class) bool { return k.Segment != Unassigned }); len(outside) > 0 && !c.policies {
		out = append(out, item(protocol.ItemSegment, UnassignedItem, 0, c.inside(Unassigned, outside), bad))
	}
	slices.SortFunc(out, protocol.CompareItems)
	return out
}

// UnassignedItem is the name of the item of nodes that are in no segment, which no segment may have.
const UnassignedItem = "unassigned"

// inside is what a segment opens by itself to and from some classes in it.
func (c *Compiled) inside(segment string, local []*Class) []protocol.Opening {
	if c.policies {
		return nil
	}
	all := slices.DeleteFunc(slices.Clone(c.Classes), func(k *Class) bool { return k.Segment != segment })
	return []protocol.Opening{{Rule: insideRule, From: ids(local), To: ids(all), Allow: []string{"any"}}, {Rule: insideRule, From: ids(all), To: ids(local), Allow: []string{"any"}}}
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
