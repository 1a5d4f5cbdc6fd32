package agent

import (
	"time"

	"causeway/agent/clock"
)

// time is what time it is for all that grows old: see package clock. The wall clock alone
// (now) is for what people read.
func (a *Agent) time() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.timeLocked()
}

// timeLocked is time. a.mu is held.
func (a *Agent) timeLocked() time.Time {
	var stand time.Duration
	if a.held != nil {
		stand = a.held.Netmap.MaxAge / 2
	}
	return a.clock.Now(stand)
}

// wordLocked notes that a hub stands by what is held, and returns when. a.mu is held.
func (a *Agent) wordLocked() time.Time {
	a.clock.Word()
	return a.timeLocked()
}

// ageLocked is how long no hub has stood by the netmap. There is one. a.mu is held.
func (a *Agent) ageLocked() time.Duration { return a.timeLocked().Sub(a.held.Confirmed) }

// wall and boots are now and booted as they are when they are asked.
func (a *Agent) wall() time.Time   { return a.now() }
func (a *Agent) boots() clock.Boot { return a.booted() }
