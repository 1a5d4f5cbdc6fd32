package control

import (
	"cmp"
	"slices"
	"time"

	"causeway/hub/api"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// Revocations are followed for so long and no more than so many.
const (
	followRevoked = 15 * time.Minute
	maxRevoked    = 1000
)

// revocation follows how the cluster lets go of a node. Server.mu guards it.
type revocation struct {
	at        time.Time // of the transaction
	cut       time.Time // the hub's tunnel let go of it: relay, control and NATS; zero: not yet
	confirmed map[protocol.NodeNumber]time.Time
}

// Confirmation is how one node stands to another's revocation.
type Confirmation struct {
	Node  protocol.NodeNumber
	After time.Duration // since the revocation; negative: not confirmed
	Why   string        // it has not
}

// Revocation is how the cluster lets go of a node.
type Revocation struct {
	At    time.Time
	Cut   time.Duration // after which the hub had ended relay, control and NATS; negative: it has not
	Nodes []Confirmation
}

// Revocation tells who has confirmed that node n is gone: every live node that
// may have known it, by its acknowledgement of a netmap without it.
func (s *Server) Revocation(n state.Node) Revocation {
	st := s.cfg.Store.State()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noteRevoked(st)
	out := Revocation{At: n.GoneTime, Cut: -1, Nodes: []Confirmation{}}
	r := s.revoked[n.Number]
	if r != nil && !r.cut.IsZero() {
		out.Cut = since(r.at, r.cut)
	}
	if n.Statement == nil {
		return out // nobody ever heard of it
	}
	for _, m := range st.LiveNodes() {
		if !m.Joined.Before(n.GoneTime) {
			continue
		}
		c := Confirmation{Node: m.Number, After: -1}
		l := s.nodes[m.Number]
		switch {
		case r != nil && !r.confirmed[m.Number].IsZero():
			c.After = since(r.at, r.confirmed[m.Number])
		case l == nil || l.session == nil || l.machine.Verdict().State == api.NodeUnreachable:
			c.Why = "it is not connected; until it is, it may reach the revoked node where a direct path is left"
		case len(l.errors) > 0:
			c.Why = l.errors[0]
		default:
			c.Why = "it has not acknowledged yet"
		}
		out.Nodes = append(out.Nodes, c)
	}
	slices.SortFunc(out.Nodes, func(a, b Confirmation) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

func since(from, to time.Time) time.Duration { return max(0, to.Sub(from)) }

// noteRevoked begins to follow nodes that were revoked. s.mu is held.
func (s *Server) noteRevoked(st *state.State) {
	now := time.Now()
	for n, r := range s.revoked {
		if now.Sub(r.at) > followRevoked {
			delete(s.revoked, n)
		}
	}
	for _, n := range st.Nodes {
		if n.Gone != state.GoneRevoked || now.Sub(n.GoneTime) > followRevoked || s.revoked[n.Number] != nil || len(s.revoked) >= maxRevoked {
			continue
		}
		r := &revocation{at: n.GoneTime, confirmed: map[protocol.NodeNumber]time.Time{}}
		s.revoked[n.Number] = r
		for m, l := range s.nodes {
			if l.session != nil && l.session.held != nil && !l.session.held.Knows(m, n.Number) {
				r.confirmed[m] = now
			}
		}
	}
}

// holds notes of which view a session's agent has applied its netmap.
func (s *Server) holds(ses *session, v *plan.Netmaps) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.nodes[ses.node]
	if l == nil || l.session != ses {
		return
	}
	ses.held, ses.behind = v, now
	if len(l.errors) > 0 {
		return // it may not have applied it
	}
	for n, r := range s.revoked {
		if r.confirmed[ses.node].IsZero() && !v.Knows(ses.node, n) {
			r.confirmed[ses.node] = now
		}
	}
}
