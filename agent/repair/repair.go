// Package repair decides when an agent mends what others changed of its own, and keeps
// what happened as incidents. It does no I/O and reads no clock but for the
// file of incidents (Log).
//
//	m := repair.NewMachine(keep)
//	if at, ok := m.Due(subject, now); ok && !now.Before(at) { …mend…; m.Mended(subject, now) }
//
// It never fights without bounds: a subject that is undone again and again is mended
// at growing intervals, and at last no more until a person asks, or it was left
// alone for a while. What keeps something closed (NewMachine) is never given up: it is
// mended every FightDelay at most, and Fought says so.
package repair

import (
	"time"
)

// Bounds of a fight.
const (
	// Limit is how many repairs in a row are tried, each undone within Calm of the last.
	Limit = 7
	// Calm is how long a subject has to stay as planned for the count to begin anew.
	Calm = time.Minute
	// free is how many repairs in a row come at once.
	free       = 2
	firstDelay = 250 * time.Millisecond
	// lastDelay is how often at least what does not work is tried again.
	lastDelay = 4 * time.Second
	// FightDelay is how often what is never given up is mended after Limit repairs in a row.
	FightDelay = 5 * time.Second
	// Stand is how long it then has to stay as planned until the fight counts as over: longer
	// than FightDelay, so that between two repairs it never does.
	Stand = 12 * time.Second
)

// Machine is the state of every subject that was mended lately. It is not for
// concurrent use.
type Machine struct {
	subjects map[string]*subject
	keep     func(name string) bool
}

type subject struct {
	streak  int       // repairs in a row
	last    time.Time // of the last repair, or of the last change after it stopped
	stopped bool
	failed  int // attempts in a row that did not work
}

// NewMachine knows of no subject. Those of the names that keep has are never given up.
func NewMachine(keep func(name string) bool) *Machine {
	return &Machine{subjects: map[string]*subject{}, keep: keep}
}

// Due says when a subject that is not as planned may be mended, which may be at
// once; false: not any more.
func (m *Machine) Due(name string, now time.Time) (time.Time, bool) {
	s := m.subjects[name]
	if s == nil {
		return now, true
	}
	if s.stopped {
		return time.Time{}, false
	}
	if s.failed > 0 {
		return s.last.Add(min(lastDelay, firstDelay<<min(s.failed, 10))), true
	}
	if now.Sub(s.last) > Calm {
		s.streak = 0
	}
	if s.streak >= Limit {
		if m.keep(name) {
			return s.last.Add(FightDelay), true
		}
		s.stopped = true
		return time.Time{}, false
	}
	if s.streak < free {
		return now, true
	}
	return s.last.Add(firstDelay << (s.streak - free)), true
}

// Fought reports whether a subject that is never given up is fought over: undone Limit times
// in a row, and not left alone for Stand since. It may be left alone from until on.
func (m *Machine) Fought(name string, now time.Time) (until time.Time, fought bool) {
	s := m.subjects[name]
	if s == nil || s.streak < Limit || !m.keep(name) {
		return time.Time{}, false
	}
	until = s.last.Add(Stand)
	return until, now.Before(until)
}

// Failed notes that a repair did not work. That is no fight, and it is tried for ever:
// what stands in its way may go.
func (m *Machine) Failed(name string, now time.Time) {
	s := m.subjects[name]
	if s == nil {
		s = &subject{}
		m.subjects[name] = s
	}
	s.failed, s.last = s.failed+1, now
}

// Mended notes a repair.
func (m *Machine) Mended(name string, now time.Time) {
	s := m.subjects[name]
	if s == nil {
		s = &subject{}
		m.subjects[name] = s
	}
	s.streak, s.failed, s.last = s.streak+1, 0, now
}

// Touched notes that somebody changed subjects of these names. One that was given up
// is taken up again if it had been left alone for Calm.
func (m *Machine) Touched(now time.Time, match func(name string) bool) {
	for name, s := range m.subjects {
		if !s.stopped || !match(name) {
			continue
		}
		if now.Sub(s.last) > Calm {
			delete(m.subjects, name)
			continue
		}
		s.last = now
	}
}

// Right notes that a subject is as planned without our doing.
func (m *Machine) Right(name string) {
	if s := m.subjects[name]; s != nil && s.stopped {
		delete(m.subjects, name)
	}
}

// Asked has every subject begin anew.
func (m *Machine) Asked() { clear(m.subjects) }
