package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/protocol"
)

// What a hub that was restored from a backup does about the time since. Its
// agents know more than it does: which nodes are gone, by lists that the cluster
// key has signed, and which are new.
const (
	// settleTime is how long a restored hub listens at most before it sends
	// netmaps. Agents go on with those that they hold.
	settleTime = 30 * time.Second
	settlePoll = 200 * time.Millisecond
	maxUnknown = 1000
)

// goneList is the signed list of nodes that are gone, made anew when it changes.
// Server.mu guards it.
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

// forget takes out the nodes that lists of a node's Hello say are gone, if the
// state has them. A list that is not the cluster's says nothing.
func (s *Server) forget(ctx context.Context, log zerolog.Logger, by string, lists []protocol.SignedGoneList) error {
	var nodes []protocol.NodeNumber
	pin := s.cfg.Cluster.Public().Pin()
	s.mu.Lock()
	own := s.goneList.signed
	s.mu.Unlock()
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
		s.cfg.Events.Add(event.NodeDown, st.Nodes[n].Name, "gone since the backup that this hub was restored from; node "+by+" holds a list that the cluster key signed")
	}
	s.cfg.Log.Warn().Str("node", by).Int("nodes", len(live)).Msg("nodes that were gone before this state was restored are taken out again")
	return nil
}

// settle ends the time in which a restored hub listens, once every node came
// back or settleTime is over. It reports whether there is nothing to wait for.
func (s *Server) settle(ctx context.Context) bool {
	st := s.cfg.Store.State()
	if !st.Settling {
		return true
	}
	back, of := s.here(st)
	if back < of && time.Since(s.started) < settleTime {
		return false
	}
	_, err := s.cfg.Store.Update(ctx, "hub", "restored", func(d *state.Draft) error { return state.Settle(d, back, of) })
	if err != nil {
		s.cfg.Log.Error().Err(err).Msg("the restored state does not take effect yet, trying again")
		return false
	}
	s.cfg.Log.Info().Int("nodes", back).Int("expected", of).Msg("the restored state takes effect")
	return true
}

// Unknown is a node that agents knew and this hub, restored from a backup, does not.
type Unknown struct {
	protocol.LostPeer
	By string // the node that said so first
}

// Unknown lists these nodes by number.
func (s *Server) Unknown() []Unknown {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.unknown), func(a, b Unknown) int { return cmp.Compare(a.Number, b.Number) })
}

// noteUnknown takes what node by knew. It is for a person to read: nothing is
// decided by it. s.mu is held.
func (s *Server) noteUnknown(by string, lost []protocol.LostPeer) {
	st := s.cfg.Store.State()
	var names []string
	for _, p := range lost {
		_, known := st.Nodes[p.Number]
		if _, noted := s.unknown[p.Number]; known || noted || !p.Number.Valid() || len(s.unknown) >= maxUnknown {
			continue
		}
		s.unknown[p.Number] = Unknown{p, by}
		names = append(names, fmt.Sprintf("%s (number %d, site %s)", p.Name, p.Number, p.Site))
	}
	if len(names) == 0 {
		return
	}
	text := protocol.OneLine(strings.Join(names, ", "), maxText)
	s.cfg.Events.Add(event.NodeUnknown, by, "knows nodes that joined after the backup which this hub was restored from; they have to join again: "+text)
	s.cfg.Log.Warn().Str("node", by).Str("names", text).Msg("nodes joined after the backup which this hub was restored from, and have to join again")
}
