package probe

import (
	"net/netip"
	"slices"
	"time"

	"causeway/protocol"
)

// Timing of an agent's probes. A path is left 1.2 seconds and a round trip after
// its last answer: the next question goes out after 0.3 seconds, further ones in
// short order once an answer is late, and deadAfter after the first
// unanswered one the path is dead. TCP inside sends again after 0.2, 0.6, 1.4 and
// 3.0 seconds: left before the third, a dead path costs it half the time.
const (
	chosenEvery  = 300 * time.Millisecond
	standbyEvery = time.Second
	suspectEvery = 200 * time.Millisecond
	searchEvery  = 5 * time.Second  // of candidates that did not answer the first tries
	privateEvery = 10 * time.Minute // of those in private ranges
	hubEvery     = time.Second
	hubDeadEvery = 500 * time.Millisecond
	minEvery     = 50 * time.Millisecond // between two questions over one path

	late      = 300 * time.Millisecond // plus twice the round trip: an answer is late
	deadAfter = 900 * time.Millisecond
	staleAt   = 4 * time.Second // an answer this old says nothing any more
	lostAfter = 5 * time.Second // a question this old is answered no more

	activeFor = 10 * time.Second // after the last traffic
	askedFor  = 3 * time.Second  // after a question of a peer that has traffic
	seenFor   = 10 * time.Second // a source of authenticated questions
)

// searchTries are the pauses between the first questions over a candidate.
var searchTries = [...]time.Duration{150 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

type question struct {
	nonce uint64
	seq   uint64
	at    time.Time
	sent  protocol.DataCounts // over the path until then
	large uint32              // of these, runs larger than it carries
	size  int                 // of a padded one
	done  bool                // answered, perhaps after a later one was
}

// path is one way to a peer (direct, or relay through a hub) or to a hub.
type path struct {
	id   uint16
	kind protocol.PathKind
	addr netip.AddrPort // the peer's or hub's; not set for a relay, which goes where its hub is
	hub  *hub           // relay

	stream bool // to a hub
	down   bool // a stream that is not connected

	netmap bool // direct: a candidate of the netmap, not an observed source
	rare   bool // a candidate in a private range: few questions, then long pauses

	asked      []question // the last ones, oldest first
	closed     uint64     // the newest of them that was answered
	lossy      bool       // see loss.go
	next       time.Time  // of the next question
	lastAsked  time.Time
	unanswered time.Time // the first question after the last answer; zero: none
	lastAnswer time.Time // to our own question: the only proof
	lastSeen   time.Time // authenticated question over it
	// noInterface is what the last answer said of the peer.
	noInterface bool
	rtt         time.Duration
	tries       int
	fails       int       // times it died or lost too much while chosen
	goodSince   time.Time // answers without a death since
	udpSizes    sizeSearch
	tcpSizes    sizeSearch // of a relay, while its hub is reached over a stream

	tally   *Tally
	out, in flow // in: of a hub's path alone
	doubt   suspicion
	resting time.Time // until when another path is tried instead
	told    time.Time // until when the other end's word counts that it left the path
}

// sizes is the search that goes on over the path as it leads now.
func (p *path) sizes() *sizeSearch {
	if p.kind == protocol.PathRelay && p.hub.chosen != nil && p.hub.chosen.stream {
		p.tcpSizes.most = streamSize
		return &p.tcpSizes
	}
	return &p.udpSizes
}

// alive reports whether the path was proven lately.
func (p *path) alive(now time.Time) bool {
	stale := staleAt
	if p.stream {
		stale = streamStaleAt
	}
	return !p.lastAnswer.IsZero() && now.Sub(p.lastAnswer) < stale && !p.silent(now)
}

func (p *path) silent(now time.Time) bool {
	return !p.unanswered.IsZero() && now.Sub(p.unanswered) >= p.patience()+p.rtt
}

// patience is how long a question may be unanswered before the path is dead.
func (p *path) patience() time.Duration {
	if p.stream {
		return streamDeadAfter
	}
	return deadAfter
}

// steady reports whether a path that failed before has made up for it: each
// failure doubles the time that it has to answer before it is chosen again.
func (p *path) steady(now time.Time) bool {
	if p.fails == 0 {
		return true
	}
	return now.Sub(p.goodSince) >= time.Second<<min(p.fails, mostFails)
}

// sent notes a question.
func (p *path) sent(q question) {
	if len(p.asked) == remembered {
		p.asked = append(p.asked[:0], p.asked[1:]...)
	}
	q.sent, q.large = p.snapshot()
	p.asked = append(p.asked, q)
	p.lastAsked = q.at
	if p.unanswered.IsZero() {
		p.unanswered = q.at
	}
	p.tries++
}

// snapshot is what was sent so far; whatever large of it is counted, large has too.
func (p *path) snapshot() (sent protocol.DataCounts, large uint32) {
	sent = p.tally.Counts().Sent
	return sent, p.tally.large.Load()
}

// open finds the question with this nonce that is to be answered still. closed:
// a later one was answered before, so that an answer says no more than that
// this one was not lost.
func (p *path) open(nonce uint64, now time.Time) (q question, closed, ok bool) {
	for _, q := range p.asked {
		if q.nonce == nonce && !q.done && now.Sub(q.at) < lostAfter {
			return q, q.seq <= p.closed, true
		}
	}
	return question{}, false, false
}

// left notes what had been sent until the second question of an exchange, with q's nonce.
func (p *path) left(nonce uint64) {
	for i := range p.asked {
		if p.asked[i].nonce == nonce {
			p.asked[i].sent, p.asked[i].large = p.snapshot()
		}
	}
}

// arrived notes that q was not lost.
func (p *path) arrived(q question) {
	for i := range p.asked {
		if p.asked[i].seq == q.seq {
			p.asked[i].done = true
		}
	}
}

// measure takes the time from q to now into the round trip.
func (p *path) measure(q question, now time.Time) {
	if d := now.Sub(q.at); p.rtt == 0 {
		p.rtt = d
	} else {
		p.rtt += (d - p.rtt) / 4
	}
}

// answered closes q, and all before it as evidence of anything but loss.
func (p *path) answered(q question, now time.Time) {
	if !p.alive(now) {
		// What was lost while it was dead is no matter of loss.
		p.asked = slices.DeleteFunc(p.asked, func(o question) bool { return o.seq < q.seq })
		p.goodSince = now
		p.out, p.in = flow{}, flow{}
	} else if p.goodSince.IsZero() {
		p.goodSince = now
	} else if p.fails > 0 && now.Sub(p.goodSince) > time.Minute {
		p.fails = 0
	}
	p.lastAnswer, p.unanswered, p.tries, p.closed = now, time.Time{}, 0, max(p.closed, q.seq)
	p.arrived(q)
	for _, o := range p.asked {
		if o.seq > q.seq && !o.done {
			p.unanswered = o.at
			break
		}
	}
}

// pause is the time from a question sent now to the next one.
func (p *path) pause(now time.Time, chosen bool) time.Duration {
	if p.alive(now) {
		switch {
		case !p.unanswered.IsZero() && now.Sub(p.unanswered) >= late+2*p.rtt:
			return suspectEvery
		case p.kind == protocol.PathNone: // a hub
			return hubEvery
		case chosen && p.lostLately(now):
			return watchEvery
		case p.lossy:
			return lossyEvery
		case chosen:
			return chosenEvery
		}
		return standbyEvery
	}
	if p.kind == protocol.PathNone {
		return hubDeadEvery
	}
	if p.tries <= len(searchTries) {
		return searchTries[max(p.tries-1, 0)]
	}
	if p.rare {
		return privateEvery
	}
	return searchEvery
}

// soon brings the next question forward, to at most one per minEvery.
func (p *path) soon(now time.Time) {
	at := now
	if e := p.lastAsked.Add(minEvery); at.Before(e) {
		at = e
	}
	if p.next.After(at) || p.next.IsZero() {
		p.next = at
	}
}

// due recomputes whether an answer has become late, and reports whether a
// question is to be sent.
func (p *path) due(now time.Time) bool {
	if p.down {
		return false
	}
	if !p.unanswered.IsZero() && p.alive(now) && now.Sub(p.unanswered) >= late+2*p.rtt && now.Sub(p.lastAsked) >= suspectEvery {
		return true
	}
	return !now.Before(p.next)
}

// wake is when the path next has something to do.
func (p *path) wake(now time.Time) time.Time {
	if p.down {
		return now.Add(time.Second)
	}
	w := p.next
	if !p.unanswered.IsZero() && p.alive(now) {
		s := p.unanswered.Add(late + 2*p.rtt)
		if a := p.lastAsked.Add(suspectEvery); a.After(s) {
			s = a
		}
		if d := p.unanswered.Add(p.patience() + p.rtt); d.Before(s) {
			s = d
		}
		if s.Before(w) {
			w = s
		}
	}
	return w
}
