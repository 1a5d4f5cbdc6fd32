package control

import (
	"context"
	"time"

	"causeway/hub/facts/event"
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

// departure is a wish to leave by a session that did not prove the node's identity.
type departure struct {
	since time.Time // zero: none
	ses   *session  // which said so
}

// leaveUnproven takes the wish and says goodbye to the agent, which is done with it.
func (ses *session) leaveUnproven(ctx context.Context) error {
	s := ses.s
	s.mu.Lock()
	if l := s.nodes[ses.node]; l != nil && l.session == ses {
		l.left = departure{since: time.Now(), ses: ses}
	}
	s.mu.Unlock()
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

// gone reports whether a departure comes true, or void whether it never will: proof is when
// the node last proved an address. Server.mu is held.
func (d departure) gone(now time.Time, session *session, proof time.Time) (gone, void bool) {
	switch {
	case d.since.IsZero():
		return false, false
	case session != nil && session != d.ses, proof.After(d.since.Add(departLull)):
		return false, true
	}
	return session == nil && now.Sub(d.since) >= departAfter, false
}

// takeOut takes out the nodes whose wish to leave has come true.
func (s *Server) takeOut(ctx context.Context, now time.Time) {
	var out []protocol.NodeNumber
	s.mu.Lock()
	for n, l := range s.nodes {
		gone, void := l.left.gone(now, l.session, s.cfg.Tunnel.Proven(n))
		if gone {
			out = append(out, n)
		}
		if gone || void {
			l.left = departure{}
		}
		if void {
			s.cfg.Log.Warn().Str("node", s.cfg.Store.State().Nodes[n].Name).Msg("a node that was said to leave is still there: somebody else on its host may have said so")
		}
	}
	s.mu.Unlock()
	for _, n := range out {
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
