package desired

import (
	"maps"
	"sync"

	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/protocol"
)

// file are those of netmap and pins. Its lock comes before the one of Desired, and is held while
// the disk is waited for.
type file struct{ mu sync.Mutex }

// Save stores the netmap held, the newest whoever else stores one. Of a node that has left nothing
// is stored.
func (d *Desired) Save() error {
	d.file.mu.Lock()
	defer d.file.mu.Unlock()
	d.mu.Lock()
	if d.now.Held == nil || d.Own.Left() {
		d.mu.Unlock()
		return nil
	}
	held := *d.now.Held
	held.Clock = d.clock.State()
	held.Netmap.Mark = d.mark()
	d.mu.Unlock()
	err := d.Store.SaveNetmap(held)
	d.Board.SetError(health.State, err)
	if err == nil {
		d.mu.Lock()
		d.stored = held.Clock.Time
		d.mu.Unlock()
	}
	return err
}

// SaveAgain stores what the disk would not take before, so that a disk with room again needs
// nobody's hand; it reports whether that is stored now.
func (d *Desired) SaveAgain() bool {
	if d.Own.Left() {
		return false
	}
	return d.savePins() == nil && d.Save() == nil
}

// Learn keeps what was learned of peers' keys when a netmap was applied. Where the pins are lost
// nothing is.
func (d *Desired) Learn(pins map[protocol.NodeNumber]identity.Pin) error {
	d.mu.Lock()
	changed := pins != nil && d.now.PinsLost == nil && !maps.Equal(d.now.Pins, pins)
	if changed {
		d.now.Pins = pins
	}
	d.mu.Unlock()
	if !changed {
		return nil
	}
	return d.savePins()
}

// savePins stores the pins that are known, the newest whoever else stores some.
func (d *Desired) savePins() error {
	d.file.mu.Lock()
	defer d.file.mu.Unlock()
	now := d.Now()
	if now.Pins == nil || now.PinsLost != nil || d.Own.Left() {
		return nil
	}
	err := d.Store.SavePins(now.Pins)
	if err != nil {
		d.Board.SetError(health.State, err)
	}
	return err
}

// Leave gives the identity up. Nothing is stored any more.
func (d *Desired) Leave() error {
	d.file.mu.Lock()
	defer d.file.mu.Unlock()
	return d.Own.Leave()
}

// loadPins reads the pinned keys of peers. Where nobody knows which there were, file and
// copy being of no use, no peer's key is believed until somebody restores the file or
// removes it: else whoever damages it would have the keys of a hub's choice pinned next.
func (d *Desired) loadPins() (known bool) {
	pins, err := d.Store.Pins()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now.PinsLost = err
	if err == nil {
		d.now.Pins = pins
	}
	return err == nil
}

// FindPins looks whether lost pins are there again, or given up; it reports if that is so.
func (d *Desired) FindPins() bool {
	if d.Now().PinsLost == nil || !d.loadPins() {
		return false
	}
	d.Log.Info().Msg("the pinned keys of peers are known again")
	return true
}
