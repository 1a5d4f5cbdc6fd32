package hub

import (
	"strconv"
	"strings"

	"causeway/hub/object"
	"causeway/hub/state"
)

// relayCounts is what of the tunnel the status of limits is read from.
type relayCounts interface {
	RelayBounded() map[string]uint64
}

// limitStatus is what a limit did on this hub; nil: the object is no limit.
func limitStatus(t relayCounts, key state.ObjectKey) map[string]string {
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
