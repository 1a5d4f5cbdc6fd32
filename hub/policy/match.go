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
	realm  string
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
	realms   *Realms
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
	m.realms = NewRealms(m.in.Segments, m.in.Policies)
	m.doubts = append(m.doubts, m.realms.doubts...)
	for _, n := range m.in.Nodes {
		in, doubt := m.realms.place(n.Site, n.Labels)
		if doubt[0] != "" {
			m.doubts = append(m.doubts, fmt.Sprintf("node %s is in segments %s and %s by its labels", n.Name, doubt[0], doubt[1]))
		}
		m.segments[n.Number] = in
	}
}

// realm is that of a node.
func (m *matcher) realm(n *Node) string { return m.realms.Of(m.segments[n.Number]) }

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

// pieces are by prefix, one of each realm that has it.
type pieces map[netip.Prefix][]*piece

func (l pieces) add(p *piece) { l[p.prefix] = append(l[p.prefix], p) }

func (l pieces) of(p netip.Prefix, realm string) *piece {
	for _, q := range l[p] {
		if q.realm == realm {
			return q
		}
	}
	return nil
}

// units are the pieces of what nodes have, by prefix and realm: their own addresses, what they carry, and of that the
// ranges and pods that rules mention.
func (m *matcher) units() []*piece {
	all := pieces{}
	for i := range m.in.Nodes {
		n := &m.in.Nodes[i]
		realm := m.realm(n)
		for _, p := range n.Own {
			all.add(&piece{prefix: p, realm: realm, at: []*Node{n}, own: true})
		}
		for _, p := range n.Carries {
			switch had := all.of(p, realm); {
			case had == nil:
				all.add(&piece{prefix: p, realm: realm, at: []*Node{n}})
			case !had.own:
				had.at = append(had.at, n)
			}
		}
	}
	carried := map[int]bool{} // lengths
	for p := range all {
		carried[p.Bits()] = true
	}
	around := func(p netip.Prefix) (out []*piece) { // the longest around p that is carried, of each realm
		for bits := p.Bits() - 1; bits >= 0; bits-- {
			if !carried[bits] {
				continue
			}
			for _, q := range all[netip.PrefixFrom(p.Addr(), bits).Masked()] {
				if !slices.ContainsFunc(out, func(o *piece) bool { return o.realm == q.realm }) {
					out = append(out, q)
				}
			}
		}
		return out
	}
	slices.SortFunc(m.cidrs, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() }) // around is a piece by then
	for _, c := range m.cidrs {
		for _, q := range around(c) {
			if all.of(c, q.realm) == nil {
				all.add(&piece{prefix: c, realm: q.realm, at: q.at, own: q.own})
				carried[c.Bits()] = true
			}
		}
	}
	if m.pods {
		m.addPods(all, around)
	}
	out := make([]*piece, 0, len(all))
	for _, l := range all {
		out = append(out, l...)
	}
	slices.SortFunc(out, func(a, b *piece) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), cmp.Compare(a.realm, b.realm))
	})
	return out
}
