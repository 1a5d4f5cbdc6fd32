// Package liveness decides whether a node is ready, degraded or unreachable, from
// what the hub hears of it: messages of its control session, probes over the
// tunnel, and the conditions that its agent reports. It has neither I/O nor a
// clock; hub/fleet feeds a Machine for each node.
//
// A truth that stays is shown within 15 s. One that does not stay is not shown: a
// state must last before it counts, longer when the node was in trouble lately.
// Two latches decide, is the node gone and does it complain, so that each has a
// hysteresis of its own.
package liveness

import (
	"slices"
	"time"

	"causeway/hub/api"
)

// Times. Quiet, or Silence, plus Worse is the longest that a dead node is not shown so.
const (
	// Silence is how long no message may come over a control session: two statuses
	// are missing then.
	Silence = 10 * time.Second
	// Quiet is the same if probes do not come either, of a node that is known by them.
	Quiet = 6 * time.Second
	// Worse is how long a node must be worse than shown.
	Worse = 3500 * time.Millisecond
	// Better is how long it must be better, and BetterRestless if trouble began
	// restlessTimes within restlessFor, shown or not.
	Better         = 3 * time.Second
	BetterRestless = 8 * time.Second
	restlessTimes  = 2
	restlessFor    = 5 * time.Minute
)

// Evidence is what is known of a node at one moment.
type Evidence struct {
	Session bool      // there is a control session
	Word    time.Time // of the last message over this or an earlier one; zero: none since the hub's start
	Probe   time.Time // when the node last proved an address to the hub; zero: never
	Reasons []string  // what is wrong by the node's own last word; empty: nothing
}

// Verdict is what is shown.
type Verdict struct {
	State   string    // api.NodeReady, api.NodeDegraded or api.NodeUnreachable
	Since   time.Time // when it came to that, not when it was shown
	Reasons []string  // empty for ready
}

// Equal reports whether v and o are the same.
func (v Verdict) Equal(o Verdict) bool {
	return v.State == o.State && v.Since.Equal(o.Since) && slices.Equal(v.Reasons, o.Reasons)
}

// latch is one yes or no with hysteresis.
type latch struct {
	on    bool
	since time.Time // since when the evidence is other than on; zero: it agrees
}

// judge moves the latch if the evidence has been against it for long enough, and
// reports whether it moved and since when the evidence is so.
func (l *latch) judge(now time.Time, evidence bool, hold time.Duration) (moved bool, since time.Time) {
	if evidence == l.on {
		l.since = time.Time{}
		return false, now
	}
	if l.since.IsZero() || l.since.After(now) { // a clock that was set back begins anew
		l.since = now
	}
	if now.Sub(l.since) < hold {
		return false, now
	}
	since = l.since
	l.on, l.since = evidence, time.Time{}
	return true, since
}

// Machine judges one node. It is not safe for concurrent use.
type Machine struct {
	gone, ill latch
	fresh     bool // it only became better since the start: that counts at once
	since     time.Time
	last      []string                 // reasons
	trouble   bool                     // by the evidence
	worse     [restlessTimes]time.Time // when that began, newest first
	heard     bool
	probes    bool
}

// New returns a Machine of a node of which nothing was heard yet.
func New(now time.Time) *Machine {
	return &Machine{gone: latch{on: true}, trouble: true, fresh: true, since: now}
}

// Observe takes what is known now. It is called with every news and at least once a
// second, and reports whether another state is to be shown.
func (m *Machine) Observe(now time.Time, e Evidence) (changed bool) {
	before := m.state()
	m.heard = m.heard || !e.Word.IsZero()
	sign := e.Word // of life
	if e.Probe.After(sign) {
		sign = e.Probe
	}
	m.probes = !e.Probe.IsZero() && now.Sub(e.Probe) < Quiet
	gone := !e.Session || now.Sub(e.Word) >= Silence || !e.Probe.IsZero() && now.Sub(sign) >= Quiet
	ill := len(e.Reasons) > 0
	if ill {
		m.last = slices.Clone(e.Reasons)
	}
	if (gone || ill) && !m.trouble {
		copy(m.worse[1:], m.worse[:])
		m.worse[0] = now
	}
	m.trouble = gone || ill
	better := m.better(now)
	goneMoved, goneSince := m.gone.judge(now, gone, hold(gone, better))
	illMoved, illSince := false, now
	switch {
	case !m.gone.on && goneMoved: // what it complains of since it is back
		m.ill.on, m.ill.since = ill, time.Time{}
	case !m.gone.on:
		illMoved, illSince = m.ill.judge(now, ill, hold(ill, better))
	}
	after := m.state()
	if after == before {
		return false
	}
	switch {
	case goneMoved && m.gone.on && !sign.IsZero() && sign.Before(goneSince):
		m.note(now, sign)
	case goneMoved:
		m.note(now, goneSince)
	case illMoved:
		m.note(now, illSince)
	}
	if after == api.NodeReady || rank(after) > rank(before) {
		m.fresh = false
	}
	return true
}

// note sets since when the state is so; it never goes back.
func (m *Machine) note(now, since time.Time) {
	if since.Before(m.since) {
		since = m.since
	}
	if since.After(now) {
		since = now
	}
	m.since = since
}

// better is how long a node must be better.
func (m *Machine) better(now time.Time) time.Duration {
	if m.fresh {
		return 0
	}
	if oldest := m.worse[restlessTimes-1]; !oldest.IsZero() && now.Sub(oldest) < restlessFor {
		return BetterRestless
	}
	return Better
}

func hold(worse bool, better time.Duration) time.Duration {
	if worse {
		return Worse
	}
	return better
}

func (m *Machine) state() string {
	switch {
	case m.gone.on:
		return api.NodeUnreachable
	case m.ill.on:
		return api.NodeDegraded
	}
	return api.NodeReady
}

func rank(state string) int {
	return slices.Index([]string{api.NodeReady, api.NodeDegraded, api.NodeUnreachable}, state)
}

// Verdict is what to show by the last Observe.
func (m *Machine) Verdict() Verdict {
	v := Verdict{State: m.state(), Since: m.since}
	switch v.State {
	case api.NodeUnreachable:
		switch {
		case !m.gone.since.IsZero():
			v.Reasons = []string{"it is back, and ready when it stays so for some seconds"}
		case m.probes:
			v.Reasons = []string{"its probes arrive, but no control session; see 'causeway-agent health' there"}
		case !m.heard:
			v.Reasons = []string{"not heard of since the hub's start; are its host, network and agent up?"}
		default:
			v.Reasons = []string{"no sign of life; are its host, network and agent up?"}
		}
	case api.NodeDegraded:
		v.Reasons = slices.Clone(m.last)
	}
	return v
}
