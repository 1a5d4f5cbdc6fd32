package reconcile

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"causeway/hub/fleet"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// liveOf is what netmaps are made from beyond the state: what is known of its live nodes, until a node has reported with what
// was known in the run before.
func liveOf(st *state.State, fl fleet.Snapshot, bound func(protocol.NodeNumber) []netip.AddrPort, now time.Time) map[protocol.NodeNumber]plan.Live {
	out := map[protocol.NodeNumber]plan.Live{}
	for _, node := range st.LiveNodes() {
		n := node.Number
		l := plan.Live{Candidates: bound(n)}
		if x, ok := fl.Nodes.Find(n); ok {
			l.Online = x.Session != nil || now.Sub(x.LastWord) < fleet.OnlineGrace
			l.Candidates = append(l.Candidates, x.Status.Candidates...)
		}
		if r, ok := fl.Before.Find(n); ok {
			l.Candidates = append(l.Candidates, r.Candidates...)
			l.Online = l.Online || r.Online && now.Sub(fl.Started) < fleet.StartGrace
		}
		out[n] = l
	}
	return out
}

// netmaps makes the netmaps anew and gives them to the fleet, which wakes the sessions, if any of them says
// something new.
func (l *Loop) netmaps(_ context.Context, t *turn) error {
	fresh := l.compute(t)
	t.acted = fresh
	l.tell()
	l.pace.computed(t.now, fresh)
	return nil
}

func (l *Loop) compute(t *turn) (fresh bool) {
	if _, essential := t.state.Strange(); t.state.Settling || essential || l.cfg.Store.SetBack() != nil {
		return false // agents go on with what they hold
	}
	fl := t.fleet()
	known := liveOf(t.state, fl, l.bound, t.now)
	l.showBound(known)
	before := fl.Netmaps
	if before == nil {
		before = fl.Earlier
	}
	next := plan.Compute(l.cfg.Fleet.Shown(t.state), known, l.talk.who, l.serve.told, before)
	next.Talk = l.talk.serial
	next.Gone = l.goneList.of(t.state, l.cfg.Cluster)
	if next.SameAs(fl.Netmaps) {
		return false // most transactions and many statuses change no netmap
	}
	mark := t.state.Mark(l.cfg.Cluster)
	next.Mark = &mark
	l.cfg.Fleet.SetNetmaps(next, known, t.now)
	return true
}

// bound lists the addresses bound for a node, and keeps in mind where they are others than before.
func (l *Loop) bound(n protocol.NodeNumber) []netip.AddrPort {
	now := l.cfg.Tunnel.Bound(n)
	if !slices.Equal(now, l.wasBound[n]) {
		l.wasBound[n], l.moved = now, append(l.moved, n)
	}
	return slices.Clip(now)
}

// showBound has whoever shows nodes told which are bound elsewhere by now, and forgets those that are gone.
func (l *Loop) showBound(known map[protocol.NodeNumber]plan.Live) {
	l.cfg.Fleet.Show(l.moved...)
	l.moved = l.moved[:0]
	if len(l.wasBound) > len(known) {
		maps.DeleteFunc(l.wasBound, func(n protocol.NodeNumber, _ []netip.AddrPort) bool { _, ok := known[n]; return !ok })
	}
}

// goneList is the signed list of nodes that are gone, made anew when it changes.
// The loop alone uses it.
type goneList struct {
	nodes  []protocol.NodeNumber
	signed *protocol.SignedGoneList
}

func (g *goneList) of(st *state.State, key protocol.ClusterPrivateKey) *protocol.SignedGoneList {
	nodes := st.Gone()
	nodes = nodes[:min(len(nodes), protocol.MaxGone)]
	if len(nodes) == 0 {
		return nil
	}
	if g.signed == nil || !slices.Equal(g.nodes, nodes) {
		s := protocol.SignGone(nodes, key)
		g.nodes, g.signed = nodes, &s
	}
	return g.signed
}
