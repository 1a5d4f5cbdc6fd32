package inline

import (
	"container/heap"
	"math/rand/v2"
	"time"
)

// timerHeap orders peers by their next deadline. Peers without one are not in
// it.
type timerHeap []*peer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].scheduled < h[j].scheduled }
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].heapIndex, h[j].heapIndex = i, j
}

func (h *timerHeap) Push(x any) {
	p := x.(*peer)
	p.heapIndex = len(*h)
	*h = append(*h, p)
}

func (h *timerHeap) Pop() any {
	old := *h
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	p.heapIndex = -1
	return p
}

// newHandshakeAfter is how long unanswered data waits for a sign of life.
func (p *peer) newHandshakeAfter() time.Duration {
	return keepaliveTimeout + rekeyTimeout + p.jitter
}

// persistentAt is when the persistent keepalive is due.
func (p *peer) persistentAt() instant {
	if p.keepalive == 0 {
		return 0
	}
	return max(instant(p.lastTx.Load()), instant(p.lastRx.Load()), 1).add(p.keepalive)
}

// deadline is when the peer has to be looked at next; zero for never.
func (p *peer) deadline(now instant) instant {
	d := earlier(earlier(p.retransmitAt, p.eraseAt), p.persistentAt())
	watch := func() (w instant) {
		if u := instant(p.unanswered.Load()); u != 0 {
			w = u.add(p.newHandshakeAfter())
		}
		if u := instant(p.unacked.Load()); u != 0 {
			w = earlier(w, u.add(keepaliveTimeout))
		}
		return w
	}
	w := watch()
	if w == 0 {
		// The data path tells us of the next activity, unless it saw
		// watched still set: so look again after clearing it.
		p.watched.Store(false)
		w = watch()
	}
	if w != 0 {
		p.watched.Store(true)
		// What begins from now on is due no earlier than this.
		d = earlier(d, min(w, now.add(keepaliveTimeout)))
	}
	return d
}

// schedule puts p into the heap by its deadline.
func (m *machine) schedule(p *peer, now instant) {
	d := p.deadline(now)
	switch {
	case p.gone.Load() || d == 0:
		if p.heapIndex >= 0 {
			heap.Remove(&m.timers, p.heapIndex)
		}
	case p.heapIndex < 0:
		p.scheduled = d
		heap.Push(&m.timers, p)
	case p.scheduled != d:
		p.scheduled = d
		heap.Fix(&m.timers, p.heapIndex)
	}
}

// advance does all that is due at now and returns when to call it again; zero
// for never.
func (m *machine) advance(t time.Time) instant {
	now := m.instant(t)
	for len(m.timers) > 0 && m.timers[0].scheduled <= now {
		p := m.timers[0]
		m.expire(p, t, now)
		m.schedule(p, now)
		if p.heapIndex >= 0 && p.scheduled <= now { // never spin on one that stays due
			p.scheduled = now + 1
			heap.Fix(&m.timers, p.heapIndex)
		}
	}
	if len(m.timers) == 0 {
		return 0
	}
	return m.timers[0].scheduled
}

// expire runs p's timers that are due.
func (m *machine) expire(p *peer, t time.Time, now instant) {
	due := func(i instant) bool { return i != 0 && i <= now }
	if due(p.retransmitAt) {
		p.retransmitAt = 0
		if p.attempts > maxAttempts {
			m.giveUp(p, now)
		} else {
			p.attempts++
			m.initiate(p, t, true)
		}
	}
	if u := instant(p.unanswered.Load()); u != 0 && due(u.add(p.newHandshakeAfter())) {
		p.unanswered.Store(0)
		p.jitter = rand.N(rekeyJitter)
		m.initiate(p, t, false)
	}
	if u := instant(p.unacked.Load()); u != 0 && due(u.add(keepaliveTimeout)) {
		again := p.another.Load()
		p.unacked.Store(0)
		p.another.Store(false)
		m.keepalive(p, t)
		if again {
			p.unacked.Store(int64(now))
		}
	}
	if due(p.persistentAt()) {
		m.keepalive(p, t)
		p.lastTx.Store(int64(now)) // also when nothing could be sent
	}
	if due(p.eraseAt) {
		m.out.note(p, "keys erased after long silence")
		m.erase(p)
	}
}

// giveUp ends the attempts to reach p until there is a new reason.
func (m *machine) giveUp(p *peer, now instant) {
	p.unacked.Store(0)
	p.another.Store(false)
	m.out.drop(p)
	m.out.note(p, "peer does not answer, given up until there is new traffic")
	if p.eraseAt == 0 {
		p.eraseAt = now.add(eraseAfter)
	}
}

// erase forgets all keys of p.
func (m *machine) erase(p *peer) {
	p.eraseAt, p.retransmitAt = 0, 0
	m.dropPending(p)
	for _, s := range p.forget() {
		m.index.remove(s.entry)
	}
	m.out.drop(p)
}
