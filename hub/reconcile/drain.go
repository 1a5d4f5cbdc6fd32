package reconcile

import (
	"cmp"
	"net/netip"
	"slices"

	"causeway/hub/fleet"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// Handover is how far other nodes are with taking a node's routes to those that
// carry them now.
type Handover struct {
	Pending   bool                                 // the next netmaps are not computed yet
	Owners    map[netip.Prefix]protocol.NodeNumber // now, of all the prefixes that the node may carry
	Confirmed []protocol.NodeNumber                // they send nothing of Owners' moved prefixes to it any more
	Waiting   []protocol.NodeNumber                // connected, but not as far yet
	Away      []protocol.NodeNumber                // not connected: they go on as they did
}

// Handover tells who has applied a netmap in which node n carries nothing that
// another node carries now.
func (l *Loop) Handover(n protocol.NodeNumber) Handover {
	return handover(l.cfg.Store.State(), l.cfg.Fleet.Snapshot(), n)
}

func handover(st *state.State, fl fleet.Snapshot, n protocol.NodeNumber) Handover {
	out := Handover{Owners: map[netip.Prefix]protocol.NodeNumber{}}
	if fl.Netmaps == nil {
		out.Pending = true
		return out
	}
	var moved []netip.Prefix
	for _, r := range st.NodeRoutes(n) {
		if !r.Carried() {
			continue
		}
		o := fl.Netmaps.Owner(n, r.Prefix)
		if o == 0 { // approved since these were computed: nobody sends to anybody yet
			out.Pending = out.Pending || takes(st, fl, r.Prefix, n)
			continue
		}
		out.Owners[r.Prefix] = o
		switch {
		case o != n:
			moved = append(moved, r.Prefix)
		case !st.Nodes.Get(n).Drained.IsZero() && takes(st, fl, r.Prefix, n):
			out.Pending = true
		}
	}
	without := func(v *plan.Netmaps) bool {
		return !slices.ContainsFunc(moved, func(p netip.Prefix) bool { return v.Owner(n, p) == n })
	}
	for _, m := range st.LiveNodes() {
		if m.Number == n {
			continue
		}
		x := fl.Node(m.Number)
		switch {
		case m.Statement == nil: // never seen
		case x.Session == nil:
			out.Away = append(out.Away, m.Number)
		case !x.Took(without):
			out.Waiting = append(out.Waiting, m.Number)
		default:
			out.Confirmed = append(out.Confirmed, m.Number)
		}
	}
	for _, l := range [][]protocol.NodeNumber{out.Confirmed, out.Waiting, out.Away} {
		slices.SortFunc(l, func(a, b protocol.NodeNumber) int { return cmp.Compare(a, b) })
	}
	return out
}

// takes reports whether another node can take prefix p from drained node n.
func takes(st *state.State, fl fleet.Snapshot, p netip.Prefix, n protocol.NodeNumber) bool {
	for k, r := range st.Routes.All() {
		m := st.Nodes.Get(k.Node)
		if k.Prefix != p || k.Node == n || !r.Carried() || !m.Drained.IsZero() || m.Quarantine != "" || m.Statement == nil || !fl.Netmaps.Meet(k.Node, n) {
			continue
		}
		if fl.Node(k.Node).Session != nil {
			return true
		}
	}
	return false
}
