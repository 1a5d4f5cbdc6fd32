package control

import (
	"time"

	"causeway/hub/liveness"
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
func (s *Server) Standings(st *state.State) map[protocol.NodeNumber]Standing {
	out := map[protocol.NodeNumber]Standing{}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range st.LiveNodes() {
		var x Standing
		l := s.nodes[n.Number]
		if l == nil {
			l = &live{machine: liveness.New(s.started)}
		}
		x.State, _, _ = judge(n, l)
		if ses := l.session; ses != nil {
			x.Connected, x.Refused = true, len(l.refused) > 0
			if s.view != nil && ses.held != s.view && s.view.Has(n.Number) {
				x.Behind = max(now.Sub(ses.behind), time.Nanosecond)
			}
		}
		out[n.Number] = x
	}
	return out
}
