package reconcile

import (
	"context"
	"time"

	"causeway/hub/fleet"
	"causeway/hub/state"
)

// What a hub that was restored from a backup does about the time since. Its
// agents know more than it does: which nodes are gone, by lists that the cluster
// key has signed, and which are new.
const (
	// settleTime is how long a restored hub listens at most before it sends
	// netmaps. Agents go on with those that they hold.
	settleTime = 30 * time.Second
	settlePoll = 200 * time.Millisecond
)

// settled counts the nodes that came back, of those that there are. due says that nobody waits for more.
func settled(st *state.State, fl fleet.Snapshot, now time.Time) (back, of int, due bool) {
	back, of = fl.Came(st)
	return back, of, back == of || now.Sub(fl.Started) >= settleTime
}

// restored ends the time in which a restored hub listens, once every node came
// back or settleTime is over.
func (l *Loop) restored(ctx context.Context, t *turn) error {
	if !t.state.Settling {
		t.over = true
		return nil
	}
	back, of, due := settled(t.state, t.fleet(), t.now)
	if !due {
		return nil
	}
	t.acted = true
	l.storeAlone(ctx, t.step, change{"hub", "restored", func(d *state.Draft) error { return state.Settle(d, back, of) }, func(_ *state.State, err error) {
		if err != nil {
			l.cfg.Log.Error().Err(err).Msg("the restored state does not take effect yet, trying again")
			return
		}
		l.cfg.Log.Info().Int("nodes", back).Int("expected", of).Msg("the restored state takes effect")
	}})
	return nil
}
