package fleet

import (
	"time"

	"golang.org/x/time/rate"

	"causeway/protocol"
)

// How often a node may come.
const (
	MaxConnsNode = 8 // of one node: the session, those that it replaces, some to spare
	// What a connection made the hub hold stays for some seconds after its end.
	ConnEvery  = time.Second // of one node in the long run
	connBurst  = 24
	HelloEvery = 2 * time.Second // of one node in the long run: a hello may be a transaction
	helloBurst = 20
	// A stream that was refused stays in its session until the agent closes it. An agent has two sessions,
	// and so many streams may all sessions of a node open at once and each second.
	StreamsRate  = 2
	StreamsBurst = 32

	refusedEvery = time.Minute // events of refused sessions of a node
	refusedBurst = 3
)

// budget bounds how often a node may come.
type budget struct{ hellos, connects *rate.Limiter }

func newBudget() budget {
	return budget{rate.NewLimiter(rate.Every(HelloEvery), helloBurst), rate.NewLimiter(rate.Every(ConnEvery), connBurst)}
}

func (l *record) budget(proven bool) budget {
	if proven {
		return l.own
	}
	return l.old
}

// Comer is who comes to a node's budgets: those who prove the node's identity have others
// than those who do not.
type Comer struct {
	Node   protocol.NodeNumber
	Proven bool
}

// Enter counts a connection that was admitted, if there may be one more; leave ends it.
func (t *Table) Enter(c Comer) (leave func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns[c] >= MaxConnsNode || !t.node(c.Node).budget(c.Proven).connects.Allow() {
		return nil, false
	}
	t.conns[c]++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.conns[c]--; t.conns[c] == 0 {
			delete(t.conns, c)
		}
	}, true
}

// MayHello charges c for a hello, if it has one left.
func (t *Table) MayHello(c Comer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.node(c.Node).budget(c.Proven).hellos.Allow()
}

// Streams is what holds the streams of node n's sessions to their rate.
func (t *Table) Streams(n protocol.NodeNumber) *rate.Limiter {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.node(n).streams
}

// ChargeKey charges node n for a new WireGuard key, if it has one left; back gives it back.
func (t *Table) ChargeKey(n protocol.NodeNumber) (back func(), ok bool) {
	t.mu.Lock()
	keys := t.node(n).keys
	t.mu.Unlock()
	return charge(keys, time.Now(), 1)
}

// charge takes n from l if it has so many; back gives them back.
func charge(l *rate.Limiter, now time.Time, n int) (back func(), ok bool) {
	r := l.ReserveN(now, n)
	back = func() { r.CancelAt(now) } // as of then: as of a later time it gives nothing back
	if ok = r.OK() && r.DelayFrom(now) == 0; !ok {
		back()
	}
	return back, ok
}

// Refused counts a session of node n that was refused. tell says that operators are to hear of it now, and of count
// sessions since the last time.
func (t *Table) Refused(n protocol.NodeNumber) (count int, tell bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.node(n)
	l.refusals++
	count, tell = l.refusals, l.refusedPace.Allow()
	if tell {
		l.refusals = 0
	}
	return count, tell
}
