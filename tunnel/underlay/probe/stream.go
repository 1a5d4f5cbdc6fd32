package probe

import (
	"net/netip"
	"time"

	"causeway/protocol"
)

// Streams are for when no hub answers over UDP. They are dialled when that is
// in doubt, and used when UDP is in doubt still, so that a path cut in
// mid-flow costs about a second; and they stay for a while after UDP is back.
const (
	streamAfter = time.Second            // from the start, without an answer over UDP
	doubtAfter  = 500 * time.Millisecond // plus twice the round trip: of a question without an answer
	streamKeep  = 30 * time.Second       // after it was wanted last

	// A stream's answers come late when a segment was lost, and TCP itself
	// tells of a connection that is gone.
	streamDeadAfter = 4 * time.Second
	streamStaleAt   = 6 * time.Second
)

// doubtful reports whether a path is dead, or soon may be.
func (p *path) doubtful(now time.Time) bool {
	return !p.alive(now) || !p.unanswered.IsZero() && now.Sub(p.unanswered) >= doubtAfter+2*p.rtt
}

// newStream adds the stream of h, if it has one. It leads nowhere until StreamUp.
func (a *Agent) newStream(h *hub, keep []*path) {
	if !protocol.IsStream(h.Stream) {
		return
	}
	var p *path
	for _, q := range keep {
		if q.addr == h.Stream {
			p = q
		}
	}
	if p == nil {
		p = a.newPath(protocol.PathNone)
		p.addr, p.stream, p.down = h.Stream, true, true
	}
	h.paths = append(h.paths, p)
	a.hubAddrs[h.Stream], a.hubOf[h.Stream] = p, h
}

// StreamUp says that a stream is connected, and may be probed.
func (a *Agent) StreamUp(now time.Time, addr netip.AddrPort) {
	if p := a.hubAddrs[addr]; p != nil && p.stream {
		*p = path{id: p.id, addr: p.addr, stream: true, next: now, tally: p.tally}
	}
}

// StreamDown says that a stream is connected no more.
func (a *Agent) StreamDown(now time.Time, addr netip.AddrPort, out *Output) {
	p, h := a.hubAddrs[addr], a.hubOf[addr]
	if p == nil || !p.stream {
		return
	}
	*p = path{id: p.id, addr: p.addr, stream: true, down: true, tally: p.tally}
	a.chooseHub(now, h, out)
}

// StreamSilent reports whether a connected stream has answered nothing for so
// long that it is better dialled again.
func (a *Agent) StreamSilent(now time.Time, addr netip.AddrPort) bool {
	p := a.hubAddrs[addr]
	return p != nil && p.stream && !p.down && p.silent(now)
}

// NeedStreams wants the hubs' streams for a while, whatever UDP does.
func (a *Agent) NeedStreams(now time.Time) { a.streamUntil = now.Add(streamKeep) }

// StreamsWanted reports whether streams are to be connected now.
func (a *Agent) StreamsWanted(now time.Time) bool {
	doubt, used, any := true, false, false
	for _, h := range a.hubs {
		used = used || h.chosen != nil && h.chosen.stream
		for _, p := range h.paths {
			any = any || p.stream
			doubt = doubt && (p.stream || p.doubtful(now) || p.suspect(now))
		}
	}
	if any && a.since.IsZero() {
		a.since = now
	}
	if any && (used || doubt && (a.heard || now.Sub(a.since) >= streamAfter)) {
		a.NeedStreams(now)
	}
	return any && now.Before(a.streamUntil)
}

// UDPBlocked reports whether hubs answer over streams alone.
func (a *Agent) UDPBlocked(now time.Time) bool {
	streams := false
	for _, h := range a.hubs {
		for _, p := range h.paths {
			if p.alive(now) {
				if !p.stream {
					return false
				}
				streams = true
			}
		}
	}
	return streams
}

// Ranks of a hub's paths; the highest that answers is taken.
const (
	hubRankSuspect = iota // UDP, and carries no data
	hubRankLast           // UDP, in doubt or failed a short time ago
	hubRankStream         // a stream
	hubRankUDP
)

// hubRank is the rank of a path to a hub that answers, or would if it answered now.
func (p *path) hubRank(now time.Time) int {
	switch {
	case p.stream:
		return hubRankStream
	case p.suspect(now):
		return hubRankSuspect
	case p.alive(now) && p.doubtful(now), !p.steady(now), p.fails > 0 && p.goodSince.IsZero():
		return hubRankLast
	}
	return hubRankUDP
}
