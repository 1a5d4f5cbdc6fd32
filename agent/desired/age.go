package desired

import (
	"time"

	"causeway/agent/identity"
)

// confirmEvery is how often the time of the last contact with a hub is written to disk.
const confirmEvery = 10 * time.Minute

// Time is what time it is for all that grows old: see package clock. The wall clock alone is for
// what people read.
func (d *Desired) Time() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.time()
}

// ClockNote says what is odd about the host's clock, as it is now; empty: nothing.
func (d *Desired) ClockNote() string {
	d.Time()
	return d.clock.Note()
}

// time is Time. d.mu is held.
func (d *Desired) time() time.Time {
	var stand time.Duration
	if d.now.Held != nil {
		stand = d.now.Held.Netmap.MaxAge / 2
	}
	return d.clock.Now(stand)
}

// word notes that a hub stands by what is held, and returns when. d.mu is held.
func (d *Desired) word() time.Time {
	d.clock.Word()
	return d.time()
}

// age is how long no hub has stood by the netmap. There is one. d.mu is held.
func (d *Desired) age() time.Duration { return d.time().Sub(d.now.Held.Confirmed) }

// expired is Expired. d.mu is held.
func (d *Desired) expired() bool {
	return d.now.Held != nil && d.now.Held.Netmap.MaxAge > 0 && d.age() > d.now.Held.Netmap.MaxAge
}

// stand notes that a hub stands by the netmap now, if one does. d.mu is held.
func (d *Desired) stand() {
	if d.session && d.now.Held != nil {
		d.hold(func(h *identity.StoredNetmap) { h.Confirmed = d.word() })
	}
}

// Welcomed hears that a hub knows this node: from now until SessionEnded it stands by what is held. It
// reports whether what is held is good again, and was not.
func (d *Desired) Welcomed() (again bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = true
	if d.now.Held == nil {
		return false
	}
	again = d.now.Held.Revoked || d.expired()
	d.hold(func(h *identity.StoredNetmap) { h.Revoked, h.Confirmed = false, d.word() })
	return again
}

// SessionEnded hears that no hub stands by what is held any more.
func (d *Desired) SessionEnded() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = false
}

// Revoke withdraws all peers, across restarts too, until a hub welcomes this node again. It
// reports whether that is new.
func (d *Desired) Revoke() (changed bool) {
	d.mu.Lock()
	if changed = d.now.Held != nil && !d.now.Held.Revoked; changed {
		d.hold(func(h *identity.StoredNetmap) { h.Revoked = true })
	}
	d.mu.Unlock()
	return changed
}

// Confirm has the time, hub or no hub, go to disk now and then, and at the end.
func (d *Desired) Confirm(end bool) {
	d.mu.Lock()
	if d.now.Held == nil || d.Own.Left() {
		d.mu.Unlock()
		return
	}
	d.stand()
	since := d.time().Sub(d.stored)
	d.mu.Unlock()
	if since > confirmEvery || end && since > 0 {
		d.SaveOrTell()
	}
}

// SaveOrTell is Save for whom an error is to be logged.
func (d *Desired) SaveOrTell() {
	if err := d.Save(); err != nil {
		d.Log.Error().Err(err).Msg("netmap was not stored")
	}
}
