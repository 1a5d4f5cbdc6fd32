package fleet

import (
	"slices"

	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// Took reports whether the node is connected and its agent applied, without an error, netmaps in which holds. It is the
// one answer to who has something that a netmap says or leaves out, of what is live as of what is state: a revoked
// node's going, a drained node's prefixes.
func (x Node) Took(holds func(*plan.Netmaps) bool) bool {
	return x.Held != nil && len(x.Errors) == 0 && holds(x.Held)
}

// Has says which nodes that are told of a declared object have it as it is now, and which do not:
// those whose acknowledged netmap is older, and those that refused it. Other than with Took a node that is away has what
// it took, and one whose host could not do all of a netmap has its items.
func (s Snapshot) Has(st *state.State, o state.Object) (have, lack []protocol.NodeNumber) {
	for _, n := range o.Told(st) {
		x := s.Node(n)
		refused := slices.ContainsFunc(x.Refused, func(r protocol.RefusedPart) bool { return r.Kind == o.Kind && r.Name == o.Name })
		if x.Acked.Epoch != st.Epoch || x.Acked.Version < o.Generation || refused {
			lack = append(lack, n)
			continue
		}
		have = append(have, n)
	}
	return have, lack
}
