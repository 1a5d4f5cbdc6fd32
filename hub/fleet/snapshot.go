package fleet

import (
	"maps"
	"slices"
	"time"

	"causeway/hub/liveness"
	"causeway/hub/notice"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// Snapshot is what is known live at one moment. It costs next to nothing: what is the same at another moment is shared
// with the snapshot of that. Its maps are the caller's; what lies in them nobody changes. One that was made by hand serves tests.
type Snapshot struct {
	Started time.Time // of the hub
	Nodes   state.Map[protocol.NodeNumber, *Node]
	Before  state.Map[protocol.NodeNumber, Remembered] // nodes of the run before that have not reported since
	// Netmaps are the newest ones; nil: none were computed yet. Then Earlier has the owners of the run before.
	Netmaps, Earlier *plan.Netmaps

	strays state.Map[protocol.NodeNumber, Stray]
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

// Node is what is known of node n, the zero value if nothing is.
func (s Snapshot) Node(n protocol.NodeNumber) Node {
	if x := s.Nodes.Get(n); x != nil {
		return *x
	}
	return Node{}
}

// Snapshot is what is known now.
func (t *Table) Snapshot() Snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Snapshot{Started: t.started, Nodes: t.known, Before: t.before, Netmaps: t.netmaps, strays: t.strays, at: time.Now()}
	if s.Netmaps == nil {
		s.Earlier = t.memory.before()
	}
	return s
}

// wrote has snapshots show what the record of node n says. It is called after each change of what live shows of it, before
// the lock is given up. t.mu is held.
func (t *Table) wrote(n protocol.NodeNumber) {
	if t.nodes[n] == nil {
		t.known.Delete(n)
		t.announces(n)
		return
	}
	x, was := t.live(n), t.known.Get(n)
	t.known.Set(n, &x)
	if t.notices.Any() && (was == nil || !was.looks(x)) {
		t.notices.Mark(n)
	}
}

// Notices tells from now on of nodes of which something else is to be shown than before, by what is known live of them
// or announced: all but what never stands still, such as load and round trips. See notice.Board.
func (t *Table) Notices(wake chan<- struct{}) *notice.Reader[protocol.NodeNumber] {
	return t.notices.Join(wake)
}

// looks reports whether a node is shown alike by x and o, but for what never stands still.
func (x Node) looks(o Node) bool {
	same := x.Verdict.Equal(o.Verdict) && (x.Session == nil) == (o.Session == nil) && x.Up.Equal(o.Up) && x.Shut.Equal(o.Shut) && x.Acked == o.Acked &&
		x.Hello.AgentVersion == o.Hello.AgentVersion && x.Hello.Engine == o.Hello.Engine && maps.Equal(x.Hello.Labels, o.Hello.Labels) &&
		slices.Equal(x.Refused, o.Refused) && slices.EqualFunc(x.Status.Conditions, o.Status.Conditions, sameCondition) && samePaths(x.Status.Paths, o.Status.Paths)
	a, b := x.Status.Upgrade, o.Status.Upgrade
	return same && (a == b || a != nil && b != nil && *a == *b)
}

func sameCondition(a, b protocol.Condition) bool {
	return a.Name == b.Name && a.OK == b.OK && a.Since.Equal(b.Since) && a.Cause == b.Cause && a.Note == b.Note && slices.Equal(a.DependsOn, b.DependsOn)
}

// samePaths compares what stands still of paths; see Steady.
func samePaths(a, b []protocol.PathStatus) bool {
	return slices.EqualFunc(a, b, func(a, b protocol.PathStatus) bool { return Steady(a) == Steady(b) })
}

// Steady is what of a path is news when it changes: load, round trips and counters never stand still.
func Steady(p protocol.PathStatus) protocol.PathStatus {
	return protocol.PathStatus{Peer: p.Peer, Path: p.Path, Addr: p.Addr, MTU: p.MTU}
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
	x := s.Nodes.Get(n.Number)
	if x == nil {
		x = &Node{Verdict: liveness.New(s.Started).Verdict()}
	}
	return info(n, *x, s.strays, s.at)
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
	return came(st, func(n protocol.NodeNumber) bool { return !s.Node(n).Up.IsZero() })
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
