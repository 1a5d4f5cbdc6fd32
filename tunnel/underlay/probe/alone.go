package probe

import (
	"slices"
	"time"

	"causeway/protocol"
)

// Hubs tell peers where we are. An agent that starts and hears of none shows
// itself: it asks every peer's candidates as if it had traffic for them, once, a
// few peers at a time. Without that, nobody would get through to a node behind
// a NAT whose pods only answer.
const (
	aloneAfter = 500 * time.Millisecond // from the first netmap, without a hub
	showEvery  = 50 * time.Millisecond
	showPeers  = 4 // each time: questions go out over 5 tries, to up to 16 candidates each
)

// showing is how far it got. The zero value has not begun.
type showing struct {
	done bool
	next time.Time           // zero: there were no peers yet
	last protocol.NodeNumber // asked
}

// show activates the peers that are next. It returns when it wants to be
// called again; zero: whenever.
func (a *Agent) show(now time.Time) time.Time {
	s := &a.showing
	if s.done || len(a.hubs) == 0 || len(a.peers) == 0 {
		return time.Time{}
	}
	for _, h := range a.hubs {
		if h.chosen != nil && h.chosen.alive(now) {
			s.done = true
			return time.Time{}
		}
	}
	if s.next.IsZero() {
		s.next = now.Add(aloneAfter)
	}
	if now.Before(s.next) {
		return s.next
	}
	var left []protocol.NodeNumber
	for n, p := range a.peers {
		if n > s.last && len(p.paths) > 0 {
			left = append(left, n)
		}
	}
	slices.Sort(left)
	for _, n := range left[:min(len(left), showPeers)] {
		p := a.peers[n]
		p.wanted, s.last = now, n
		a.activate(now, p)
	}
	if len(left) <= showPeers {
		s.done = true
		return time.Time{}
	}
	s.next = now.Add(showEvery)
	return s.next
}
