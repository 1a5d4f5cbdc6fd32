package control

import (
	"context"
	"slices"
	"time"

	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/protocol"
)

const (
	// cloneWindow is how far apart the signs of a clone may be.
	cloneWindow = 10 * time.Minute
	// maxBoots bounds the boot ids remembered of a node.
	maxBoots = 16
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

// watchBoot shuts a node off whose identity is used on two hosts.
func (s *Server) watchBoot(ctx context.Context, b booted) {
	n := s.cfg.Store.State().Nodes[b.node]
	if !n.Live() || n.Quarantine != "" {
		return
	}
	s.mu.Lock()
	cloned := s.node(b.node).boots.next(b.boot, time.Now())
	s.mu.Unlock()
	if !cloned {
		return
	}
	go func() { // a store that is busy must not keep netmaps waiting
		_, err := s.cfg.Store.Update(ctx, "hub", "node quarantine "+n.Name, func(d *state.Draft) error {
			return state.Quarantine(d, b.node, clonedReason)
		})
		if err != nil {
			s.cfg.Log.Error().Err(err).Str("node", n.Name).Msg("a cloned node was not quarantined, trying again")
			return // the next change of its boot id does
		}
		s.Released(b.node) // what was seen is dealt with
		s.cfg.Events.Add(event.NodeCloned, n.Name, clonedReason)
		s.cfg.Log.Error().Str("node", n.Name).Msg("node quarantined: its identity is used on two hosts at once")
	}()
}

// Released forgets what boot ids a node had.
func (s *Server) Released(n protocol.NodeNumber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.nodes[n]; l != nil {
		l.boots = boots{}
	}
}

// boots remembers the boot ids that a node has proven. Each start of an
// agent has a new one, so that one that comes back after another is the sign
// of two agents with one identity. A single one that comes back is not enough: a
// virtual machine set back to a snapshot goes on with the agent that ran then.
// Two that come back take turns, and no single machine does that.
type boots struct {
	last protocol.BootID
	seen []protocol.BootID // oldest first, last among them
	back []comeback
}

type comeback struct {
	boot protocol.BootID
	at   time.Time
}

// next takes a boot id; it reports whether the node's identity is used twice.
func (b *boots) next(id protocol.BootID, now time.Time) bool {
	if id == b.last {
		return false
	}
	b.last = id
	b.back = slices.DeleteFunc(b.back, func(c comeback) bool { return now.Sub(c.at) > cloneWindow })
	if !slices.Contains(b.seen, id) {
		b.seen = append(b.seen, id)
		if len(b.seen) > maxBoots {
			b.seen = b.seen[1:]
		}
		return false
	}
	b.back = append(b.back, comeback{id, now})
	if len(b.back) > maxBoots {
		b.back = b.back[1:]
	}
	return slices.ContainsFunc(b.back, func(c comeback) bool { return c.boot != id })
}
