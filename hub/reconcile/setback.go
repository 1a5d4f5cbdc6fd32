package reconcile

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

const (
	// witnessTime is how long after its start a hub waits at most for its nodes before it gives a
	// number away: if its state was set back, they know, and it may be the number of one of them.
	// One that the hub does not know is heard after some 9 s: it has to miss the hub, and asks over HTTPS.
	witnessTime = 14 * time.Second
	// witnessWait is how much of that one join waits; it is told to come again then.
	witnessWait = 7 * time.Second
)

// ErrStarting says that nodes of a hub that has just started have not said yet what they know.
var ErrStarting = errors.New("the hub has just started, and hears its nodes first")

// Heard waits until the nodes have said what they know of the state, or witnessTime is over. It fails with
// the *state.SetBackError if it was set back, with ErrStarting after witnessWait, and if ctx ends.
func (l *Loop) Heard(ctx context.Context) error {
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	end := time.NewTimer(witnessWait)
	defer end.Stop()
	for !l.heard(time.Now()) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end.C:
			if err := l.cfg.Store.SetBack(); err != nil {
				return err
			}
			return ErrStarting
		case <-tick.C:
			if err := l.cfg.Store.SetBack(); err != nil { // sooner than all are here
				return err
			}
		}
	}
	return l.cfg.Store.SetBack()
}

// heard reports whether nobody waits for more nodes to say what they know.
func (l *Loop) heard(now time.Time) bool {
	st := l.cfg.Store.State()
	back, of := l.cfg.Fleet.Came(st)
	return heard(back, of, st.Nodes.Len() > 0 || l.cfg.New, now.Sub(l.cfg.Fleet.Started()))
}

// heard is so when witnessTime is over, or when each live node whose agent ever ran has had a session since the
// start: back of them all. A hub that never had a node, and is not new, may have been set back to before its
// first; sure says that this one was not.
func heard(back, of int, sure bool, up time.Duration) bool {
	return up >= witnessTime || back == of && sure
}

const (
	// markEvery is how soon nodes hear of a change of the state that changes no netmap, such as
	// a token or an admin.
	markEvery = 2 * time.Second
	// markNodes is how many do: enough that one of them is there when it is asked for, however
	// many there are.
	markNodes = 32
)

// markTo are the sessions that are to hear the mark of st, if told is not the sequence of it: some of those whose agents
// take it, others each time.
func markTo(st *state.State, fl fleet.Snapshot, told uint64) (to []*fleet.Session) {
	if st.Seq == told || st.Settling {
		return nil
	}
	for _, x := range fl.Nodes.All() {
		if x.Session != nil && slices.Contains(x.Hello.Features, protocol.FeatureMark) {
			to = append(to, x.Session)
		}
	}
	rand.Shuffle(len(to), func(i, j int) { to[i], to[j] = to[j], to[i] })
	return to[:min(len(to), markNodes)]
}

// mark gives some nodes the cluster key's word of how far the state has come, if it went on
// since they were told, so that a hub that is set back hears of it whatever the change was.
func (l *Loop) mark(_ context.Context, t *turn) error {
	if t.state.Seq == l.marked || l.cfg.Store.SetBack() != nil {
		return nil
	}
	to := markTo(t.state, t.fleet(), l.marked)
	if len(to) == 0 {
		return nil
	}
	l.marked, t.acted = t.state.Seq, true
	m := t.state.Mark(l.cfg.Cluster)
	for _, ses := range to {
		l.cfg.Sessions.TellMark(ses, m)
	}
	return nil
}
