package reconcile

import (
	"context"
	"fmt"
	"strings"

	"causeway/hub/object"
	"causeway/hub/state"
	"causeway/protocol"
)

// fence ends switches of single-writer services whose old sites are fenced, and lifts fences that nobody needs any more. What it waits for is
// in the log and in what nodes say, so that another hub goes on with it.
func (l *Loop) fence(ctx context.Context, t *turn) error {
	if l.serve.state != t.state || t.state.Settling {
		return nil
	}
	for _, o := range t.state.ObjectsOf(object.ServiceKind) {
		d, err := object.ServiceOf(o)
		if err != nil || d.To == "" && len(d.Fenced) == 0 {
			continue
		}
		c := change{who: "hub"}
		switch fl := t.fleet(); {
		case d.To != "":
			if len(fl.Unfenced(t.state, o, d, l.serve.told, t.now)) > 0 {
				continue
			}
			c.why = protocol.OneLine(fmt.Sprintf("service %s: %s is fenced, switched to %s", o.Name, strings.Join(d.Fenced, ", "), d.To), 256)
			c.decide = func(s *state.Draft) error { return object.EndSwitch(s, o.Name, d.Epoch) }
		default:
			if len(fl.Unaware(t.state, o, d, l.serve.told)) > 0 {
				continue
			}
			c.why = protocol.OneLine(fmt.Sprintf("service %s: all nodes know where it is, %s is fenced no more", o.Name, strings.Join(d.Fenced, ", ")), 256)
			c.decide = func(s *state.Draft) error { return object.LiftFence(s, o.Name, d.Epoch) }
		}
		c.then = func(_ *state.State, err error) {
			if err == nil {
				l.cfg.Log.Info().Str("service", o.Name).Str("cause", c.why).Msg("a single-writer's switch went on")
			}
		}
		t.acted = true
		l.storeAlone(ctx, t.step, c)
		return nil // what else there is comes with the next state
	}
	return nil
}
