package fleet

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/protocol"
)

// What a node's hellos may change in the log: a node that was given all the routes that one may have may take them
// back and announce others, twice; in the long run it is changes for all of its routes eight times a day. What is
// beyond waits here, the last word alone.
const (
	ChangesBurst = 4*protocol.MaxNodeRoutes + 16
	changesDaily = 8 * protocol.MaxNodeRoutes
	KeysBurst    = 16               // new WireGuard keys, which the state remembers for good
	KeysDaily    = 48               // twice as many as a site may ask for
	refusedPause = time.Minute      // after the log did not take it
	lateShown    = 10 * time.Minute // after the last time
	lateTold     = time.Hour        // until it is told again
)

func newChanges() *rate.Limiter {
	return rate.NewLimiter(rate.Every(24*time.Hour/changesDaily), ChangesBurst)
}

func newKeys() *rate.Limiter { return rate.NewLimiter(rate.Every(24*time.Hour/KeysDaily), KeysBurst) }

// Announcement is what a node's last hello says that may be state.
type Announcement struct {
	Announce func(*state.Draft) error
	Routes   int
	late     bool      // it changes more than the node may now
	after    time.Time // when it is tried again, if the log did not take it
	word     uint64    // counts what the node said to this hub; 0: it says it now
}

// MayStore reports whether node n may change so much of the log now, and charges it for that; whoever does not store it
// then calls back. Otherwise the announcement waits, and that is told, now and then. One that waited and is not the
// node's last word any more is dropped.
func (t *Table) MayStore(n protocol.NodeNumber, name string, a Announcement, changes int) (back func(), ok bool) {
	now, tell := time.Now(), false
	t.mu.Lock()
	l := t.node(n)
	if a.word == 0 {
		a.word = l.said.word + 1
	} else if a.word != l.said.word {
		t.mu.Unlock()
		return nil, false
	}
	if back, ok = charge(l.changes, now, changes); !ok {
		l.late = now
		if tell = now.Sub(l.lateTold) > lateTold; tell {
			l.lateTold = now
		}
	}
	a.late = !ok
	l.said = a
	t.announces(n)
	t.mu.Unlock()
	if tell {
		t.cfg.Events.Add(event.NodeRefused, name, lateText)
		t.cfg.Log.Warn().Str("node", name).Msg("a node changes what it announces too often, its last word waits")
	}
	return back, ok
}

// Wait lets the announcement of node n wait.
func (t *Table) Wait(n protocol.NodeNumber) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.node(n)
	l.said.late, l.said.after = true, time.Now().Add(refusedPause)
}

// IsLast reports whether a is the last word of node n.
func (t *Table) IsLast(n protocol.NodeNumber, a Announcement) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.node(n).said.word == a.word
}

// Again has whoever stores what waits look at the last word of node n: something else was stored since it was.
func (t *Table) Again(n protocol.NodeNumber) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.node(n).said.late = true
}

var lateText = fmt.Sprintf("the node changes what it announces too often: more than %d changes at once or %d a day are not stored, its last word is when that is over", ChangesBurst, changesDaily)

// Due are those that are tried now that the state is st; last is the one when they were tried before. A
// node that was silent for a while may be at another hub by now and say something else there: it waits for the next
// word of its session.
func (t *Table) Due(st, last *state.State, now time.Time) map[protocol.NodeNumber]Announcement {
	due := map[protocol.NodeNumber]Announcement{}
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, l := range t.nodes {
		if l.session == nil || l.said.Announce == nil || now.Before(l.said.after) || !st.Nodes.Get(n).Live() {
			continue
		}
		if l.said.late || st != last && len(st.Waiting(n, l.hello.Routes)) > 0 {
			if l.said.late = true; now.Sub(l.lastWord) < protocol.StatusInterval {
				due[n] = l.said
			}
		}
	}
	return due
}

// Announced is what node n announced last, to this hub or, beyond the state, to another.
func (t *Table) Announced(n protocol.NodeNumber) []netip.Prefix {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.announced(n))
}

// announced is Announced. A session knows best, then another hub't. t.mu is held.
func (t *Table) announced(n protocol.NodeNumber) []netip.Prefix {
	own := t.own(n)
	e, ok := t.elsewhere[n]
	if l := t.nodes[n]; ok && (l == nil || l.session == nil) && (e.here || own == nil) {
		return e.waiting
	}
	return own
}

// own is what node n announced last to this hub. t.mu is held.
func (t *Table) own(n protocol.NodeNumber) []netip.Prefix {
	if l := t.nodes[n]; l != nil && l.said.Announce != nil {
		return l.hello.Routes
	}
	return t.memory.Announced[n]
}

// State is the newest state with what nodes announce beyond it, for whoever shows it. Nothing may be decided on it.
func (t *Table) State() *state.State { return t.Shown(t.cfg.State()) }

// Shown adds to a state what nodes announce beyond it. Nothing may be decided on what it returns.
func (t *Table) Shown(st *state.State) *state.State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shown(st)
}

// lastShown is what shown returned last, of which state, and what that state has beyond it by the count of says.
type lastShown struct {
	of, shown *state.State
	says      uint64
	waiting   []state.Route
}

// announces says that what node n announces may be something else now. t.mu is held.
func (t *Table) announces(n protocol.NodeNumber) {
	t.says++
	t.notices.Mark(n)
}

// shown is Shown: the same pointer as before while what it adds to the same state is the same. Only where routes or nodes
// are others, or what a node announces, is looked at all of them. t.mu is held.
func (t *Table) shown(st *state.State) *state.State {
	last := &t.lastShown
	if last.of == nil || last.says != t.says || !st.SameRoutes(last.of) {
		waiting := t.waiting(st)
		if last.of == nil || last.of != st || !slices.Equal(waiting, last.waiting) {
			last.shown = nil
		}
		last.says, last.waiting = t.says, waiting
	}
	if last.shown == nil || last.of != st {
		last.shown = st
		if len(last.waiting) > 0 {
			last.shown = st.With(last.waiting)
		}
	}
	last.of = st
	return last.shown
}

// waiting is what nodes announce beyond st. t.mu is held.
func (t *Table) waiting(st *state.State) []state.Route {
	all := map[protocol.NodeNumber][]netip.Prefix{}
	add := func(n protocol.NodeNumber) {
		if _, ok := all[n]; !ok {
			all[n] = t.announced(n)
		}
	}
	for n := range t.memory.Announced {
		add(n)
	}
	for n := range t.nodes {
		add(n)
	}
	for n := range t.elsewhere {
		add(n)
	}
	return st.AllWaiting(all)
}

// Late reports whether node n announced more changes than it may, lately.
func (t *Table) Late(n protocol.NodeNumber) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.nodes[n]
	return l != nil && time.Since(l.late) < lateShown
}
