package declare

import (
	"fmt"
	"maps"
	"slices"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// node labels a node that has joined, drains it or ends that.
func (a *apply) node(doc api.NodeDocument) error {
	if err := checkName("node", doc.Name); err != nil {
		return err
	}
	a.step.Object = "node " + doc.Name
	n, err := a.d.FindNode(doc.Name)
	if err != nil {
		return state.Errorf(state.NotFound, "there is no node %s; a host becomes one by 'causeway-agent join'", doc.Name)
	}
	for _, k := range slices.Sorted(maps.Keys(doc.Labels)) {
		if err := protocol.CheckLabel(k, doc.Labels[k]); err != nil {
			return state.Errorf(state.Invalid, "labels: %s", err)
		}
		a.differs("labels."+k, n.Labels[k], doc.Labels[k])
	}
	if err := state.Label(a.d, doc.Name, doc.Labels); err != nil {
		return err
	}
	if doc.Drained == nil {
		return nil
	}
	a.differs("drained", fmt.Sprint(!n.Drained.IsZero()), fmt.Sprint(*doc.Drained))
	return state.Drain(a.d, doc.Name, *doc.Drained)
}
