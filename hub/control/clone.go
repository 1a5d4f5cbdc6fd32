package control

import (
	"context"
	"time"

	"causeway/hub/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

const (
	// maxBooted bounds the news of boot ids that wait; a clone makes more.
	maxBooted = 256
)

const clonedReason = "its identity is used on two hosts at once (a copied machine or state directory): stop one of them, then 'causeway node release'; or 'causeway node revoke'"

// booted says that a node has proven another boot id than before.
type booted struct {
	node protocol.NodeNumber
	boot protocol.BootID
}

// Boots carries news of boot ids from the tunnel to the Server. It is made before both.
type Boots chan booted

// NewBoots returns one that is empty.
func NewBoots() Boots { return make(Boots, maxBooted) }

// Saw is told when a node has proven another boot id than before, in the order in
// which it happened. It never blocks.
func (b Boots) Saw(n protocol.NodeNumber, id protocol.BootID) {
	select {
	case b <- booted{n, id}:
	default:
	}
}

// clones are the live nodes whose identity is used on two hosts and that are not shut off yet.
func clones(st *state.State, fl fleet.Snapshot) (out []protocol.NodeNumber) {
	for n, x := range fl.Nodes {
		if node := st.Nodes[n]; x.Cloned && node.Live() && node.Quarantine == "" {
			out = append(out, n)
		}
	}
	return out
}

// watchBoot shuts a node off whose identity is used on two hosts.
func (s *Server) watchBoot(ctx context.Context, b booted) {
	st := s.cfg.Store.State()
	if n := st.Nodes[b.node]; !n.Live() || n.Quarantine != "" {
		return
	}
	s.fleet.Booted(b.node, b.boot, time.Now())
	for _, number := range clones(st, s.fleet.Snapshot()) {
		n := st.Nodes[number]
		s.fleet.Suspected(number)
		go func() { // a store that is busy must not keep netmaps waiting
			_, err := s.cfg.Store.Update(ctx, "hub", "node quarantine "+n.Name, func(d *state.Draft) error {
				return state.Quarantine(d, number, clonedReason)
			})
			if err != nil {
				s.cfg.Log.Error().Err(err).Str("node", n.Name).Msg("a cloned node was not quarantined, trying again")
				return // the next change of its boot id does
			}
			s.fleet.Released(number) // what was seen is dealt with
			s.cfg.Events.Add(event.NodeCloned, n.Name, clonedReason)
			s.cfg.Log.Error().Str("node", n.Name).Msg("node quarantined: its identity is used on two hosts at once")
		}()
	}
}
