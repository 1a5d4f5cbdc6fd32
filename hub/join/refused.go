package join

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"causeway/hub/facts/event"
	"causeway/hub/state"
)

// told is all that a refused host without an open token reads, whatever the reason.
const told = "the token is unknown, used, expired or revoked"

// Anybody can have a join refused, and the state log is kept for good. So only
// some refusals get an entry of their own; the next entry counts the others. What
// was refused with the token's secret in hand matters more, and takes more.
const (
	shownEvery = 10 * time.Second
	shownBurst = 100
	blindEvery = 5 * time.Minute
	blindBurst = 50
	auditWait  = 5 * time.Second
)

// auditor decides which refusals are written.
type auditor struct {
	mu           sync.Mutex
	shown, blind *rate.Limiter
	missed       int
}

func newAuditor() auditor {
	return auditor{shown: rate.NewLimiter(rate.Every(shownEvery), shownBurst), blind: rate.NewLimiter(rate.Every(blindEvery), blindBurst)}
}

// take reports whether a refusal gets an entry, and how many had none before.
func (a *auditor) take(shown bool, now time.Time) (missed int, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lim := a.blind
	if shown {
		lim = a.shown
	}
	if !lim.AllowN(now, 1) {
		a.missed++
		return 0, false
	}
	missed, a.missed = a.missed, 0
	return missed, true
}

// refused writes a refusal to the audit, the events and the log, if it gets an
// entry. The entry is stored when it returns.
func (s *Server) refused(ctx context.Context, c state.JoinRefused, shown bool) {
	missed, ok := s.audit.take(shown, time.Now())
	if !ok {
		return
	}
	c.Missed = missed
	s.cfg.Log.Warn().Str("addr", c.From).Str("token", c.Token.String()).Str("reason", c.Reason).Int("missed", missed).Msg("join refused")
	s.cfg.Events.Add(event.JoinRefused, "", c.Describe())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditWait)
	defer cancel()
	if _, err := s.cfg.Store.Update(ctx, "hub", "join refused", func(d *state.Draft) error { return d.Add(c) }); err != nil {
		s.cfg.Log.Error().Err(err).Msg("refused join is not in the audit")
	}
}
