package control

import (
	"context"
	"time"

	"causeway/hub/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// Whoever cannot prove a node's identity can say that it leaves, too. So such a leave is
// but a wish: it comes true if nothing is heard of the node for a while after it, no session and
// no probe, which takes the node's WireGuard key. Until then nothing changes, and
// a hub that restarts meanwhile forgets it.
const (
	departAfter = 10 * time.Minute
	departLull  = 10 * time.Second // an agent that leaves may still be probing
)

// leaveUnproven takes the wish and says goodbye to the agent, which is done with it.
func (ses *session) leaveUnproven(ctx context.Context) error {
	s := ses.s
	s.fleet.WantsToLeave(ses.known)
	name := ses.name()
	s.cfg.Events.Add(event.NodeRefused, name, "the node says that it leaves, in a session that does not prove its identity: it is taken out in "+departAfter.String()+" unless it is heard before; 'causeway node revoke "+name+"' does so now")
	ses.log.Warn().Msg("a session that does not prove the node's identity says that it leaves")
	err := ses.send(protocol.KindLeft, struct{}{})
	select { // the agent closes once it heard
	case <-ses.mux.Done():
	case <-ctx.Done():
	case <-time.After(farewell):
	}
	return err
}

// departs reports whether a departure comes true, or void whether it never will: proof is when
// the node last proved an address.
func departs(d fleet.Departure, now time.Time, session *fleet.Session, proof time.Time) (gone, void bool) {
	switch {
	case d.Since.IsZero():
		return false, false
	case session != nil && session != d.By, proof.After(d.Since.Add(departLull)):
		return false, true
	}
	return session == nil && now.Sub(d.Since) >= departAfter, false
}

// departures are the nodes whose wish to leave has come true, and those whose wish never will.
func departures(fl fleet.Snapshot, proven func(protocol.NodeNumber) time.Time, now time.Time) (out, void []protocol.NodeNumber) {
	for n, x := range fl.Nodes {
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

// takeOut takes out the nodes whose wish to leave has come true.
func (s *Server) takeOut(ctx context.Context, now time.Time) {
	fl := s.fleet.Snapshot()
	out, void := departures(fl, s.cfg.Tunnel.Proven, now)
	for _, n := range void {
		if s.fleet.Settled(n, fl.Nodes[n].Left) {
			s.cfg.Log.Warn().Str("node", s.cfg.Store.State().Nodes[n].Name).Msg("a node that was said to leave is still there: somebody else on its host may have said so")
		}
	}
	for _, n := range out {
		if !s.fleet.Settled(n, fl.Nodes[n].Left) {
			continue
		}
		go func() { // a store that is busy must not keep netmaps waiting
			name := s.cfg.Store.State().Nodes[n].Name
			_, err := s.cfg.Store.Update(ctx, "node:"+name, "leave, without proof of its identity; not heard for "+departAfter.String(), func(d *state.Draft) error {
				return state.Remove(d, n, state.GoneLeft)
			})
			if err != nil {
				s.cfg.Log.Error().Err(err).Str("node", name).Msg("a node that left was not taken out")
				return
			}
			s.cfg.Events.Add(event.NodeDown, name, "the node left the cluster")
		}()
	}
}
