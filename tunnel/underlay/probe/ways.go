package probe

import (
	"time"

	"causeway/protocol"
)

// maxWays bounds what Ways tells of one peer.
const maxWays = 32

// Ways lists the ways to a peer or hub that are tried, the chosen one marked;
// nothing for a number that is neither.
func (a *Agent) Ways(now time.Time, number protocol.NodeNumber) (out []protocol.Way) {
	paths, chosen := []*path(nil), (*path)(nil)
	if p := a.peers[number]; p != nil {
		paths, chosen = p.paths, p.chosen
	} else if h := a.hubs[number]; h != nil {
		paths, chosen = h.paths, h.chosen
	}
	age := func(t time.Time) time.Duration {
		if t.IsZero() {
			return -1
		}
		return now.Sub(t)
	}
	for _, q := range paths[:min(len(paths), maxWays)] {
		w := protocol.Way{Kind: q.kind, Chosen: q == chosen, Unanswered: q.tries, RTT: q.rtt,
			Answered: age(q.lastAnswer), Heard: age(q.lastSeen), Asked: age(q.lastAsked)}
		w.NoInterface, w.Gaps = q.noInterface, q.gaps(now)
		if q.suspect(now) {
			w.Suspect = q.whyLeft(now)
		}
		switch {
		case q.stream:
			w.Kind = protocol.PathStream
		case q.kind == protocol.PathNone: // a hub
			w.Kind, w.Addr = protocol.PathDirect, q.addr
		case q.kind == protocol.PathDirect:
			w.Addr = q.addr
		}
		out = append(out, w)
	}
	return out
}
