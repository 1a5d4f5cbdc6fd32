package service

import (
	"cmp"
	"net/netip"
	"slices"

	"causeway/protocol"
)

// Node is what services ask of a node.
type Node struct {
	Number  protocol.NodeNumber
	Name    string
	Site    string
	Segment string         // as hub/policy has it
	Own     []netip.Addr   // its overlay addresses
	Carries []netip.Prefix // approved routes that it announces
	Away    bool           // nobody may know it, so that nothing there serves: it is in quarantine
}

func (n *Node) same(o *Node) bool {
	return n.Name == o.Name && n.Site == o.Site && n.Segment == o.Segment && n.Away == o.Away && slices.Equal(n.Own, o.Own) && slices.Equal(n.Carries, o.Carries)
}

// World is where addresses are. It is never changed.
type World struct {
	nodes   map[protocol.NodeNumber]*Node
	names   map[string]*Node
	realm   map[*Node]string
	realmOf func(segment string) string
	places  map[string]*places // by realm
	clients map[string][]protocol.NodeNumber
	split   bool // a segment is called as the default one
}

// places are those of one realm.
type places struct {
	own     map[netip.Addr]*Node
	carried map[netip.Prefix][]*Node
	lengths [2][]int // of carried, descending; of IPv4 and IPv6
}

// SegmentOf is the segment whose nodes are the clients of services that name one; declared says which there are.
func SegmentOf(name string, declared func(string) bool) string {
	if name == protocol.DefaultSegment && !declared(name) {
		return ""
	}
	return name
}

// NewWorld makes a world of nodes. realmOf is the realm of a segment (hub/policy): within it an address is met at one place.
// declared says which segments there are; both are asked now and later, and pure.
func NewWorld(nodes []Node, realmOf func(segment string) string, declared func(string) bool) *World {
	w := &World{nodes: map[protocol.NodeNumber]*Node{}, names: map[string]*Node{}, realm: map[*Node]string{}, realmOf: realmOf, places: map[string]*places{},
		clients: map[string][]protocol.NodeNumber{}, split: declared(protocol.DefaultSegment)}
	for i := range nodes {
		n := &nodes[i]
		realm := realmOf(n.Segment)
		w.nodes[n.Number], w.names[n.Name], w.realm[n] = n, n, realm
		w.clients[n.Segment] = append(w.clients[n.Segment], n.Number)
		if n.Away {
			continue
		}
		p := w.places[realm]
		if p == nil {
			p = &places{own: map[netip.Addr]*Node{}, carried: map[netip.Prefix][]*Node{}}
			w.places[realm] = p
		}
		for _, a := range n.Own {
			p.own[a] = n
		}
		for _, x := range n.Carries {
			p.carry(x, n)
		}
	}
	for _, p := range w.places {
		for i := range p.lengths {
			slices.SortFunc(p.lengths[i], func(a, b int) int { return cmp.Compare(b, a) })
		}
	}
	for _, l := range w.clients {
		slices.Sort(l)
	}
	return w
}

func family(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

func (p *places) carry(x netip.Prefix, n *Node) {
	if l := &p.lengths[family(x.Addr())]; !slices.Contains(*l, x.Bits()) {
		*l = append(*l, x.Bits())
	}
	p.carried[x] = append(p.carried[x], n)
}

// carriers are the nodes that carry the longest prefix around an address.
func (p *places) carriers(a netip.Addr) []*Node {
	if p == nil {
		return nil
	}
	for _, bits := range p.lengths[family(a)] {
		if x, err := a.Prefix(bits); err == nil {
			if l := p.carried[x]; l != nil {
				return l
			}
		}
	}
	return nil
}

// ownerOf is the node whose own an address is; nil: none.
func (p *places) ownerOf(a netip.Addr) *Node {
	if p == nil {
		return nil
	}
	return p.own[a]
}

// segment is that of a service's clients.
func (w *World) segment(d *Declared) string {
	return SegmentOf(d.Segment, func(string) bool { return w.split })
}
