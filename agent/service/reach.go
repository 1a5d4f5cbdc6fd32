package service

import (
	"slices"
	"time"

	"causeway/protocol"
)

// ReachState is how a node is reached on the way that data takes.
type ReachState uint8

// States of a node. New connections go to what is up; to what is not known yet where nothing is up.
const (
	Unknown   ReachState = iota // it never answered
	Up                          // it answers
	Suspect                     // it does not answer: new connections leave it
	Dead                        // it is silent: its connections are reset
	Probation                   // it answers again, and has to go on so
)

var stateWords = [...]string{"unknown", "up", "suspect", "dead", "probation"}

// String is the state's word.
func (s ReachState) String() string { return stateWords[s] }

const (
	restPause  = 250 * time.Millisecond // between two questions to who answers
	doubtPause = 100 * time.Millisecond // to who did not answer the last one
	// lostMin and lostMax bound how long an answer may take until its question counts as lost: twice what it took before,
	// and lostMin.
	lostMin = 60 * time.Millisecond
	lostMax = time.Second

	doubtfulAfter = 2  // questions lost in a row: it may be suspect soon
	suspectAfter  = 6  // questions lost in a row
	unknownAfter  = 20 // of who never answered: perhaps the tunnel has no way yet
	deadAfter     = 12 // and nothing else was heard of the node
	mutedAfter    = 30 // whatever else was heard: what is sent there does not arrive
	upAfter       = 10 // answers in a row, of who was suspect or dead

	// holdMin is how long who was suspect has to answer until he is up. It doubles up to holdMax with each relapse within
	// relapseTime.
	holdMin     = 2 * time.Second
	holdMax     = time.Minute
	relapseTime = 10 * time.Minute

	// lateMax is how late this agent may be at its own questions until it rather doubts itself: what it missed is no
	// answer that was lost.
	lateMax = 50 * time.Millisecond
	// mostAsks is how many questions a second are sent to those that answer, all of them together.
	mostAsks = 1000
	// leastTick is between two judgements.
	leastTick = 5 * time.Millisecond
	// maxAsked is how many questions to a node may be on their way.
	maxAsked = 32
)

// Reach decides which nodes are reached, by questions and answers. It has no clock and no I/O, and is not safe for
// concurrent use.
type Reach struct {
	peers map[protocol.NodeNumber]*reached
	order []protocol.NodeNumber // of peers
	due   time.Time             // when Tick was to be called
	Late  uint64                // how often this agent was late itself
}

// reached is one node.
type reached struct {
	state ReachState
	since time.Time // of the state
	next  time.Time // question
	seq   uint32
	asked []asked // on their way, the oldest first
	srtt  time.Duration
	lost  int // in a row
	good  int // answers in a row since it was suspect
	heard uint64
	quiet bool // nothing was heard since it was last asked about

	hold    time.Duration // that it has to answer after the last relapse
	relapse time.Time     // when it was suspect last
	last    time.Time     // answer
}

type asked struct {
	seq uint32
	at  time.Time
}

// Ask is a question that is due.
type Ask struct {
	Node protocol.NodeNumber
	Seq  uint32
}

// Set says which nodes matter. Others are forgotten.
func (r *Reach) Set(now time.Time, nodes []protocol.NodeNumber) {
	before := r.peers
	r.peers, r.order = make(map[protocol.NodeNumber]*reached, len(nodes)), slices.Compact(slices.Sorted(slices.Values(nodes)))
	for i, n := range r.order {
		if r.peers[n] = before[n]; r.peers[n] == nil {
			// Spread over a pause: they are not asked all at once.
			r.peers[n] = &reached{since: now, next: now.Add(restPause * time.Duration(i%16) / 64)}
		}
	}
}

// Tick judges what was not answered and returns the questions that are due, and when it is to be called next. heard is how
// many bytes came from a node, whatever they were; it is asked of doubtful ones alone.
func (r *Reach) Tick(now time.Time, heard func(protocol.NodeNumber) uint64) (out []Ask, next time.Time) {
	next = now.Add(restPause)
	if late := !r.due.IsZero() && now.Sub(r.due) > lateMax; late {
		r.Late++
		for _, p := range r.peers {
			p.asked = nil // whether they were answered in time nobody knows
		}
	}
	for _, n := range r.order {
		p := r.peers[n]
		if p.judge(now) {
			if p.lost >= suspectAfter {
				h := heard(n)
				p.quiet, p.heard = h == p.heard, h
			}
			p.decide(now)
		}
		if !now.Before(p.next) {
			p.seq++
			if p.asked = append(p.asked, asked{p.seq, now}); len(p.asked) > maxAsked {
				p.asked = p.asked[1:]
			}
			out = append(out, Ask{n, p.seq})
			p.next = now.Add(p.pause(len(r.order)))
		}
		if p.next.Before(next) {
			next = p.next
		}
		if len(p.asked) > 0 {
			if t := p.asked[0].at.Add(p.patience()); t.Before(next) {
				next = t
			}
		}
	}
	if least := now.Add(leastTick); next.Before(least) {
		next = least
	}
	r.due = next
	return out, next
}

// pause is that until the next question, where so many nodes are asked.
func (p *reached) pause(nodes int) time.Duration {
	if p.lost > 0 || p.state != Up {
		return doubtPause
	}
	return max(restPause, time.Duration(nodes)*time.Second/mostAsks)
}

func (p *reached) patience() time.Duration { return min(lostMax, 2*p.srtt+lostMin) }

// judge counts the questions that were lost by now, and reports whether any was.
func (p *reached) judge(now time.Time) (some bool) {
	for len(p.asked) > 0 && now.Sub(p.asked[0].at) >= p.patience() {
		p.asked = p.asked[1:]
		p.lost++
		p.good = 0
		some = true
	}
	if some && p.lost == 1 && now.Add(doubtPause).Before(p.next) {
		p.next = now // from now on it is asked more often
	}
	return some
}

// decide is what follows from questions that were lost.
func (p *reached) decide(now time.Time) {
	switch {
	case p.lost >= suspectAfter && p.state == Up || p.lost >= unknownAfter && p.state == Unknown:
		if p.state == Up {
			if now.Sub(p.relapse) < relapseTime && p.hold > 0 {
				p.hold = min(2*p.hold, holdMax)
			} else {
				p.hold = holdMin
			}
			p.relapse = now
		}
		p.to(Suspect, now)
	case p.state == Probation && p.lost > 1:
		p.to(Suspect, now)
	case p.state == Suspect && (p.lost >= deadAfter && p.quiet || p.lost >= mutedAfter):
		p.to(Dead, now)
	}
}

func (p *reached) to(s ReachState, now time.Time) { p.state, p.since = s, now }

// Answer takes the answer to a question.
func (r *Reach) Answer(now time.Time, n protocol.NodeNumber, seq uint32) {
	p := r.peers[n]
	if p == nil || seq > p.seq {
		return
	}
	for i, a := range p.asked {
		if a.seq != seq {
			continue
		}
		took := now.Sub(a.at)
		if p.srtt == 0 {
			p.srtt = took
		}
		p.srtt += (took - p.srtt) / 8
		p.asked = p.asked[i+1:] // those before are overtaken: one that comes yet is as good
		break
	}
	p.lost, p.last = 0, now
	p.good++
	switch p.state {
	case Unknown:
		p.to(Up, now)
	case Suspect, Dead:
		p.good = 1
		p.to(Probation, now)
	case Probation:
		if p.good >= upAfter && now.Sub(p.since) >= max(p.hold, holdMin) {
			p.to(Up, now)
		}
	}
}

// RTT is how long answers of a node take; 0: it is not known.
func (r *Reach) RTT(n protocol.NodeNumber) time.Duration {
	if p := r.peers[n]; p != nil {
		return p.srtt
	}
	return 0
}

// Known reports whether the node matters.
func (r *Reach) Known(n protocol.NodeNumber) bool { return r.peers[n] != nil }

// State is how a node is reached; since when, and when it answered last.
func (r *Reach) State(n protocol.NodeNumber) (s ReachState, since, last time.Time) {
	if p := r.peers[n]; p != nil {
		return p.state, p.since, p.last
	}
	return Unknown, time.Time{}, time.Time{}
}
