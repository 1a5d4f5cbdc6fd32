package reconcile

import "time"

// Changes within gather make one netmap. What is not state (addresses that a
// node is reached at, who is online) waits longer, up to gatherMax, while such
// changes keep coming: a site that vanishes or flaps shall not make everybody's
// netmap anew ten times a second.
const (
	gather    = 100 * time.Millisecond
	gatherMax = 2 * time.Second
)

// pace says when netmaps are to be computed. It has no clock of its own.
type pace struct {
	due   time.Time     // zero: nothing waits
	minor bool          // nothing but minor changes waits
	wait  time.Duration // of the next minor change
	last  time.Time     // when minor changes last made netmaps
}

// changed notes a change of state.
func (p *pace) changed(now time.Time) {
	if at := now.Add(gather); p.due.IsZero() || at.Before(p.due) {
		p.due = at
	}
	p.minor = false
}

// touched notes a minor change.
func (p *pace) touched(now time.Time) {
	if !p.due.IsZero() {
		return
	}
	if p.wait == 0 || now.Sub(p.last) > gatherMax {
		p.wait = gather
	}
	p.due, p.minor = now.Add(p.wait), true
}

// computed notes that netmaps were computed, and whether any of them is new.
func (p *pace) computed(now time.Time, fresh bool) {
	if p.minor && fresh {
		p.wait, p.last = min(2*p.wait, gatherMax), now
	}
	p.due, p.minor = time.Time{}, false
}
