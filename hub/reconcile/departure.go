package reconcile

import (
	"context"
	"time"

	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// Whoever cannot prove a node's identity can say that it leaves, too. So such a leave is
// but a wish: it comes true if nothing is heard of the node for a while after it, no session and
// no probe, which takes the node's WireGuard key. Until then nothing changes, and
// a hub that restarts meanwhile forgets it.
//
// departLull is for how long an agent that leaves may still be probing.
const departLull = 10 * time.Second

// departs reports whether a departure comes true, or void whether it never will: proof is when
// the node last proved an address.
func departs(d fleet.Departure, now time.Time, session *fleet.Session, proof time.Time) (gone, void bool) {
	switch {
	case d.Since.IsZero():
		return false, false
	case session != nil && session != d.By, proof.After(d.Since.Add(departLull)):
		return false, true
	}
	return session == nil && now.Sub(d.Since) >= fleet.DepartAfter, false
}

// departures are the nodes whose wish to leave has come true, and those whose wish never will.
func departures(fl fleet.Snapshot, proven func(protocol.NodeNumber) time.Time, now time.Time) (out, void []protocol.NodeNumber) {
	for n, x := range fl.Nodes.All() {
		if x.Left.Since.IsZero() {
			continue
		}
		switch gone, never := departs(x.Left, now, x.Session, proven(n)); {
		case gone:
			out = append(out, n)
		case never:
			void = append(void, n)
		}
	}
	return out, void
}

// departure takes out the nodes whose wish to leave has come true.
func (l *Loop) departure(ctx context.Context, t *turn) error {
	fl := t.fleet()
	out, void := departures(fl, l.cfg.Tunnel.Proven, t.now)
	for _, n := range void {
		if t.acted = true; l.cfg.Fleet.Settled(n, fl.Node(n).Left) {
			l.cfg.Log.Warn().Str("node", t.state.Nodes.Get(n).Name).Msg("a node that was said to leave is still there: somebody else on its host may have said so")
		}
	}
	for _, n := range out {
		if t.acted = true; !l.cfg.Fleet.Settled(n, fl.Node(n).Left) {
			continue
		}
		name := t.state.Nodes.Get(n).Name
		l.store(ctx, t.step, change{"node:" + name, "leave, without proof of its identity; not heard for " + fleet.DepartAfter.String(), func(d *state.Draft) error {
			return state.Remove(d, n, state.GoneLeft)
		}, func(_ *state.State, err error) {
			if err != nil {
				l.cfg.Log.Error().Err(err).Str("node", name).Msg("a node that left was not taken out")
				return
			}
			l.cfg.Events.Add(event.NodeDown, name, "the node left the cluster")
		}})
	}
	return nil
}
