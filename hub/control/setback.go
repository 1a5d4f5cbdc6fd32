package control

import (
	"context"
	"errors"
	"time"

	"causeway/hub/event"
	"causeway/hub/state"
	"causeway/protocol"
)

// witnessTime is how long after its start a hub waits at most for its nodes before it gives a
// number away: if its state was set back, they know, and it may be the number of one of them.
const witnessTime = 8 * time.Second

// witness takes the mark of node by's Hello. One that is not the cluster's says nothing.
func (s *Server) witness(ctx context.Context, by string, m *protocol.StateMark) error {
	if m == nil {
		return nil
	}
	before := s.cfg.Store.SetBack()
	err := s.cfg.Store.Witness(ctx, *m)
	if errors.Is(err, protocol.ErrPinMismatch) || errors.Is(err, protocol.ErrStateMarkInvalid) {
		s.cfg.Log.Warn().Err(err).Str("node", by).Msg("a node shows a mark of the state that is not this cluster's")
		return nil
	}
	if now := s.cfg.Store.SetBack(); before == nil && now != nil {
		s.cfg.Events.Add(event.StateSetBack, by, now.Error())
	}
	return err
}

// Heard waits until the nodes have said what they know of the state, or witnessTime is over. It fails with
// the *state.SetBackError if it was set back, and if ctx ends.
func (s *Server) Heard(ctx context.Context) error {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for time.Since(s.started) < witnessTime && !s.allHere() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return s.cfg.Store.SetBack()
}

// allHere reports whether each live node whose agent ever ran has had a session since the start.
func (s *Server) allHere() bool {
	back, of := s.here(s.cfg.Store.State())
	return back == of
}

// here counts the live nodes of st whose agent ever ran, and those of them that have had a
// session since the start.
func (s *Server) here(st *state.State) (back, of int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range st.LiveNodes() {
		if n.Statement == nil {
			continue
		}
		of++
		if l := s.nodes[n.Number]; l != nil && (l.session != nil || !l.up.IsZero()) {
			back++
		}
	}
	return back, of
}
