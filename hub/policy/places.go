package policy

import (
	"net/netip"
	"slices"
)

// Place is where an address is.
type Place struct {
	Site   string
	Node   string       // whose own address it is; empty: it is behind nodes of the site
	Prefix netip.Prefix // the address, or the route that it is in

	realm   string
	segment string
	nodes   []*Node // that have or carry it, by number
}

// Places finds where addresses are.
type Places struct {
	of      map[realmPrefix]*Place
	lengths [2][]int          // of prefixes, descending: of IPv4 and IPv6
	realms  map[string]string // of nodes, by name
	all     map[string]bool   // realms
}

type realmPrefix struct {
	realm  string
	prefix netip.Prefix
}

// NewPlaces makes the places of nodes, in the realms of what is declared. They are not changed afterwards.
func NewPlaces(in Input, nodes []Node) *Places {
	p := &Places{of: map[realmPrefix]*Place{}, realms: map[string]string{}, all: map[string]bool{}}
	realms := NewRealms(in.Segments, in.Policies)
	for i := range nodes {
		n := &nodes[i]
		segment := realms.Segment(n.Site, n.Labels)
		realm := realms.Of(segment)
		p.realms[n.Name], p.all[realm] = realm, true
		for _, x := range n.Own {
			p.add(realm, segment, x, n, n.Name)
		}
		for _, x := range n.Carries {
			p.add(realm, segment, x, n, "")
		}
	}
	for v := range p.lengths {
		slices.SortFunc(p.lengths[v], func(a, b int) int { return b - a })
	}
	return p
}

func (p *Places) add(realm, segment string, x netip.Prefix, n *Node, own string) {
	k := realmPrefix{realm, x}
	if old := p.of[k]; old != nil {
		old.nodes = append(old.nodes, n)
		if old.segment != segment {
			old.segment = torn
		}
		return
	}
	p.of[k] = &Place{Site: n.Site, Node: own, Prefix: x, realm: realm, segment: segment, nodes: []*Node{n}}
	v := family(x.Addr())
	if !slices.Contains(p.lengths[v], x.Bits()) {
		p.lengths[v] = append(p.lengths[v], x.Bits())
	}
}

// Of returns the place of an address as a node meets it, by the longest prefix; ok is false if nobody has it. What no
// node of its realm has is where one other alone has it.
func (p *Places) Of(node string, a netip.Addr) (Place, bool) {
	if realm, ok := p.realms[node]; ok {
		if at, ok := p.in(realm, a); ok {
			return at, true
		}
	}
	l := p.each(a)
	if len(l) != 1 {
		return Place{}, false
	}
	return l[0], true
}

func (p *Places) in(realm string, a netip.Addr) (Place, bool) {
	for _, bits := range p.lengths[family(a)] {
		if x, err := a.Prefix(bits); err == nil {
			if at := p.of[realmPrefix{realm, x}]; at != nil {
				return *at, true
			}
		}
	}
	return Place{}, false
}

// each are the places of an address in all realms.
func (p *Places) each(a netip.Addr) (out []Place) {
	for realm := range p.all {
		if at, ok := p.in(realm, a); ok {
			out = append(out, at)
		}
	}
	return out
}

// write is an address as a node meets it, as tests of policies have it.
func (p *Places) write(node string, a netip.Addr) string {
	if at, ok := p.Of(node, a); ok && len(p.each(a)) > 1 {
		return segmentName(at.segment) + "/" + a.String()
	}
	return a.String()
}

// unit is what sides of suggested rules are made of: a node's own addresses, or a route.
func (p Place) unit() string {
	if p.Node != "" {
		return "node " + p.Node
	}
	return routeUnit(p.realm, p.Prefix)
}

func routeUnit(realm string, p netip.Prefix) string { return "route " + p.String() + " of " + realm }
