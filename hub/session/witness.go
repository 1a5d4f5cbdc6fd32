package session

import (
	"context"
	"errors"

	"causeway/hub/facts/event"
	"causeway/protocol"
)

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
