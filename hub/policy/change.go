package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"causeway/protocol"
)

// Change compares what is in force with what would be.
type Change struct {
	Before *Enforced
	After  *Compiled
	// Kinds are sets of addresses that neither of the two tells apart, in the order of their first prefixes.
	Kinds []Kind

	was map[ClassID][]ClassID
}

// Kind is a set of addresses which are of one class before and of one after.
type Kind struct {
	// Before and After are the classes; 0: nobody has these addresses, or nothing is declared.
	Before, After ClassID
	First         netip.Prefix          // one of them
	Prefixes      int                   // how many there are
	Segment       string                // they are in, afterwards if anybody has them then
	Sides         []string              // of rules that mean them, before or after, sorted
	Sites         []string              // of the nodes that have or carry some, sorted
	At            []protocol.NodeNumber // these, by number
	Node          string                // that node, if it is one

	only   protocol.NodeNumber // its number; 0: it is not one
	family [2]bool             // there are some of IPv4, of IPv6
}

// String says which addresses these are, for a person.
func (k Kind) String() string {
	const shown = 3
	out := k.First.String()
	if k.Prefixes > 1 {
		out += fmt.Sprintf(" and %d more", k.Prefixes-1)
	}
	switch {
	case k.Node != "":
		out += fmt.Sprintf(" at %s of %s", k.Node, strings.Join(k.Sites, ", "))
	case len(k.Sites) <= shown:
		out += " at " + strings.Join(k.Sites, ", ")
	default:
		out += fmt.Sprintf(" at %d sites", len(k.Sites))
	}
	switch k.Segment {
	case Unassigned:
	case torn:
		out += ", in two segments"
	default:
		out += ", segment " + k.Segment
	}
	return out
}

// NewChange compares what is in force with a compilation.
func NewChange(before *Enforced, after *Compiled) *Change {
	c := &Change{Before: before, After: after, was: map[ClassID][]ClassID{}}
	prefixes := make([]netip.Prefix, 0, len(before.Units)+len(after.Units))
	for _, units := range [][]Unit{before.Units, after.Units} {
		for _, u := range units {
			prefixes = append(prefixes, u.Prefix)
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	now, then := moves(before.Compiled, after), moves(after, before.Compiled)
	place := map[[2]ClassID]int{}
	var nodes []map[protocol.NodeNumber]bool // of each kind
	add := func(p netip.Prefix, a, b Unit) {
		id := [2]ClassID{a.Class, b.Class}
		i, ok := place[id]
		if !ok {
			i, place[id] = len(c.Kinds), len(c.Kinds)
			c.Kinds = append(c.Kinds, Kind{Before: a.Class, After: b.Class, First: p})
			c.was[b.Class] = append(c.was[b.Class], a.Class)
			nodes = append(nodes, map[protocol.NodeNumber]bool{})
		}
		k := &c.Kinds[i]
		k.Prefixes++
		k.family[family(p.Addr())] = true
		for _, n := range slices.Concat(a.At, b.At) {
			nodes[i][n] = true
		}
	}
	for _, p := range slices.Compact(prefixes) {
		// Who meets an address is in one realm before, and in one after.
		old, is := before.unitsAround(p), after.unitsAround(p)
		for _, a := range old {
			found := false
			for _, b := range is {
				if slices.Contains(now[a.Realm], b.Realm) {
					found = true
					add(p, a, b)
				}
			}
			if !found {
				add(p, a, Unit{})
			}
		}
		for _, b := range is {
			if !slices.ContainsFunc(old, func(a Unit) bool { return slices.Contains(then[b.Realm], a.Realm) }) {
				add(p, Unit{}, b)
			}
		}
	}
	known := before.byNumber()
	maps.Copy(known, after.byNumber())
	for i := range c.Kinds {
		c.describe(&c.Kinds[i], nodes[i], known)
	}
	return c
}

// describe says who a kind is.
func (c *Change) describe(k *Kind, nodes map[protocol.NodeNumber]bool, known map[protocol.NodeNumber]*Node) {
	for _, x := range []*Class{c.Before.byID[k.Before], c.After.byID[k.After]} {
		if x != nil {
			k.Segment = x.Segment
			k.Sides = append(k.Sides, x.Sides...)
		}
	}
	slices.Sort(k.Sides)
	k.Sides, k.At = slices.Compact(k.Sides), slices.Sorted(maps.Keys(nodes))
	for _, n := range k.At {
		x := known[n]
		if len(nodes) == 1 {
			k.Node, k.only = x.Name, n
		}
		if !slices.Contains(k.Sites, x.Site) {
			k.Sites = append(k.Sites, x.Site)
		}
	}
	slices.Sort(k.Sites)
}

// Was lists the classes of before that addresses of a class of after were of.
func (c *Change) Was(after ClassID) []ClassID { return c.was[after] }

// Known reports whether a node has or carries an address, before or after.
func (c *Change) Known(n protocol.NodeNumber, a netip.Addr) bool {
	was, _ := c.Before.UnitAt(n, a)
	is, _ := c.After.UnitAt(n, a)
	return slices.Contains(was.At, n) || slices.Contains(is.At, n)
}

// byNumber are the nodes.
func (c *Compiled) byNumber() map[protocol.NodeNumber]*Node {
	out := make(map[protocol.NodeNumber]*Node, len(c.names))
	for _, n := range c.names {
		out[n.Number] = n
	}
	return out
}

// moves are the realms in which nodes of each realm of a are in b.
func moves(a, b *Compiled) map[string][]string {
	out := map[string][]string{}
	for _, nodes := range [][]Node{a.declared.Nodes, b.declared.Nodes} {
		for _, n := range nodes {
			from, to := a.RealmOf(n.Number), b.RealmOf(n.Number)
			if !slices.Contains(out[from], to) {
				out[from] = append(out[from], to)
			}
		}
	}
	return out
}

// unitsAround are the units, one of each realm that has them, of the addresses in p that are in no longer unit inside it.
func (c *Compiled) unitsAround(p netip.Prefix) (out []Unit) {
	for _, bits := range c.lengths[family(p.Addr())] {
		if bits > p.Bits() {
			continue
		}
		out = c.eachRealm(out, netip.PrefixFrom(p.Addr(), bits).Masked())
		if len(out) == c.spaces {
			break
		}
	}
	return out
}

// Stage is how far a change is.
type Stage int

// The stages of a change. Each opens what the one before does.
const (
	// Closing opens nothing that was closed.
	Closing Stage = iota + 1
	// Receiving opens what is new where it arrives, and not yet where it begins.
	Receiving
	// Whole opens all.
	Whole
)

func (s Stage) String() string { return [...]string{"", "closing", "receiving", "whole"}[s] }

// Enforced is a compilation as it is in force: before the stage Whole without what is late of it.
type Enforced struct {
	*Compiled
	Stage Stage

	early early // what is not late; nil: nothing is

	once sync.Once // of told
	told *Enforcement
}

// All is all of a compilation in force.
func (c *Compiled) All() *Enforced {
	c.once.all.Do(func() { c.whole = &Enforced{Compiled: c, Stage: Whole} })
	return c.whole
}

// maxKinds bounds what is compared: where a change tells more kinds of addresses apart it is one of a single stage.
const maxKinds = 2 * MaxClasses

// Stages are what is to be in force one after the other until all of After is: what opens comes last, and where it begins
// after where it arrives. Where nothing was declared, or nothing is any more, all changes at once.
func (c *Change) Stages() []*Enforced {
	all := c.After.All()
	if c.Before.Open || c.After.Open || len(c.Kinds) > maxKinds {
		return []*Enforced{all}
	}
	e := c.early()
	if e == nil {
		return []*Enforced{all}
	}
	var out []*Enforced
	if c.closes() {
		out = append(out, &Enforced{Compiled: c.After, Stage: Closing, early: e})
	}
	return append(out, &Enforced{Compiled: c.After, Stage: Receiving, early: e}, all)
}

// closes reports whether anything may be closed that is open. In doubt it may.
func (c *Change) closes() bool {
	before, after := c.Before.Compiled, c.After
	bySides := map[string][]int{}
	for i, r := range after.rules {
		bySides[r.sides()] = append(bySides[r.sides()], i)
	}
	cover := make([]int, len(before.rules)) // the rule of after that opens as much; -1: none
	for i, r := range before.rules {
		cover[i] = -1
		if !after.policies && len(r.Across) == 0 {
			cover[i] = 0
			continue
		}
		for _, j := range bySides[r.sides()] {
			if covers(after.rules[j].Allow, r.Allow) {
				cover[i] = j
			}
		}
	}
	covered := func(was, is bitset) bool {
		for i := range was.both(was) {
			if cover[i] < 0 || !is.has(cover[i]) {
				return false
			}
		}
		return true
	}
	for _, k := range c.Kinds {
		a, b := before.byID[k.Before], after.byID[k.After]
		if a == nil || a.Segment == torn {
			continue // nothing was open
		}
		if b == nil || a.Segment != b.Segment || !covered(a.from, b.from) || !covered(a.to, b.to) {
			return true
		}
	}
	return false
}

// sides is what a rule says but for what it opens.
func (r *Rule) sides() string { return r.From + "\n" + r.To + "\n" + strings.Join(r.Across, "\n") }

// covers reports whether l has all of m.
func covers(l, m []protocol.Ports) bool {
	return !slices.ContainsFunc(m, func(p protocol.Ports) bool {
		return !slices.ContainsFunc(l, func(q protocol.Ports) bool { return q.Has(p) })
	})
}
