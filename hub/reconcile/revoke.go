package reconcile

import (
	"cmp"
	"context"
	"slices"
	"time"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// Confirmation is how one node stands to another's revocation.
type Confirmation struct {
	Node  protocol.NodeNumber
	After time.Duration // since the revocation; negative: not confirmed
	Why   string        // it has not
}

// Revocation is how the cluster lets go of a node.
type Revocation struct {
	At    time.Time
	Cut   time.Duration // after which the hub had ended relay, control and NATS; negative: it has not
	Nodes []Confirmation
}

// Revocation tells who has confirmed that node n is gone: every live node that
// may have known it, by its acknowledgement of a netmap without it.
func (l *Loop) Revocation(n state.Node) Revocation {
	st := l.cfg.Store.State()
	l.cfg.Fleet.NoteRevoked(st)
	r, _ := l.cfg.Fleet.Revoked(n.Number)
	return revocation(st, l.cfg.Fleet.Snapshot(), n, r)
}

// revocation is Revocation, by how far the cluster is with n; the zero r: that is not followed.
func revocation(st *state.State, fl fleet.Snapshot, n state.Node, r fleet.Revoked) Revocation {
	out := Revocation{At: n.GoneTime, Cut: -1, Nodes: []Confirmation{}}
	if !r.Cut.IsZero() {
		out.Cut = since(r.At, r.Cut)
	}
	if n.Statement == nil {
		return out // nobody ever heard of it
	}
	for _, m := range st.LiveNodes() {
		if !m.Joined.Before(n.GoneTime) {
			continue
		}
		c := Confirmation{Node: m.Number, After: -1}
		x := fl.Node(m.Number)
		switch {
		case !r.Confirmed[m.Number].IsZero():
			c.After = since(r.At, r.Confirmed[m.Number])
		case x.Session == nil || x.Verdict.State == api.NodeUnreachable:
			c.Why = "it is not connected; until it is, it may reach the revoked node where a direct path is left"
		case len(x.Errors) > 0:
			c.Why = x.Errors[0]
		default:
			c.Why = "it has not acknowledged yet"
		}
		out.Nodes = append(out.Nodes, c)
	}
	slices.SortFunc(out.Nodes, func(a, b Confirmation) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

func since(from, to time.Time) time.Duration { return max(0, to.Sub(from)) }

// dismissals are the sessions of nodes that are gone and have not been told so, and the nodes that are gone and have
// none.
func dismissals(st *state.State, fl fleet.Snapshot) (tell []*fleet.Session, drop []protocol.NodeNumber) {
	for n, x := range fl.Nodes.All() {
		if node, ok := st.Nodes.Find(n); !ok || node.Live() || x.Leaving {
			continue
		}
		if x.Session == nil {
			drop = append(drop, n)
			continue
		}
		tell = append(tell, x.Session)
	}
	return tell, drop
}

// revoke tells sessions of nodes that are gone so and closes them, within the
// time of a farewell.
func (l *Loop) revoke(_ context.Context, t *turn) error {
	l.cfg.Fleet.NoteRevoked(t.state)
	tell, drop := dismissals(t.state, t.fleet())
	for _, n := range drop {
		l.cfg.Fleet.Drop(n)
	}
	for _, ses := range tell {
		done, ok := l.cfg.Fleet.Dismiss(ses)
		if !ok {
			continue
		}
		l.cfg.Events.Add(event.NodeDown, t.state.Nodes.Get(ses.Node).Name, "the node was revoked")
		l.cfg.Sessions.Farewell(ses, done)
	}
	t.acted = len(tell)+len(drop) > 0
	return nil
}
