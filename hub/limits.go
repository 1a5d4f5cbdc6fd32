package hub

import (
	"context"
	"strconv"
	"strings"

	"causeway/hub/object"
	"causeway/hub/state"
	"causeway/tunnel"
)

// relayTunnel is what of the tunnel limits are set on.
type relayTunnel interface {
	SetRelayBounds([]tunnel.RelayBound)
	RelayBounded() map[string]uint64
}

// holdRelay holds the relay to the limits that are declared, from one state to the next.
func holdRelay(ctx context.Context, store *state.Store, t relayTunnel) error {
	changed, stop := store.Watch()
	defer stop()
	held := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if l := object.RelayBounds(store.State()); len(l) > 0 || held {
			t.SetRelayBounds(l)
			held = len(l) > 0
		}
	}
}

// limitStatus is what a limit did on this hub; nil: the object is no limit.
func limitStatus(t relayTunnel, key state.ObjectKey) map[string]string {
	if key.Kind != object.LimitKind {
		return nil
	}
	dropped := uint64(0)
	for name, n := range t.RelayBounded() {
		if of, _, _ := strings.Cut(name, "/"); of == key.Name {
			dropped += n
		}
	}
	return map[string]string{"dropped": strconv.FormatUint(dropped, 10)}
}
