package reconcile

import (
	"context"
	"time"

	"causeway/hub/fleet"
)

// judge looks at all nodes: silence is no event; and forgets what other hubs tell no more.
func (l *Loop) judge(_ context.Context, t *turn) error {
	l.cfg.Fleet.LookAround()
	l.cfg.Fleet.ForgetElsewhere(t.now)
	t.known = nil
	return nil
}

// missed tells, once, of nodes that were there before this hub's start and are not yet. From now on they
// count no more as online.
func (l *Loop) missed(_ context.Context, t *turn) error {
	l.cfg.Fleet.Missed()
	l.pace.touched(time.Now())
	t.acted, t.over = true, true
	return nil
}

// remember reads what was known in the run before.
func (l *Loop) remember() {
	if l.cfg.Memory == "" {
		return
	}
	m, err := fleet.LoadMemory(l.cfg.Memory)
	if err != nil {
		l.cfg.Log.Warn().Err(err).Msg("what was known of nodes before is not readable, it is learnt anew")
		return
	}
	l.cfg.Fleet.Remember(m)
}

// save keeps what is known for the next run, if there is news.
func (l *Loop) save(_ context.Context, t *turn) error {
	m, news := l.cfg.Fleet.Unsaved()
	if !news || l.cfg.Memory == "" {
		return nil
	}
	t.acted = true
	err := m.Save(l.cfg.Memory)
	if err != nil {
		l.cfg.Log.Warn().Err(err).Msg("what is known of nodes is not kept for the next start")
	}
	return err
}
