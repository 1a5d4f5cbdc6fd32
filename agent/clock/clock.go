// Package clock is how late it is for what must not grow too old without a hub: a netmap is
// good for its max_age, and whoever sets a host's clock must neither make it good for
// longer (a revoked peer's direct path would live on) nor cut pods off at once.
//
//	c := clock.New(wall, boot, stored, floor)
//	t := c.Now(stand)       // instead of time.Now, for ages
//	c.Word()                // a hub stands by what we hold, now
//	stored = c.State()      // to disk, now and then
//
// Time is what was seen last plus what went by since on the kernel's CLOCK_BOOTTIME, which
// nobody sets and which counts suspension. The wall clock is asked only for what that
// cannot know, and believed as far as it can be:
//
//   - A step back is never believed: time goes on.
//   - A step ahead while the host runs is not believed at once, for that is what a wrong time
//     server or a slip of a hand looks like, and pods would be cut off with the hub away.
//     It is believed once it has stood for the time `stand` without a hub's word, which leaves
//     an operator that long to set it right (half of max_age): a virtual machine that its
//     hypervisor had stopped for days is stepped ahead too, and there it is the truth.
//   - Across a boot the wall clock alone knows how long the host was off, and what it says is
//     counted in full. Where it is behind what was seen before (a host without a battery), it
//     is wrong for certain: the time since the boot is counted, and the rest as soon as
//     the clock is set, at once, since that is a wrong clock being put right.
//   - Time is never below the floor, the latest moment of which there is signed proof.
//   - A hub's word makes all of it new: ages are counted from there.
//
// What this cannot see: a wall clock that is wrong ahead at boot counts as time off (closed),
// and a host that boots again and again with a clock set back, never reaching a hub, ages by
// the time that it runs alone.
package clock

import (
	"fmt"
	"sync"
	"time"
)

// slack is what two clocks may differ by without one having been set.
const slack = time.Minute

// State is what is kept over restarts.
type State struct {
	Time   time.Time     `json:"time"` // that it was
	BootID string        `json:"boot_id"`
	Boot   time.Duration `json:"boot_ns"` // since that boot, then
}

// Boot is which boot of the host this is, and how long ago it was.
type Boot struct {
	ID    string
	Since time.Duration
}

// Clock tells the time. Its methods may be called concurrently.
type Clock struct {
	wall func() time.Time
	boot func() Boot

	mu      sync.Mutex
	begun   bool
	last    State
	floor   time.Time
	unknown bool          // how long the host was off: the wall clock was behind at boot
	off     time.Duration // the wall clock's, of what is told here
	since   time.Duration // after the boot, since when it is off ahead
}

// New reads no clock yet. The zero stored is none.
func New(wall func() time.Time, boot func() Boot, stored State, floor time.Time) *Clock {
	return &Clock{wall: wall, boot: boot, last: stored, floor: floor}
}

// Floor raises the floor.
func (c *Clock) Floor(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.After(c.floor) {
		c.floor = t
	}
}

// Now is the time; a step ahead of the wall clock that has stood for stand is believed, 0:
// never.
func (c *Clock) Now(stand time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, b := c.wall().Round(0), c.boot()
	expect := c.expected(w, b)
	off := w.Sub(expect)
	stepped := (off - c.off).Abs() > slack
	switch {
	case off.Abs() <= slack:
		expect = later(expect, w) // the little that clocks are slewed by
		c.off, c.unknown = 0, false
	case off < 0:
		c.off = off
	case c.unknown, !stepped && stand > 0 && b.Since-c.since >= stand:
		expect, c.off, c.unknown = w, 0, false
	case stepped || c.off < 0:
		c.off, c.since = off, b.Since
	}
	c.last = State{Time: later(expect, c.floor).UTC(), BootID: b.ID, Boot: b.Since}
	return c.last.Time
}

// expected is what the time is by the boot clock alone. c.mu is held.
func (c *Clock) expected(w time.Time, b Boot) time.Time {
	begun := c.begun
	c.begun = true
	switch {
	case c.last.Time.IsZero(): // the first start of all
		c.unknown = w.Before(c.floor)
		return later(w, c.floor)
	case c.last.BootID == b.ID && b.Since >= c.last.Boot:
		return c.last.Time.Add(b.Since - c.last.Boot)
	case begun && c.last.BootID == b.ID: // it went back, which it never does
		return c.last.Time
	case w.Before(c.last.Time):
		c.unknown = true
		return c.last.Time.Add(b.Since)
	}
	return w
}

// Word says that a hub stands by what is held now: ages are counted from what Now tells next,
// whatever the wall clock was set to.
func (c *Clock) Word() {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.boot()
	c.begun = true
	c.last = State{Time: later(c.wall().Round(0), c.floor).UTC(), BootID: b.ID, Boot: b.Since}
	c.off, c.unknown = 0, false
}

// State is what to keep: the time as last told.
func (c *Clock) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Note says what is wrong with the host's clock, as of the last Now; empty: nothing is
// known to be.
func (c *Clock) Note() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.off > 0:
		return fmt.Sprintf("the host's clock was set ahead by %s while the agent ran; ages are counted without that for now: set the clock right, or reach a hub", c.off.Round(time.Second))
	case c.off < 0 && c.unknown:
		return fmt.Sprintf("the host's clock is %s behind what it was before this boot; how long the host was off is not known: set the clock right", (-c.off).Round(time.Second))
	case c.off < 0:
		return fmt.Sprintf("the host's clock was set back by %s; ages go on being counted: set the clock right", (-c.off).Round(time.Second))
	}
	return ""
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
