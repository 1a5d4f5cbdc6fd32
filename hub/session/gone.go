package session

import (
	"context"

	"github.com/rs/zerolog"

	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/protocol"
)

// forget takes out the nodes that lists of a node's Hello say are gone, if the
// state has them. A list that is not the cluster's says nothing.
func (s *Server) forget(ctx context.Context, log zerolog.Logger, by string, lists []protocol.SignedGoneList) error {
	var nodes []protocol.NodeNumber
	pin := s.cfg.Cluster.Public().Pin()
	var own *protocol.SignedGoneList
	if v := s.fleet.Netmaps(); v != nil {
		own = v.Gone
	}
	for _, l := range lists[:min(len(lists), protocol.MaxGoneLists)] {
		if own != nil && string(own.Payload) == string(l.Payload) {
			continue
		}
		gone, err := l.Open(pin)
		if err != nil {
			log.Warn().Err(err).Msg("a node shows a list of gone nodes that is not this cluster's")
			continue
		}
		nodes = append(nodes, gone...)
	}
	live, unheard := s.cfg.Store.State().Forgotten(nodes)
	if len(live) == 0 && !unheard {
		return nil
	}
	st, err := s.cfg.Store.Update(ctx, "hub", "gone before this state was restored, by a signed list that node "+by+" holds", func(d *state.Draft) error {
		return state.Forget(d, nodes)
	})
	if err != nil {
		return err
	}
	for _, n := range live {
		s.cfg.Events.Add(event.NodeDown, st.Nodes.Get(n).Name, "gone since the backup that this hub was restored from; node "+by+" holds a list that the cluster key signed")
	}
	s.cfg.Log.Warn().Str("node", by).Int("nodes", len(live)).Msg("nodes that were gone before this state was restored are taken out again")
	return nil
}
