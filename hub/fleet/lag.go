package fleet

import (
	"time"

	"causeway/hub/state"
	"causeway/protocol"
)

// Standing is how a node stands with this hub at one moment.
type Standing struct {
	State     string // api.Node…
	Connected bool   // there is a control session
	// Behind is for how long the session's agent has owed a newer netmap than it applied: since
	// there is one, or since it applied another, whichever is later. 0: it owes none.
	Behind  time.Duration
	Refused bool // it refused parts of the last one
}

// Standings are those of st's live nodes.
func (t *Table) Standings(st *state.State) map[protocol.NodeNumber]Standing {
	out := map[protocol.NodeNumber]Standing{}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range st.LiveNodes() {
		var x Standing
		l := t.live(n.Number)
		x.State, _, _ = judge(n, l)
		if ses := l.Session; ses != nil {
			x.Connected, x.Refused = true, len(l.Refused) > 0
			if t.netmaps != nil && ses.held != t.netmaps && t.netmaps.Has(n.Number) {
				x.Behind = max(now.Sub(ses.behind), time.Nanosecond)
			}
		}
		out[n.Number] = x
	}
	return out
}
