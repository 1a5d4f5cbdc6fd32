package fleet

import (
	"fmt"
	"slices"
	"time"

	"causeway/hub/facts/event"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/protocol"
)

// Session is a control session as the fleet knows it. What carries it is nobody's business here: it
// stands for the session until Gone.
type Session struct {
	Node   protocol.NodeNumber
	Proven bool // the node's identity

	awake chan struct{}

	// Table.mu guards these.
	held   *plan.Netmaps // the agent applied its netmap of it last
	behind time.Time     // since when there is another, or since it applied held; see Standing
}

// NewSession returns a session of node n, which the table does not know before Up.
func NewSession(n protocol.NodeNumber, proven bool) *Session {
	return &Session{Node: n, Proven: proven, awake: make(chan struct{}, 1)}
}

// Wake has whoever pushes netmaps look for a new one. It never blocks.
func (s *Session) Wake() { poke(s.awake) }

// Awake receives, coalesced, after Wake.
func (s *Session) Awake() <-chan struct{} { return s.awake }

// DepartAfter is how long after such a wish to leave the node is taken out, if nothing is heard of it.
const DepartAfter = 10 * time.Minute

// Departure is a wish to leave by a session that did not prove the node's identity.
type Departure struct {
	Since time.Time // zero: none
	By    *Session  // which said so
}

// Up makes ses the node's session, in place of old, which the caller closes; nil: there was none. One that did not prove
// the node's identity never takes the place of one that did: then ok is false.
func (t *Table) Up(ses *Session, h protocol.Hello) (old *Session, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.node(ses.Node)
	old = l.session
	if old != nil && old.Proven && !ses.Proven {
		return nil, false
	}
	if ses.Proven && l.firstProof.IsZero() {
		l.firstProof = time.Now()
	}
	l.session, l.hello, l.heard, l.errors, l.refused = ses, h, false, nil, nil
	l.lastWord, l.up = time.Now(), time.Now().UTC()
	ses.behind = l.lastWord
	t.judged(ses.Node, l)
	t.wrote(ses.Node)
	t.announces(ses.Node)
	return old, true
}

// Gone takes ses out and reports whether it was there: another may have taken its place. goodbye: the agent ended it.
func (t *Table) Gone(ses *Session, goodbye bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.current(ses)
	if l == nil {
		return false
	}
	l.session, l.goodbye = nil, goodbye
	t.judged(ses.Node, l)
	t.wrote(ses.Node)
	t.announces(ses.Node)
	return true
}

// current is the record of ses' node if ses is its session, else nil. t.mu is held.
func (t *Table) current(ses *Session) *record {
	if l := t.nodes[ses.Node]; l != nil && l.session == ses {
		return l
	}
	return nil
}

// Session is node n's session, nil if there is none, and what its agent can do.
func (t *Table) Session(n protocol.NodeNumber) (ses *Session, features []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.nodes[n]; l != nil && l.session != nil {
		return l.session, l.hello.Features
	}
	return nil, nil
}

// Word notes that the session's agent said something.
func (t *Table) Word(ses *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.current(ses); l != nil {
		l.lastWord = time.Now()
		t.wrote(ses.Node)
	}
}

// Status takes what the agent reports, clean (see CleanStatus).
func (t *Table) Status(ses *Session, v protocol.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.current(ses)
	if l == nil {
		return
	}
	moved := !slices.Equal(plan.Candidates(v.Candidates, nil), plan.Candidates(l.status.Candidates, nil))
	t.noteUpgrade(t.cfg.State().Nodes.Get(ses.Node).Name, l.status.Upgrade, v.Upgrade)
	l.status, l.heard = v, true
	if t.before.Has(ses.Node) { // what was remembered is old now
		t.before.Delete(ses.Node)
	}
	t.judged(ses.Node, l)
	t.wrote(ses.Node)
	if moved {
		t.Touch()
	}
}

// noteUpgrade makes events of what a node tells of its upgrade. t.mu is held.
func (t *Table) noteUpgrade(name string, before, now *protocol.UpgradeStatus) {
	if now == nil || before != nil && *before == *now {
		return
	}
	u := t.cfg.State().Upgrade
	if u == nil || u.ID != now.ID || before == nil && u.State != state.UpgradeRunning {
		return // of the past: this hub has just started
	}
	switch now.State {
	case protocol.UpgradeDone:
		t.cfg.Events.Add(event.NodeUpgraded, name, "upgraded to "+now.Version)
	case protocol.UpgradeFailed:
		t.cfg.Events.Add(event.UpgradeFailed, name, "upgrade to "+now.Version+" failed: "+now.Error)
	}
}

// Acked takes what the agent made of a netmap, clean (see CleanAck).
func (t *Table) Acked(ses *Session, a protocol.NetmapAck) {
	st := t.cfg.State()
	node := st.Nodes.Get(ses.Node)
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.current(ses)
	if l == nil || a.Full {
		return
	}
	if len(a.Refused) > 0 && !slices.Equal(a.Refused, l.refused) {
		first := a.Refused[0]
		what := first.Part()
		if first.Kind == "" {
			what = peerName(st, first.Peer) + " " + first.Prefix
		}
		t.cfg.Events.Add(event.PartRefused, node.Name, fmt.Sprintf("%d parts of netmap %s refused, the first: %s: %s", len(a.Refused), a.NetmapVersion, what, first.Reason))
	}
	l.acked, l.refused, l.errors = a.NetmapVersion, a.Refused, a.Errors
	t.confirmed(ses.Node, l, time.Now()) // what it could not apply before it has by now, perhaps
	t.noteUnknown(node.Name, a.Lost)
	t.judged(ses.Node, l)
	t.wrote(ses.Node)
}

func peerName(st *state.State, n protocol.NodeNumber) string {
	if p, ok := st.Nodes.Find(n); ok {
		return "peer " + p.Name
	}
	return fmt.Sprintf("peer %d", n)
}

// Holds notes of which netmaps the session's agent has applied its own.
func (t *Table) Holds(ses *Session, v *plan.Netmaps) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.current(ses)
	if l == nil {
		return
	}
	ses.held, ses.behind = v, now
	if t.await.took(ses.Node, v.Talk) {
		poke(t.arrived)
	}
	t.wrote(ses.Node)
	t.confirmed(ses.Node, l, now)
}

// ProvenNow reports whether the node's session has proven its identity.
func (t *Table) ProvenNow(n protocol.NodeNumber) bool {
	ses, _ := t.Session(n)
	return ses != nil && ses.Proven
}

// Leaving says that the agent of ses leaves by its own wish: no farewell, and the tunnel stays until it
// heard the answer. Left says how that ended: the node is gone, or stays.
func (t *Table) Leaving(ses *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.current(ses); l != nil {
		l.leaving = true
		t.wrote(ses.Node)
	}
}

// Left ends Leaving.
func (t *Table) Left(ses *Session, gone bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.current(ses); l != nil {
		if l.leaving = gone; gone {
			delete(t.nodes, ses.Node)
		}
		t.wrote(ses.Node)
	}
}

// WantsToLeave notes that ses, which did not prove its node's identity, says that the node leaves.
func (t *Table) WantsToLeave(ses *Session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.current(ses); l != nil {
		l.left = Departure{Since: time.Now(), By: ses}
		t.wrote(ses.Node)
	}
}

// Settled forgets the wish d of node n to leave, which came true or never will. It reports whether it was there still.
func (t *Table) Settled(n protocol.NodeNumber, d Departure) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.nodes[n]
	if l == nil || l.left != d {
		return false
	}
	l.left = Departure{}
	t.wrote(n)
	return true
}

// Dismiss says that ses, of a node that is gone, is about to be told so; until done the tunnel keeps the node. ok is
// false if ses is no session any more, or on its way out already.
func (t *Table) Dismiss(ses *Session) (done func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.current(ses)
	if l == nil || l.leaving {
		return nil, false
	}
	l.leaving = true
	t.wrote(ses.Node)
	return func() {
		t.mu.Lock()
		if t.nodes[ses.Node] == l {
			delete(t.nodes, ses.Node)
			t.wrote(ses.Node)
		}
		t.mu.Unlock()
		t.Recheck()
	}, true
}

// Drop forgets node n, which is gone, unless it has a session.
func (t *Table) Drop(n protocol.NodeNumber) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.nodes[n]; l != nil && l.session == nil && !l.leaving {
		delete(t.nodes, n)
		t.wrote(n)
	}
}
