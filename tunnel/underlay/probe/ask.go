package probe

import (
	"net/netip"
	"slices"
	"time"

	"causeway/protocol"
)

// Tick sends the questions that are due, notices paths that have died and
// peers that have gone idle. It returns when it wants to be called next, at
// most a second later.
func (a *Agent) Tick(now time.Time, out *Output) time.Time {
	next := now.Add(time.Second)
	for _, n := range a.hubNumbers() {
		h := a.hubs[n]
		for _, p := range h.paths {
			if p.due(now) {
				a.askHub(now, h, p, out)
			}
			next = earlier(next, p.wake(now))
		}
		a.chooseHub(now, h, out)
	}
	if w := a.show(now); !w.IsZero() {
		next = earlier(next, w)
	}
	for n, p := range a.active {
		idle := now.Sub(p.traffic) >= activeFor && now.Sub(p.wanted) >= askedFor
		if idle {
			delete(a.active, n)
			a.choose(now, p, out)
			out.Changed = out.Changed || a.prune(now, p)
			continue
		}
		a.relays(now, p)
		// Chosen first: a path that died just now is not the chosen one's pace.
		a.choose(now, p, out)
		for _, q := range p.paths {
			if q.due(now) {
				a.ask(now, p, q, out)
			}
			next = earlier(next, q.wake(now))
		}
		if w := a.findSizes(now, p, out); !w.IsZero() {
			next = earlier(next, w)
		}
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// prune forgets observed sources that never answered.
func (a *Agent) prune(now time.Time, p *peer) bool {
	n := len(p.paths)
	p.paths = slices.DeleteFunc(p.paths, func(q *path) bool {
		return q.kind == protocol.PathDirect && !q.netmap && q.lastAnswer.IsZero() && now.Sub(q.lastSeen) > seenFor && q != p.chosen
	})
	return len(p.paths) != n
}

func (a *Agent) question(now time.Time) question {
	a.seq++
	return question{nonce: a.cfg.Rand(), seq: a.seq, at: now}
}

// ask sends a question over q, if it leads anywhere now.
func (a *Agent) ask(now time.Time, p *peer, q *path, out *Output) {
	if q.kind == protocol.PathRelay && (q.hub.chosen == nil || !q.hub.chosen.alive(now)) {
		q.next = now.Add(suspectEvery)
		return
	}
	if !q.unanswered.IsZero() {
		p.keys.turn(now, &a.own)
	}
	if k, _ := p.keys.sender(&a.own, p.Key); k == nil {
		q.next = now.Add(searchEvery)
		return
	}
	if q.rare && q.lastAnswer.IsZero() && p.goodDirect(now) {
		q.next = now.Add(standbyEvery)
		return
	}
	if q.kind == protocol.PathDirect && !q.alive(now) && !a.spend.take(now, &p.spent, q.addr.Addr(), q.tries == 0) {
		q.next = now.Add(spentRetry)
		return
	}
	qu := a.question(now)
	q.sent(qu)
	q.next = now.Add(q.pause(now, q == p.chosen))
	a.sendQuestion(now, p, q, qu, out)
}

// sendQuestion sends qu over q, which leads somewhere; the keys are there.
func (a *Agent) sendQuestion(now time.Time, p *peer, q *path, qu question, out *Output) {
	h := a.hop(p, q)
	k, epoch := p.keys.sender(&a.own, p.Key)
	if k == nil {
		return
	}
	m := protocol.Probe{Number: h.Number, Kind: protocol.ProbeQuestion, From: a.cfg.Self, To: p.Number, KeyEpoch: epoch,
		PathID: q.id, Boot: a.cfg.Boot, Nonce: qu.nonce}
	if qu.size > 0 {
		m.Padding = uint16(qu.size - protocol.ProbeSize)
	}
	if now.Sub(p.traffic) < activeFor {
		m.Flags |= protocol.ProbeActive
	}
	if q.accused(now) {
		m.Flags |= protocol.ProbeLeft
	}
	out.Sends = append(out.Sends, Send{To: h.Addr, Data: m.Append(nil, &k.Send)})
}

// findSizes sends the padded questions that are due to an active peer and
// returns when it wants to be called next; zero: whenever. Of the paths that
// carry nothing one at a time is searched, after the chosen one.
func (a *Agent) findSizes(now time.Time, p *peer, out *Output) (next time.Time) {
	mayStart := p.chosen == nil || p.chosen.sizes().size > 0
	for _, q := range p.paths {
		mayStart = mayStart && len(q.sizes().round) == 0
	}
	for _, q := range p.paths {
		if q.kind == protocol.PathRelay && (q.hub.chosen == nil || !q.hub.chosen.alive(now)) {
			continue
		}
		before := q.sizes().size
		for _, size := range q.sizes().want(now, q, q == p.chosen, mayStart) {
			qu := a.question(now)
			qu.size = size
			q.sizes().sent(qu)
			a.sendQuestion(now, p, q, qu, out)
		}
		if q == p.chosen && q.sizes().size != before {
			a.choose(now, p, out)
		}
		mayStart = mayStart && len(q.sizes().round) == 0
		if w := q.sizes().wake(now, q, q == p.chosen); !w.IsZero() && (next.IsZero() || w.Before(next)) {
			next = w
		}
	}
	return next
}

// TooLarge says that our own interface takes no datagram of size bytes to an
// address: nothing that anybody else can say. Call Tick soon after.
func (a *Agent) TooLarge(now time.Time, to netip.AddrPort, size int, out *Output) {
	for _, p := range a.active {
		for _, q := range p.paths {
			if a.hop(p, q).Addr == to {
				q.sizes().refuse(now, q, size)
			}
		}
		a.choose(now, p, out)
	}
	out.Again = true
}

func (a *Agent) askHub(now time.Time, h *hub, p *path, out *Output) {
	if !p.unanswered.IsZero() {
		h.keys.turn(now, &a.own)
	}
	k, epoch := h.keys.sender(&a.own, h.Key)
	if k == nil {
		p.next = now.Add(searchEvery)
		return
	}
	q := a.question(now)
	p.sent(q)
	p.next = now.Add(a.hubPause(now, h, p))
	m := protocol.Probe{Kind: protocol.ProbeHubQuestion, From: a.cfg.Self, To: h.Number, KeyEpoch: epoch,
		PathID: p.id, Boot: a.cfg.Boot, Nonce: q.nonce}
	out.Sends = append(out.Sends, Send{To: p.addr, Data: m.Append(nil, &k.Send)})
}

// hubPause is path.pause for a hub's path: the one that data goes over is
// watched as closely as any.
func (a *Agent) hubPause(now time.Time, h *hub, p *path) time.Duration {
	d := p.pause(now, p == h.chosen)
	if p == h.chosen && len(a.active) > 0 {
		d = min(d, chosenEvery)
	}
	return d
}
