package state

import (
	"sync/atomic"

	"github.com/benbjohnson/immutable"

	"causeway/protocol"
)

// living is what is worked out of the nodes of a state, when somebody asks.
type living struct {
	of     *immutable.SortedMap[protocol.NodeNumber, Node]
	nodes  []Node // by number
	bySite map[string][]protocol.NodeNumber
}

// newest keeps the living nodes of the state that was asked last. States that come of one another share it: most
// transactions change no node.
type newest struct{ atomic.Pointer[living] }

func (s *State) living() *living {
	if s.newest != nil {
		if l := s.newest.Load(); l != nil && l.of == s.Nodes.m {
			return l
		}
	}
	l := &living{of: s.Nodes.m, nodes: make([]Node, 0, s.names.Len()), bySite: map[string][]protocol.NodeNumber{}}
	for _, n := range s.Nodes.All() {
		if n.Live() {
			l.nodes = append(l.nodes, n)
			l.bySite[n.Site] = append(l.bySite[n.Site], n.Number)
		}
	}
	if s.newest != nil {
		s.newest.Store(l)
	}
	return l
}

// LiveNodes lists the live nodes by number. The list is shared and must not be changed.
func (s *State) LiveNodes() []Node {
	l := s.living().nodes
	return l[:len(l):len(l)]
}

// LiveNodesOf lists the live nodes of a site by number. The list is shared and must not be changed.
func (s *State) LiveNodesOf(site string) []protocol.NodeNumber {
	l := s.living().bySite[site]
	return l[:len(l):len(l)]
}
