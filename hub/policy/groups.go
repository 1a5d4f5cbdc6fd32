package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"causeway/protocol"
)

// Groups are nodes by the classes of all that they have. Two nodes may talk if anything is open between any
// class of one and any of the other: what else passes between them is judged where it arrives.
type Groups struct {
	// Nodes is the group of each node that has an address, from 0.
	Nodes map[protocol.NodeNumber]int
	talk  []bitset
}

// NewGroups returns n groups, of which those may talk of which talk says so.
func NewGroups(nodes map[protocol.NodeNumber]int, n int, talk func(a, b int) bool) *Groups {
	g := &Groups{Nodes: nodes}
	for a := range n {
		row := newBits(n)
		for b := range n {
			if talk(a, b) || talk(b, a) {
				row.set(b)
			}
		}
		g.talk = append(g.talk, row)
	}
	return g
}

// Len is how many groups there are.
func (g *Groups) Len() int { return len(g.talk) }

// Talk reports whether nodes of two groups may talk; it is the same both ways.
func (g *Groups) Talk(a, b int) bool { return g.talk[a].has(b) }

// groups works out the groups. Nothing of e is Open.
func (e *Enforced) groups() *Groups {
	c := e.Compiled
	has := map[protocol.NodeNumber][]int{} // places in Classes
	place := make(map[ClassID]int, len(c.Classes))
	for i, k := range c.Classes {
		place[k.ID] = i
	}
	for _, u := range c.Units {
		for _, n := range u.At {
			has[n] = append(has[n], place[u.Class])
		}
	}
	g := &Groups{Nodes: make(map[protocol.NodeNumber]int, len(has))}
	byKey := map[string]int{}
	var of []bitset // classes of a group
	for _, n := range slices.Sorted(maps.Keys(has)) {
		l := has[n]
		slices.Sort(l)
		l = slices.Compact(l)
		var key strings.Builder
		for _, i := range l {
			key.WriteString(strconv.Itoa(i) + " ")
		}
		i, ok := byKey[key.String()]
		if !ok {
			i = len(of)
			byKey[key.String()] = i
			b := newBits(len(c.Classes))
			for _, k := range l {
				b.set(k)
			}
			of = append(of, b)
		}
		g.Nodes[n] = i
	}
	with := make([][]int, len(c.Classes)) // groups by class
	for j, b := range of {
		for k := range b.both(b) {
			with[k] = append(with[k], j)
		}
	}
	reach := e.reach()
	for _, a := range of {
		near := newBits(len(c.Classes)) // all that a may talk to
		for i := range a.both(a) {
			near.add(reach[i])
		}
		row := newBits(len(of))
		for k := range near.both(near) {
			for _, j := range with[k] {
				row.set(j)
			}
		}
		g.talk = append(g.talk, row)
	}
	return g
}

// reach is for each class, by its place, the places of those between which and it anything is open.
func (e *Enforced) reach() []bitset {
	n := len(e.Classes)
	segments := map[string]bitset{}
	to := make([]bitset, len(e.rules))
	for i := range e.rules {
		to[i] = newBits(n)
	}
	for i, k := range e.Classes {
		if segments[k.Segment] == nil {
			segments[k.Segment] = newBits(n)
		}
		segments[k.Segment].set(i)
		for r := range k.to.both(k.to) {
			to[r].set(i)
		}
	}
	out := make([]bitset, n)
	for i := range out {
		out[i] = newBits(n)
	}
	for i, k := range e.Classes {
		near := newBits(n)
		for r := range k.from.both(k.from) {
			open := to[r]
			if early := e.row(r, k); early != nil && e.Stage == Closing { // who is to receive later is a peer by then
				open = newBits(n)
				for _, p := range *early {
					if len(p.ports) > 0 {
						open.add(p.to)
					}
				}
			}
			for s, members := range segments {
				if e.rules[r].joins(k.Segment, s) {
					near.addBoth(open, members)
				}
			}
		}
		out[i].add(near)
		for j := range near.both(near) {
			out[j].set(i)
		}
	}
	return out
}
