package control

import (
	"context"
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
	changesBurst = 4*protocol.MaxNodeRoutes + 16
	changesDaily = 8 * protocol.MaxNodeRoutes
	keysBurst    = 16 // new WireGuard keys, which the state remembers for good
	keysDaily    = 48 // twice as many as a site may ask for
	storeEvery   = time.Second
	refusedPause = time.Minute      // after the log did not take it
	lateShown    = 10 * time.Minute // after the last time
	lateTold     = time.Hour        // until it is told again
)

func newChanges() *rate.Limiter {
	return rate.NewLimiter(rate.Every(24*time.Hour/changesDaily), changesBurst)
}

func newKeys() *rate.Limiter { return rate.NewLimiter(rate.Every(24*time.Hour/keysDaily), keysBurst) }

// announcement is what a node's last hello says that may be state.
type announcement struct {
	announce func(*state.Draft) error
	routes   int
	late     bool      // it changes more than the node may now
	after    time.Time // when it is tried again, if the log did not take it
	word     uint64    // counts what the node said to this hub; 0: it says it now
}

// mayStore reports whether node n may change so much of the log now, and charges it for that; whoever does not store it
// then calls back. Otherwise the announcement waits, and that is told, now and then. One that waited and is not the
// node's last word any more is dropped.
func (s *Server) mayStore(n protocol.NodeNumber, name string, a announcement, changes int) (back func(), ok bool) {
	now, tell := time.Now(), false
	s.mu.Lock()
	l := s.node(n)
	if a.word == 0 {
		a.word = l.said.word + 1
	} else if a.word != l.said.word {
		s.mu.Unlock()
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
	s.mu.Unlock()
	if tell {
		s.cfg.Events.Add(event.NodeRefused, name, lateText)
		s.cfg.Log.Warn().Str("node", name).Msg("a node changes what it announces too often, its last word waits")
	}
	return back, ok
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

// wait lets the announcement of node n wait.
func (s *Server) wait(n protocol.NodeNumber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.node(n)
	l.said.late, l.said.after = true, time.Now().Add(refusedPause)
}

// isLast reports whether a is the last word of node n.
func (s *Server) isLast(n protocol.NodeNumber, a announcement) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node(n).said.word == a.word
}

// again has storeWaiting look at the last word of node n: something else was stored since it was.
func (s *Server) again(n protocol.NodeNumber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.node(n).said.late = true
}

var lateText = fmt.Sprintf("the node changes what it announces too often: more than %d changes at once or %d a day are not stored, its last word is when that is over", changesBurst, changesDaily)

// storeWaiting stores, until ctx ends, what had to wait, and what a change of the state lets become state, such as
// a site's new range.
func (s *Server) storeWaiting(ctx context.Context) {
	t := time.NewTicker(storeEvery)
	defer t.Stop()
	var last *state.State
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		st := s.cfg.Store.State()
		due := s.dueAnnouncements(st, last, time.Now())
		last = st
		for n, a := range due {
			_, changes, err := s.cfg.Store.Changes(a.announce)
			if err != nil {
				continue
			}
			back, ok := s.mayStore(n, st.Nodes[n].Name, a, changes)
			if !ok || changes == 0 {
				continue
			}
			announce := func(d *state.Draft) error { // its turn may come after the node's next word
				if !s.isLast(n, a) {
					return nil
				}
				return a.announce(d)
			}
			if _, err := s.record(ctx, hello{name: st.Nodes[n].Name, routes: a.routes, announce: announce}); err != nil && ctx.Err() == nil {
				back()
				s.wait(n)
				s.cfg.Log.Warn().Err(err).Str("node", st.Nodes[n].Name).Msg("what the node announces is not stored")
			}
			if !s.isLast(n, a) {
				s.again(n)
			}
		}
	}
}

// dueAnnouncements are those that are tried now that the state is st; last is the one when they were tried before. A
// node that was silent for a while may be at another hub by now and say something else there: it waits for the next
// word of its session.
func (s *Server) dueAnnouncements(st, last *state.State, now time.Time) map[protocol.NodeNumber]announcement {
	due := map[protocol.NodeNumber]announcement{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, l := range s.nodes {
		if l.session == nil || l.said.announce == nil || now.Before(l.said.after) || !st.Nodes[n].Live() {
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
func (s *Server) Announced(n protocol.NodeNumber) []netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.announced(n))
}

// announced is Announced. A session knows best, then another hub's. s.mu is held.
func (s *Server) announced(n protocol.NodeNumber) []netip.Prefix {
	own := s.own(n)
	e, ok := s.elsewhere[n]
	if l := s.nodes[n]; ok && (l == nil || l.session == nil) && (e.here || own == nil) {
		return e.waiting
	}
	return own
}

// own is what node n announced last to this hub. s.mu is held.
func (s *Server) own(n protocol.NodeNumber) []netip.Prefix {
	if l := s.nodes[n]; l != nil && l.said.announce != nil {
		return l.hello.Routes
	}
	return s.memory.Announced[n]
}

// State is the newest state with what nodes announce beyond it, for whoever shows it. Nothing may be decided on it.
func (s *Server) State() *state.State { return s.Shown(s.cfg.Store.State()) }

// Shown adds to a state what nodes announce beyond it. Nothing may be decided on what it returns.
func (s *Server) Shown(st *state.State) *state.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown(st)
}

// shown is Shown: the same pointer as before while what it adds to the same state is the same. s.mu is held.
func (s *Server) shown(st *state.State) *state.State {
	all := map[protocol.NodeNumber][]netip.Prefix{}
	add := func(n protocol.NodeNumber) {
		if _, ok := all[n]; !ok {
			all[n] = s.announced(n)
		}
	}
	for n := range s.memory.Announced {
		add(n)
	}
	for n := range s.nodes {
		add(n)
	}
	for n := range s.elsewhere {
		add(n)
	}
	waiting := st.AllWaiting(all)
	if len(waiting) == 0 {
		return st
	}
	if s.lastShown.of != st || !slices.Equal(s.lastShown.waiting, waiting) {
		s.lastShown.of, s.lastShown.waiting, s.lastShown.shown = st, waiting, st.With(waiting)
	}
	return s.lastShown.shown
}

// Late reports whether node n announced more changes than it may, lately.
func (s *Server) Late(n protocol.NodeNumber) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.nodes[n]
	return l != nil && time.Since(l.late) < lateShown
}
