package fleet

import (
	"slices"

	"causeway/hub/state"
	"causeway/protocol"
)

// Has says which nodes that are told of a declared object have it as it is now, and which do not:
// those whose acknowledged netmap is older, and those that refused it.
func (s Snapshot) Has(st *state.State, o state.Object) (have, lack []protocol.NodeNumber) {
	_, told := o.Tells(st)
	for _, n := range told {
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
