package reconcile

import (
	"context"
	"strings"

	"causeway/hub/object"
	"causeway/hub/state"
)

// unconfirmed has a change of segments and policies go back that nobody confirmed in time.
func (l *Loop) unconfirmed(ctx context.Context, t *turn) error {
	p := object.Confirming(t.state)
	if p == nil || t.now.Before(p.Deadline) || t.state.Settling {
		return nil
	}
	var names []string
	for _, k := range p.Objects {
		names = append(names, k.String())
	}
	why := "not confirmed in time: it goes back"
	if text := p.Overtaken(t.state); text != "" {
		why = "not confirmed in time, and it stays: " + text
	}
	t.acted = true
	l.storeAlone(ctx, t.step, change{who: "hub", why: why, decide: func(d *state.Draft) error {
		if now := object.Confirming(d.State); now == nil || now.Deadline.After(t.now) {
			return nil // it was confirmed meanwhile
		}
		return object.GoBack(d)
	}, then: func(_ *state.State, err error) {
		if err == nil {
			l.cfg.Log.Warn().Str("cause", strings.Join(names, ", ")+": "+why).Msg("a change of who may talk was not confirmed")
		}
	}})
	return nil
}
