package reconcile

import (
	"context"
	"time"

	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

// A node whose agent has begun to prove its identity is closed to agents that do not
// once this time has passed: until then an upgrade of the agent that fails can be taken back. While a
// session that proved itself is up no other one is taken all the same.
const (
	oldWayFor   = 10 * time.Minute
	maxProvings = 64 // nodes in one transaction, so that the turn of others comes soon
)

// provenForLong are the live nodes that have proven their identity for oldWayFor, of which the state does not say so; as
// many as one transaction takes.
func provenForLong(st *state.State, fl fleet.Snapshot, now time.Time) (due []protocol.NodeNumber) {
	for n, x := range fl.Nodes.All() {
		node := st.Nodes.Get(n)
		if len(due) < maxProvings && node.Live() && node.Proven.IsZero() && x.Proven() && now.Sub(x.FirstProof) >= oldWayFor {
			due = append(due, n)
		}
	}
	return due
}

// proof records the nodes that have proven their identity for oldWayFor. A whole cluster
// may be upgraded at once, and shares transactions.
func (l *Loop) proof(ctx context.Context, t *turn) error {
	due := provenForLong(t.state, t.fleet(), t.now)
	if len(due) == 0 {
		return nil
	}
	t.acted = true
	l.storeAlone(ctx, t.step, change{"hub", "nodes prove their identity", func(d *state.Draft) error {
		for _, n := range due {
			if err := state.Proved(d, n); err != nil && !state.IsKind(err, state.NotFound) { // gone meanwhile
				return err
			}
		}
		return nil
	}, func(_ *state.State, err error) {
		if err != nil && ctx.Err() == nil {
			l.cfg.Log.Warn().Err(err).Int("nodes", len(due)).Msg("that nodes prove their identity is not recorded yet, trying again")
		}
	}})
	return nil
}
