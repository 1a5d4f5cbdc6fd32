package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"causeway/protocol"
)

// piece is a prefix whose addresses rules cannot tell apart, before it has a class.
type piece struct {
	prefix netip.Prefix
	at     []*Node // who has or carries it
	own    bool    // a node's own address
	pod    map[string]string
	around *piece // of a pod: what its address is in
}

// matcher finds which sides of rules mean what.
type matcher struct {
	in       Input
	sides    []*side // by text
	segments map[protocol.NodeNumber]string
	doubts   []string
	cidrs    []netip.Prefix // that sides mention
	pods     bool           // that sides mention

	byNode map[string][]*side // sides that name a node
	bySite map[string][]*side // of the others, those that name a site
	rest   []*side
	at     map[*Node][]*side // sides that may mean what is at a node, by text
}

func newMatcher(in Input, rules []*Rule) *matcher {
	m := &matcher{in: in, segments: map[protocol.NodeNumber]string{}, byNode: map[string][]*side{}, bySite: map[string][]*side{}, at: map[*Node][]*side{}}
	seen := map[string]*side{}
	for _, r := range rules {
		for _, at := range []**side{&r.from, &r.to} {
			s := *at
			if had := seen[s.text]; had != nil {
				*at = had
				continue
			}
			seen[s.text] = s
			m.sides = append(m.sides, s)
		}
	}
	slices.SortFunc(m.sides, func(a, b *side) int { return cmp.Compare(a.text, b.text) })
	cut := map[netip.Prefix]bool{}
	for _, s := range m.sides {
		switch {
		case s.Node != "":
			m.byNode[s.Node] = append(m.byNode[s.Node], s)
		case s.Site != "":
			m.bySite[s.Site] = append(m.bySite[s.Site], s)
		default:
			m.rest = append(m.rest, s)
		}
		if s.CIDR.IsValid() && !cut[s.CIDR] {
			cut[s.CIDR] = true
			m.cidrs = append(m.cidrs, s.CIDR)
		}
		m.pods = m.pods || len(s.Pods) > 0
	}
	m.place()
	return m
}

// place finds the segment of each node.
func (m *matcher) place() {
	bySite := map[string]string{}
	for _, s := range m.in.Segments {
		for _, site := range s.Sites {
			if had, ok := bySite[site]; ok && had != s.Name {
				m.doubts = append(m.doubts, fmt.Sprintf("site %s is in segments %s and %s", site, had, s.Name))
				bySite[site] = torn
				continue
			}
			bySite[site] = s.Name
		}
	}
	for _, n := range m.in.Nodes {
		in, labels := bySite[n.Site], ""
		for _, s := range m.in.Segments {
			if len(s.Labels) == 0 || !hasAll(n.Labels, s.Labels) {
				continue
			}
			if labels != "" {
				m.doubts = append(m.doubts, fmt.Sprintf("node %s is in segments %s and %s by its labels", n.Name, labels, s.Name))
				in, labels = torn, torn
				break
			}
			in, labels = s.Name, s.Name
		}
		m.segments[n.Number] = in
	}
}

// sidesAt are the sides that may mean what is at a node, by text.
func (m *matcher) sidesAt(n *Node) []*side {
	if l, ok := m.at[n]; ok {
		return l
	}
	var l []*side
	for _, some := range [][]*side{m.byNode[n.Name], m.bySite[n.Site], m.rest} {
		for _, s := range some {
			if s.at(n, m.segments[n.Number]) {
				l = append(l, s)
			}
		}
	}
	slices.SortFunc(l, func(a, b *side) int { return cmp.Compare(a.text, b.text) })
	m.at[n] = l
	return l
}

// match finds the segment of a piece and the sides that mean it, by text. What several nodes carry is meant by
// what means it at each of them: it stays what it is when another of them takes it over.
func (m *matcher) match(p *piece) (segment string, sides []*side) {
	segment = m.segments[p.at[0].Number]
	for _, n := range p.at[1:] {
		if m.segments[n.Number] != segment {
			m.doubts = append(m.doubts, fmt.Sprintf("%s is carried by nodes of two segments, %s and %s", p.prefix, p.at[0].Name, n.Name))
			segment = torn
		}
	}
	for _, s := range m.sidesAt(p.at[0]) {
		if !s.means(p.prefix, p.own, p.pod) {
			continue
		}
		all := true
		for _, n := range p.at[1:] {
			all = all && s.at(n, m.segments[n.Number])
		}
		if all {
			sides = append(sides, s)
		}
	}
	return segment, sides
}

// units are the pieces of what nodes have, by prefix: their own addresses, what they carry, and of that the
// ranges and pods that rules mention.
func (m *matcher) units() []*piece {
	pieces := map[netip.Prefix]*piece{}
	for i := range m.in.Nodes {
		n := &m.in.Nodes[i]
		for _, p := range n.Own {
			pieces[p] = &piece{prefix: p, at: []*Node{n}, own: true}
		}
		for _, p := range n.Carries {
			switch had := pieces[p]; {
			case had == nil:
				pieces[p] = &piece{prefix: p, at: []*Node{n}}
			case !had.own:
				had.at = append(had.at, n)
			}
		}
	}
	carried := map[int]bool{} // lengths
	for p := range pieces {
		carried[p.Bits()] = true
	}
	around := func(p netip.Prefix) *piece { // the longest around p that is carried
		for bits := p.Bits() - 1; bits >= 0; bits-- {
			if !carried[bits] {
				continue
			}
			if q := pieces[netip.PrefixFrom(p.Addr(), bits).Masked()]; q != nil {
				return q
			}
		}
		return nil
	}
	slices.SortFunc(m.cidrs, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() }) // around is a piece by then
	for _, c := range m.cidrs {
		if pieces[c] != nil {
			continue
		}
		if q := around(c); q != nil {
			pieces[c] = &piece{prefix: c, at: q.at, own: q.own}
			carried[c.Bits()] = true
		}
	}
	if m.pods {
		m.addPods(pieces, around)
	}
	out := make([]*piece, 0, len(pieces))
	for _, p := range pieces {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *piece) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	return out
}
