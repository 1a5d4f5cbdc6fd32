package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"causeway/hub/facts/event"
	"causeway/protocol"
)

const maxUnknown = 1000

// Unknown is a node that agents knew and this hub, restored from a backup, does not.
type Unknown struct {
	protocol.LostPeer
	By string // the node that said so first
}

// Unknown lists these nodes by number.
func (t *Table) Unknown() []Unknown {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Values(t.unknown), func(a, b Unknown) int { return cmp.Compare(a.Number, b.Number) })
}

// noteUnknown takes what node by knew. It is for a person to read: nothing is
// decided by it. t.mu is held.
func (t *Table) noteUnknown(by string, lost []protocol.LostPeer) {
	st := t.cfg.State()
	var names []string
	for _, p := range lost {
		_, known := st.Nodes.Find(p.Number)
		if _, noted := t.unknown[p.Number]; known || noted || !p.Number.Valid() || len(t.unknown) >= maxUnknown {
			continue
		}
		t.unknown[p.Number] = Unknown{p, by}
		names = append(names, fmt.Sprintf("%s (number %d, site %s)", p.Name, p.Number, p.Site))
	}
	if len(names) == 0 {
		return
	}
	text := protocol.OneLine(strings.Join(names, ", "), MaxText)
	t.cfg.Events.Add(event.NodeUnknown, by, "knows nodes that joined after the backup which this hub was restored from; they have to join again: "+text)
	t.cfg.Log.Warn().Str("node", by).Str("names", text).Msg("nodes joined after the backup which this hub was restored from, and have to join again")
}
