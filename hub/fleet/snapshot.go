package fleet

import (
	"maps"
	"time"

	"causeway/hub/liveness"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// Snapshot is what is known live at one moment. Its maps are the caller's; what lies in them is shared, and
// nobody changes it. One that was made by hand serves tests.
type Snapshot struct {
	Started time.Time // of the hub
	Nodes   map[protocol.NodeNumber]Node
	Before  map[protocol.NodeNumber]Remembered // nodes of the run before that have not reported since
	// Netmaps are the newest ones; nil: none were computed yet. Then Earlier has the owners of the run before.
	Netmaps, Earlier *plan.Netmaps

	strays map[protocol.NodeNumber]Stray
	at     time.Time
}

// Node is what is known live of one node. The zero value is one of which nothing is known, but for Verdict.
type Node struct {
	Session    *Session      // nil: none now
	Held       *plan.Netmaps // whose netmap the session's agent applied last
	Leaving    bool          // gone from the state, and being told
	LastWord   time.Time     // zero: none since the hub's start
	Goodbye    bool          // the agent ended its last session itself
	Hello      protocol.Hello
	Status     protocol.Status
	Acked      protocol.NetmapVersion
	Refused    []protocol.RefusedPart // of the last netmap
	Errors     []string               // in applying it
	Up         time.Time              // when the last session began; zero: none since the hub's start
	Shut       time.Time              // since when it is quarantined, as far as this hub saw
	FirstProof time.Time              // of its identity, seen by this run of the hub; zero: none
	Left       Departure
	Cloned     bool // its boot ids say that its identity is used twice
	Verdict    liveness.Verdict
}

// Proven reports whether the node has a session that proves its identity.
func (n Node) Proven() bool { return n.Session != nil && n.Session.Proven }

// Snapshot copies what is known.
func (t *Table) Snapshot() Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Snapshot{Started: t.started, Nodes: make(map[protocol.NodeNumber]Node, len(t.nodes)), Before: maps.Clone(t.memory.Nodes), Netmaps: t.netmaps, strays: maps.Clone(t.strays), at: time.Now()}
	if s.Netmaps == nil {
		s.Earlier = t.memory.before()
	}
	for n := range t.nodes {
		s.Nodes[n] = t.live(n)
	}
	return s
}

// live is what is known of node n. t.mu is held.
func (t *Table) live(n protocol.NodeNumber) Node {
	l := t.nodes[n]
	if l == nil {
		return Node{Verdict: liveness.New(t.started).Verdict()}
	}
	x := Node{Session: l.session, Leaving: l.leaving, LastWord: l.lastWord, Goodbye: l.goodbye, Hello: l.hello, Status: l.status, Acked: l.acked, Refused: l.refused, Errors: l.errors,
		Up: l.up, Shut: l.shut, FirstProof: l.firstProof, Left: l.left, Cloned: l.boots.cloned, Verdict: l.machine.Verdict()}
	if l.session != nil {
		x.Held = l.session.held
	}
	return x
}

// Info is what is shown of node n, as Table.Info.
func (s Snapshot) Info(n state.Node) Info {
	x, ok := s.Nodes[n.Number]
	if !ok {
		x.Verdict = liveness.New(s.Started).Verdict()
	}
	return info(n, x, s.strays, s.at)
}

// Came counts the live nodes of st whose agent ever ran, and those of them that have had a
// session since the start.
func (t *Table) Came(st *state.State) (back, of int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return came(st, func(n protocol.NodeNumber) bool { l := t.nodes[n]; return l != nil && !l.up.IsZero() })
}

// Came is Table.Came.
func (s Snapshot) Came(st *state.State) (back, of int) {
	return came(st, func(n protocol.NodeNumber) bool { return !s.Nodes[n].Up.IsZero() })
}

func came(st *state.State, up func(protocol.NodeNumber) bool) (back, of int) {
	for _, n := range st.LiveNodes() {
		if n.Statement == nil {
			continue
		}
		if of++; up(n.Number) {
			back++
		}
	}
	return back, of
}
