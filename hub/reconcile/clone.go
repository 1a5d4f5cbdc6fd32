package reconcile

import (
	"context"
	"time"

	"causeway/hub/facts/event"
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

// Boots carries news of boot ids from the tunnel to the Loop. It is made before both.
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
	for n, x := range fl.Nodes.All() {
		if node := st.Nodes.Get(n); x.Cloned && node.Live() && node.Quarantine == "" {
			out = append(out, n)
		}
	}
	return out
}

// booted notes what the tunnel saw, of a node that is not shut off.
func (l *Loop) booted(b booted) trigger {
	if n := l.cfg.Store.State().Nodes.Get(b.node); !n.Live() || n.Quarantine != "" {
		return 0
	}
	l.cfg.Fleet.Booted(b.node, b.boot, time.Now())
	return onBoot
}

// clone shuts nodes off whose identity is used on two hosts.
func (l *Loop) clone(ctx context.Context, t *turn) error {
	for _, number := range clones(t.state, t.fleet()) {
		n := t.state.Nodes.Get(number)
		t.acted = true
		l.cfg.Fleet.Suspected(number)
		l.store(ctx, t.step, change{"hub", "node quarantine " + n.Name, func(d *state.Draft) error {
			return state.Quarantine(d, number, clonedReason)
		}, func(_ *state.State, err error) {
			if err != nil {
				l.cfg.Log.Error().Err(err).Str("node", n.Name).Msg("a cloned node was not quarantined, trying again")
				return // the next change of its boot id does
			}
			l.cfg.Fleet.Released(number) // what was seen is dealt with
			l.cfg.Events.Add(event.NodeCloned, n.Name, clonedReason)
			l.cfg.Log.Error().Str("node", n.Name).Msg("node quarantined: its identity is used on two hosts at once")
		}})
	}
	return nil
}
