package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"causeway/protocol"
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
	now, then := moves(before, after), moves(after, before)
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
