package reconcile

import (
	"context"

	"causeway/hub/object"
)

// limits holds the relay to the limits that are declared.
func (l *Loop) limits(_ context.Context, t *turn) error {
	bounds := object.RelayBounds(t.state)
	if len(bounds) == 0 && !l.bounded {
		return nil
	}
	l.cfg.Tunnel.SetRelayBounds(bounds)
	l.bounded, t.acted = len(bounds) > 0, true
	return nil
}
