package probe

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"causeway/protocol"
)

// View is how peer n is reached, over what else it could be, and why so. Addresses
// of streams are the underlay's names for them. false: n is no peer.
func (a *Agent) View(now time.Time, n protocol.NodeNumber) (v protocol.PathView, ok bool) {
	p := a.peers[n]
	if p == nil {
		return v, false
	}
	v.PathStatus = a.status(now, p)
	if r := a.Route(n); r.Size > 0 {
		v.Size = packetSize(r.Size, r.Hop.Addr)
	}
	v.Candidates = []protocol.PathCandidate{}
	for _, q := range p.paths {
		c := protocol.PathCandidate{Path: q.kind, Addr: a.hop(p, q).Addr, Chosen: q == p.chosen, State: a.stateOf(now, p, q), RTT: q.rtt, Loss: q.loss(now), Answered: q.lastAnswer}
		if q.hub != nil {
			c.Hub = q.hub.Number
		}
		if protocol.IsStream(c.Addr) {
			c.Path = protocol.PathStream
		}
		if size := q.sizes().size; size > 0 {
			c.Size = packetSize(size, c.Addr)
		}
		v.Candidates = append(v.Candidates, c)
	}
	slices.SortStableFunc(v.Candidates, func(x, y protocol.PathCandidate) int {
		if x.Chosen != y.Chosen {
			return map[bool]int{true: -1, false: 1}[x.Chosen]
		}
		return cmp.Compare(x.Addr.String(), y.Addr.String())
	})
	v.Candidates = v.Candidates[:min(len(v.Candidates), protocol.MaxPathCandidates)]
	v.Why = a.why(now, p)
	return v, true
}

// Suspects lists paths that answer probes and are left alone all the same, by peer.
func (a *Agent) Suspects(now time.Time) (l []protocol.SuspectPath) {
	add := func(n protocol.NodeNumber, q *path, kind protocol.PathKind, at netip.AddrPort, route Route) {
		if route.Hop.Addr == at { // there is nothing else
			route.Kind = protocol.PathNone
		}
		if q.doubt.handshake != nil || !q.doubt.until.IsZero() && now.Sub(q.doubt.until) < suspectShown {
			l = append(l, protocol.SuspectPath{Peer: n, Path: kind, Addr: at, Why: q.doubt.why, Since: q.doubt.since, Until: q.doubt.until, Instead: route.Kind})
		}
	}
	for n, h := range a.hubs {
		for _, q := range h.paths {
			add(n, q, protocol.PathDirect, q.addr, h.route)
		}
	}
	for n, p := range a.peers {
		for _, q := range p.paths {
			add(n, q, q.kind, a.hop(p, q).Addr, p.route)
		}
	}
	slices.SortFunc(l, func(x, y protocol.SuspectPath) int {
		return cmp.Or(cmp.Compare(x.Peer, y.Peer), x.Addr.Compare(y.Addr))
	})
	return l
}

// packetSize is the IP packet around a UDP payload of size bytes; 0 over a stream.
func packetSize(size int, to netip.AddrPort) int {
	switch {
	case protocol.IsStream(to) || !to.IsValid():
		return 0
	case to.Addr().Unmap().Is4():
		return size + 20 + 8
	}
	return size + 40 + 8
}

func (a *Agent) stateOf(now time.Time, p *peer, q *path) string {
	switch {
	case a.active[p.Number] == nil:
		return protocol.PathIdle
	case q.alive(now) && q.suspect(now):
		return protocol.PathNoData
	case q.alive(now) && q.lossy:
		return protocol.PathLossy
	case q.alive(now) && !q.steady(now):
		return protocol.PathUnsteady
	case q.alive(now):
		return protocol.PathAnswers
	case !q.lastAnswer.IsZero():
		return protocol.PathSilent
	}
	return protocol.PathNever
}

// why says in a line why p's path is the chosen one: the reasons are those of rank.
func (a *Agent) why(now time.Time, p *peer) string {
	direct, answering := 0, 0
	var worse string // what keeps a direct path that was proven from being taken
	for _, q := range p.paths {
		if q.kind != protocol.PathDirect {
			continue
		}
		direct++
		switch s := a.stateOf(now, p, q); s {
		case protocol.PathAnswers:
			answering++
		case protocol.PathLossy:
			worse = fmt.Sprintf("the direct path to %s loses %.0f %%", q.addr, 100*q.loss(now))
		case protocol.PathNoData:
			worse = fmt.Sprintf("the direct path to %s is left alone: %s", q.addr, q.whyLeft(now))
		case protocol.PathUnsteady:
			worse = fmt.Sprintf("the direct path to %s failed a short time ago and has to last before it is taken again", q.addr)
		case protocol.PathSilent:
			if worse == "" {
				worse = fmt.Sprintf("the direct path to %s does not answer any more", q.addr)
			}
		}
	}
	if a.active[p.Number] == nil {
		return "no traffic to this peer for a while, so that paths are not asked; the last one is kept"
	}
	noDirect := worse
	switch {
	case worse != "":
	case !p.Direct:
		noDirect = "the sites' 'direct' setting allows no direct path"
	case direct == 0:
		noDirect = "no address of the peer is known"
	default:
		noDirect = fmt.Sprintf("none of the peer's %d addresses answers: a firewall or two NATs are between", direct)
	}
	c := p.chosen
	switch {
	case c == nil && len(a.hubs) == 0:
		return "no hub is known and " + noDirect
	case c == nil:
		return "no hub answers and " + noDirect
	case c.kind == protocol.PathDirect && a.rank(now, p, c) == rankLast:
		return "nothing answers; this path did last"
	case c.kind == protocol.PathDirect && answering > 1:
		return fmt.Sprintf("direct, and the shortest of %d that answer", answering)
	case c.kind == protocol.PathDirect && worse != "":
		return "nothing better answers, though " + worse
	case c.kind == protocol.PathDirect:
		return "it answers, and a direct path goes before the relay"
	}
	why := noDirect
	if c.hub.chosen != nil && c.hub.chosen.stream {
		why += "; the hub answers over TCP alone"
	}
	if !c.alive(now) {
		why += "; the peer has not answered over the relay"
	}
	return why
}
