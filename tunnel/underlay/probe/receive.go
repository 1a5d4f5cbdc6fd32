package probe

import (
	"net/netip"
	"slices"
	"time"

	"causeway/protocol"
)

// Receive takes a probe that came from src. It keeps nothing of data.
func (a *Agent) Receive(now time.Time, src netip.AddrPort, data []byte, out *Output) Reason {
	m, err := protocol.ParseProbe(data)
	if err != nil {
		return Malformed
	}
	if m.To != a.cfg.Self {
		return Misaddressed
	}
	switch m.Kind {
	case protocol.ProbeQuestion, protocol.ProbeAnswer:
		return a.fromPeer(now, src, m, data, out)
	case protocol.ProbeChallenge, protocol.ProbeAcknowledge:
		return a.fromHub(now, src, m, data, out)
	}
	return Misaddressed
}

func (a *Agent) fromPeer(now time.Time, src netip.AddrPort, m protocol.Probe, data []byte, out *Output) Reason {
	p := a.peers[m.From]
	if p == nil {
		return UnknownSender
	}
	if m.Number != m.From {
		return Misaddressed
	}
	via := a.hubOf[src]
	if via == nil && protocol.IsStream(src) { // of a hub that is one no more
		return UnknownSender
	}
	if via == nil && !p.Direct {
		return Forbidden
	}
	if !p.keys.verify(now, &a.own, p.Key, data) {
		return Unauthenticated
	}
	if m.Kind == protocol.ProbeAnswer {
		return a.answer(now, p, a.find(p, via, src), m, out)
	}

	limit := &p.answers
	if p.known && m.Boot != p.boot {
		// Perhaps an old run's question, recorded: it shall not use up what the
		// present run may ask.
		limit = &p.strangers
	}
	if !p.seen.add(m.Nonce) {
		return Replayed
	}
	if !limit.take(now) {
		return Limited
	}
	q := a.find(p, via, src)
	if q == nil {
		q = a.observe(now, p, via, src)
	}
	if q.kind == protocol.PathDirect && q.lastSeen.IsZero() {
		out.Changed = true
	}
	q.lastSeen = now
	if m.Flags&protocol.ProbeActive != 0 {
		p.wanted = now
		a.activate(now, p)
	}
	if m.Flags&protocol.ProbeLeft != 0 && a.active[p.Number] != nil {
		q.told = now.Add(toldFor)
		if q == p.chosen {
			a.choose(now, p, out)
		}
	}
	// Its own path is tried at once, and a new boot id is asked for at once;
	// the question leaves before the answer, so that our own proof is not late.
	if !p.known || p.boot != m.Boot || a.active[p.Number] != nil && !q.alive(now) {
		if now.Sub(q.lastAsked) >= minEvery {
			a.ask(now, p, q, out)
		}
	}
	k, epoch := p.keys.sender(&a.own, p.Key)
	number, r := a.cfg.Self, protocol.Probe{Kind: protocol.ProbeAnswer, From: a.cfg.Self, To: p.Number, KeyEpoch: epoch,
		PathID: m.PathID, Boot: a.cfg.Boot, Nonce: m.Nonce}
	if via != nil {
		number = p.Number
	} else {
		r.Observed = src
	}
	r.Number = number
	if a.noInterface {
		r.Flags |= protocol.ProbeNoInterface
	}
	r.Flags |= protocol.ProbeCounts
	r.Counts = q.tally.Counts()
	if a.blind(now) {
		r.Flags |= protocol.ProbeOverrun
	}
	out.Sends = append(out.Sends, Send{To: src, Data: r.Append(nil, &k.Send)})
	return OK
}

// find returns the path that a datagram from src came over.
func (a *Agent) find(p *peer, via *hub, src netip.AddrPort) *path {
	for _, q := range p.paths {
		if via != nil && q.kind == protocol.PathRelay && q.hub == via || via == nil && q.kind == protocol.PathDirect && q.addr == src {
			return q
		}
	}
	return nil
}

// observe adds the path that an authenticated question came over: no more than
// a candidate.
func (a *Agent) observe(now time.Time, p *peer, via *hub, src netip.AddrPort) *path {
	if via != nil {
		return a.relay(now, p, via)
	}
	n, worst := 0, -1
	for i, q := range p.paths {
		if q.kind != protocol.PathDirect || q.netmap {
			continue
		}
		n++
		// The one to give up: never proven before proven, then the longest unseen.
		if w := worst; q != p.chosen && (w < 0 || q.lastAnswer.Before(p.paths[w].lastAnswer) ||
			q.lastAnswer.Equal(p.paths[w].lastAnswer) && q.lastSeen.Before(p.paths[w].lastSeen)) {
			worst = i
		}
	}
	if n >= maxObserved && worst >= 0 {
		p.paths = slices.Delete(p.paths, worst, worst+1)
	}
	q := a.newPath(protocol.PathDirect)
	q.addr, q.next = src, now
	p.paths = append(p.paths, q)
	return q
}

func (a *Agent) answer(now time.Time, p *peer, q *path, m protocol.Probe, out *Output) Reason {
	if q == nil || m.PathID != q.id {
		return Replayed
	}
	if qu, ok := q.sizes().find(m.Nonce, now); ok {
		if !p.proven(p.Number, m.Boot, qu.seq, out) {
			return Replayed
		}
		q.sizes().answered(now, q, qu)
		a.choose(now, p, out)
		out.Again = true
		return OK
	}
	qu, closed, ok := q.open(m.Nonce, now)
	if !ok || !p.proven(p.Number, m.Boot, qu.seq, out) {
		return Replayed
	}
	if closed {
		q.arrived(qu)
		return OK
	}
	if q.kind == protocol.PathDirect && q.lastAnswer.IsZero() {
		out.Changed = true
	}
	out.Again = out.Again || q.sizes().size == 0
	q.measure(qu, now)
	q.answered(qu, now)
	if q.kind == protocol.PathDirect {
		a.spend.proven(&p.spent, q.addr.Addr())
	}
	q.noInterface = m.Flags&protocol.ProbeNoInterface != 0
	before := q.accused(now)
	if m.HasCounts() {
		q.out.compare(now, qu.sent, m.Counts.Received, qu.large, m.Flags&protocol.ProbeOverrun != 0)
		// Handshakes go over every path that answers: one that loses them alone is good for the rest.
		q.judgeData(now, 1)
	}
	a.choose(now, p, out)
	q.next = q.lastAsked.Add(q.pause(now, q == p.chosen))
	if !before && q.accused(now) {
		q.next = q.lastAsked.Add(minEvery) // the other end is told soon
	}
	return OK
}

func (a *Agent) fromHub(now time.Time, src netip.AddrPort, m protocol.Probe, data []byte, out *Output) Reason {
	h, p := a.hubOf[src], a.hubAddrs[src]
	if h == nil || h.Number != m.From {
		return UnknownSender
	}
	if m.Number != 0 {
		return Misaddressed
	}
	if !h.keys.verify(now, &a.own, h.Key, data) {
		return Unauthenticated
	}
	q, closed, ok := p.open(m.Nonce, now)
	if !ok || closed || m.PathID != p.id || !h.proven(h.Number, m.Boot, q.seq, out) {
		return Replayed
	}
	if m.Kind == protocol.ProbeAcknowledge {
		p.answered(q, now)
		if m.HasCounts() {
			p.out.compare(now, q.sent, m.Counts.Received, q.large, m.Flags&protocol.ProbeOverrun != 0)
			p.in.compare(now, m.Counts.Sent, p.tally.Counts().Received, 0, a.blind(now))
			p.judgeData(now, 0)
		} else {
			p.doubt.handshake = nil // nothing can prove it
		}
		a.heard = a.heard || !p.stream
		a.chooseHub(now, h, out)
		p.next = p.lastAsked.Add(a.hubPause(now, h, p))
		return OK
	}
	p.measure(q, now)
	k, epoch := h.keys.sender(&a.own, h.Key)
	r := protocol.Probe{Kind: protocol.ProbeConfirm, From: a.cfg.Self, To: h.Number, KeyEpoch: epoch,
		PathID: p.id, Boot: a.cfg.Boot, Nonce: m.Nonce, Stamp: m.Stamp, Cookie: m.Cookie}
	if h.chosen == nil || h.chosen == p || !h.chosen.alive(now) || h.chosen.hubRank(now) < p.hubRank(now) {
		h.counter++
		r.Counter = h.counter
	}
	p.left(m.Nonce)
	out.Sends = append(out.Sends, Send{To: src, Data: r.Append(nil, &k.Send)})
	return OK
}
