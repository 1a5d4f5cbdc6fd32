package probe

import (
	"slices"
	"time"

	"causeway/protocol"
)

// How good a path is; a higher one is taken.
const (
	rankNone     = iota
	rankLast     // proven once, silent now: better than dropping when no hub is there
	rankSuspect  // answers, and carries no data
	rankStream   // as rankRelay, over a stream
	rankRelay    // the hub has us bound: data can start, though the peer has not answered over it yet
	rankLossy    // a relay that the peer answers over, and that loses much
	rankUnsteady // answers, and loses much or failed a short time ago
	rankTCP      // a stream that the peer answers over
	rankAlive    // a relay that the peer answers over
	rankDirect
)

func (a *Agent) rank(now time.Time, p *peer, q *path) int {
	// An idle peer's paths are not probed, so nothing is known of them.
	live := q.alive(now) && a.active[p.Number] != nil
	if q.kind == protocol.PathRelay {
		switch {
		case q.hub.chosen == nil || !q.hub.chosen.alive(now):
			return rankNone
		case live && q.suspect(now):
			return rankSuspect
		case live && q.hub.chosen.stream:
			return rankTCP
		case live && (q.lossy || !q.steady(now)):
			return rankLossy
		case live:
			return rankAlive
		case q.hub.chosen.stream:
			return rankStream
		}
		return rankRelay
	}
	switch {
	case live && q.suspect(now):
		return rankSuspect
	case live && !q.lossy && q.steady(now):
		return rankDirect
	case live:
		return rankUnsteady
	case !q.lastAnswer.IsZero():
		return rankLast
	}
	return rankNone
}

// better reports whether challenger c, of the same rank, beats the chosen one.
// A path keeps its place unless another one is clearly shorter.
func better(c, chosen *path) bool {
	return c.rtt > 0 && chosen.rtt > 0 && c.rtt+time.Millisecond < chosen.rtt*3/4
}

// prefer decides between q and the best so far, of the same rank.
func prefer(q, best, chosen *path) bool {
	switch chosen {
	case q:
		return !better(best, q)
	case best:
		return better(q, best)
	}
	return q.rtt > 0 && (best.rtt == 0 || q.rtt < best.rtt)
}

// choose decides over p's path and publishes its route.
func (a *Agent) choose(now time.Time, p *peer, out *Output) {
	if c := p.chosen; c != nil && c.silent(now) && c.kind == protocol.PathDirect && !c.goodSince.IsZero() {
		c.fails++
		c.goodSince = time.Time{}
	}
	a.relays(now, p)
	if a.active[p.Number] != nil {
		for _, q := range p.paths {
			q.judgeLoss(now, q == p.chosen)
		}
		p.trial.tryOther(now, p.chosen, func() bool {
			return slices.ContainsFunc(p.paths, func(q *path) bool { return q != p.chosen && a.rank(now, p, q) >= rankTCP })
		})
	}
	var best *path
	bestRank := rankNone
	for _, q := range p.paths {
		r := a.rank(now, p, q)
		if r > bestRank || r == bestRank && best != nil && prefer(q, best, p.chosen) {
			best, bestRank = q, r
		}
	}
	if best != p.chosen {
		p.chosen, p.chosenSince = best, now
	}
	r := Route{Kind: protocol.PathNone, Since: p.chosenSince, Size: p.route.Size}
	if best != nil && a.active[p.Number] != nil {
		r.Size = best.sizes().size
	}
	if best != nil {
		r.Kind, r.Hop = best.kind, a.hop(p, best)
		if protocol.IsStream(r.Hop.Addr) {
			r.Kind = protocol.PathStream
		}
		r.Live = append(r.Live, r.Hop)
		for _, q := range p.paths {
			if q != best && (q.alive(now) || q.kind == protocol.PathRelay && a.rank(now, p, q) != rankNone) {
				if h := a.hop(p, q); h.Addr.IsValid() {
					r.Live = append(r.Live, h)
				}
			}
		}
	}
	r.Stream = a.streamHop(now, p)
	for _, q := range p.paths {
		if q.kind == protocol.PathRelay {
			r.Relays = append(r.Relays, Relay{q.hub.Number, q.tally})
		}
	}
	if !r.same(p.route) {
		p.route = r
		out.Routes = append(out.Routes, p.Number)
	}
}

func (a *Agent) hop(p *peer, q *path) Hop {
	if q.kind != protocol.PathRelay {
		return Hop{Addr: q.addr, Number: a.cfg.Self, path: q.tally}
	}
	if q.hub.chosen == nil {
		return Hop{}
	}
	return Hop{Addr: q.hub.chosen.addr, Number: p.Number, path: q.tally, leg: q.hub.chosen.tally}
}

// streamHop leads over the stream of a hub to peer p; nil: to the hub itself.
func (a *Agent) streamHop(now time.Time, p *peer) Hop {
	for _, number := range a.hubNumbers() {
		for _, q := range a.hubs[number].paths {
			if !q.stream || !q.alive(now) {
				continue
			}
			h := Hop{Addr: q.addr, leg: q.tally}
			if p != nil {
				h.Number, h.path, h.large = p.Number, a.relay(now, p, a.hubs[number]).tally, true
			}
			return h
		}
	}
	return Hop{}
}

// chooseHub decides over the path to h: it stays while it answers and no other
// has a higher rank.
func (a *Agent) chooseHub(now time.Time, h *hub, out *Output) {
	if c := h.chosen; c != nil && !c.stream && c.doubtful(now) && !c.goodSince.IsZero() {
		c.fails++
		c.goodSince = time.Time{}
	}
	h.trial.tryOther(now, h.chosen, func() bool {
		for _, p := range h.paths {
			if p != h.chosen && p.alive(now) && p.hubRank(now) >= hubRankStream {
				return true
			}
		}
		if h.Stream.IsValid() && !h.chosen.stream {
			a.NeedStreams(now)
		}
		return false
	})
	var best *path
	bestRank := 0
	for _, p := range h.paths {
		if !p.alive(now) {
			continue
		}
		r := p.hubRank(now)
		if best == nil || r > bestRank || r == bestRank && best != h.chosen && (p == h.chosen || p.rtt < best.rtt) {
			best, bestRank = p, r
		}
	}
	if best != nil && best != h.chosen {
		h.chosen = best
		// Only a confirmation over it makes the hub send there.
		best.soon(now)
	}
	r := Route{Kind: protocol.PathNone, Since: h.route.Since}
	if h.chosen != nil && h.chosen.alive(now) {
		r.Kind, r.Hop = protocol.PathDirect, Hop{Addr: h.chosen.addr, leg: h.chosen.tally}
		if h.chosen.stream {
			r.Kind = protocol.PathStream
		}
		r.Stream = a.streamHop(now, nil)
		r.Live = append(r.Live, r.Hop)
		for _, p := range h.paths {
			if p != h.chosen && p.alive(now) {
				r.Live = append(r.Live, Hop{Addr: p.addr, leg: p.tally})
			}
		}
	}
	if r.same(h.route) {
		return
	}
	if r.Kind != h.route.Kind || r.Hop != h.route.Hop {
		r.Since = now
	}
	h.route = r
	out.Routes = append(out.Routes, h.Number)
	for _, p := range a.active {
		a.choose(now, p, out)
	}
	for _, p := range a.peers { // idle ones follow the hub too
		if a.active[p.Number] == nil {
			a.choose(now, p, out)
		}
	}
}
