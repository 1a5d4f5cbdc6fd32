package declare

import (
	"cmp"
	"fmt"

	"causeway/hub/api"
	"causeway/hub/state"
	"causeway/protocol"
)

// route approves or rejects a route that a node announces.
func (a *apply) route(doc api.RouteDocument) error {
	if !protocol.ValidName(doc.Node) {
		return state.Errorf(state.Invalid, "node: %.80q cannot name a node", doc.Node)
	}
	if err := checkPrefix("prefix", doc.Prefix); err != nil {
		return err
	}
	if doc.State != protocol.RouteApproved && doc.State != protocol.RouteRejected {
		return state.Errorf(state.Invalid, "state: %.40q; use approved or rejected", doc.State)
	}
	a.step.Object = fmt.Sprintf("route %s of %s", doc.Prefix, doc.Node)
	n, err := a.d.FindNode(doc.Node)
	if err != nil {
		return err
	}
	key := state.RouteKey{Node: n.Number, Prefix: doc.Prefix}
	before := a.d.Routes.Get(key).State
	a.d.Announced(n.Number, a.live.Announced(n.Number))
	if before == doc.State {
		return nil
	}
	if err := state.DecideRoute(a.d, doc.Node, doc.Prefix, doc.State == protocol.RouteApproved, a.live.Who); err != nil {
		return err
	}
	a.differs("state", string(cmp.Or(before, protocol.RoutePending)), string(doc.State))
	return nil
}
