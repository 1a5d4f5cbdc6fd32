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

	nodes []*Node // that have or carry it, by number
}

// Places finds where addresses are.
type Places struct {
	of      map[netip.Prefix]*Place
	lengths [2][]int // of prefixes, descending: of IPv4 and IPv6
}

// NewPlaces makes the places of nodes. They are not changed afterwards.
func NewPlaces(nodes []Node) *Places {
	p := &Places{of: map[netip.Prefix]*Place{}}
	for i := range nodes {
		n := &nodes[i]
		for _, x := range n.Own {
			p.add(x, n, n.Name)
		}
		for _, x := range n.Carries {
			p.add(x, n, "")
		}
	}
	for v := range p.lengths {
		slices.SortFunc(p.lengths[v], func(a, b int) int { return b - a })
	}
	return p
}

func (p *Places) add(x netip.Prefix, n *Node, own string) {
	if old := p.of[x]; old != nil {
		old.nodes = append(old.nodes, n)
		return
	}
	p.of[x] = &Place{Site: n.Site, Node: own, Prefix: x, nodes: []*Node{n}}
	v := family(x.Addr())
	if !slices.Contains(p.lengths[v], x.Bits()) {
		p.lengths[v] = append(p.lengths[v], x.Bits())
	}
}

// Of returns the place of an address, by the longest prefix; ok is false if nobody has it.
func (p *Places) Of(a netip.Addr) (Place, bool) {
	for _, bits := range p.lengths[family(a)] {
		if x, err := a.Prefix(bits); err == nil {
			if at := p.of[x]; at != nil {
				return *at, true
			}
		}
	}
	return Place{}, false
}

// unit is what sides of suggested rules are made of: a node's own addresses, or a route.
func (p Place) unit() string {
	if p.Node != "" {
		return "node " + p.Node
	}
	return "route " + p.Prefix.String()
}
