package desired

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/agent/netmapcheck"
	"causeway/protocol"
)

// NewerHubList opens a hub list for a node and says whether it goes before the one of this
// serial that the node holds. One of the same serial is neither newer nor an error.
func NewerHubList(id identity.Identity, held uint64, s protocol.SignedHubList, now time.Time) (l protocol.HubList, newer bool, err error) {
	if l, err = s.Open(id.Pin); err != nil {
		return l, false, err
	}
	switch {
	case l.Serial < held:
		return l, false, fmt.Errorf("serial %d is lower than %d, which this agent holds", l.Serial, held)
	case l.Serial == held:
		return l, false, nil
	}
	if err := l.ValidAt(now); err != nil {
		return l, false, err
	}
	if why := netmapcheck.Overlay(l.Overlay, id.Number, id.Overlay); why != "" {
		return l, false, fmt.Errorf("%s", why)
	}
	return l, true, nil
}

// TakeHubList stores a newer hub list; it says why it does not. One that is held already is neither
// taken nor refused.
func (d *Desired) TakeHubList(s protocol.SignedHubList) (taken bool, why string) {
	l, newer, err := NewerHubList(d.Own.Now(), d.Now().Hubs.Serial, s, d.Time())
	if d.Own.Left() {
		err = errors.New("this node has left")
	}
	if err != nil {
		return false, err.Error()
	}
	if !newer {
		return false, ""
	}
	// Two may come at once: what is on disk says which is the newer one.
	err = d.Own.ChangeIf(func(id *identity.Identity) bool {
		held, err := id.HubList.Open(id.Pin)
		if taken = err != nil || held.Serial < l.Serial; taken {
			id.HubList = s
		}
		return taken
	})
	if err != nil {
		return false, err.Error()
	}
	if !taken {
		return false, ""
	}
	d.clock.Floor(l.NotBefore)
	d.mu.Lock()
	if l.Serial > d.now.Hubs.Serial {
		d.now.Hubs, d.now.Signed = l, s
	}
	watchers := d.watchers
	d.mu.Unlock()
	for _, c := range watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	d.Log.Info().Uint64("serial", l.Serial).Int("hubs", len(l.Hubs)).Msg("new hub list")
	return true, ""
}

// WatchHubs returns a channel that gets something when the hub list is another. It is for one reader.
func (d *Desired) WatchHubs() <-chan struct{} {
	c := make(chan struct{}, 1)
	d.mu.Lock()
	d.watchers = append(d.watchers, c)
	d.mu.Unlock()
	return c
}

// shownKept is how much later a hub's word that its list is the newest is before it goes to disk
// again.
const shownKept = time.Hour

// TakeHubListAnswer stores a newer list, and that the list is the newest if that was shown:
// n was asked at this time.
func (d *Desired) TakeHubListAnswer(answer protocol.HubListAnswer, n protocol.ListNonce, asked time.Time) error {
	var shown bool
	if answer.Fresh != nil {
		if _, err := answer.OpenFresh(d.Own.Now().Pin, n); err != nil {
			return err
		}
		shown = true
	}
	if _, why := d.TakeHubList(answer.SignedHubList); why != "" {
		return errors.New(why)
	}
	d.mu.Lock()
	shown = shown && bytes.Equal(d.now.Signed.Payload, answer.Payload)
	if shown && asked.After(d.now.Shown) {
		d.now.Shown = asked.UTC()
	}
	d.mu.Unlock()
	if !shown {
		return nil
	}
	d.Board.Set(health.HubList, "")
	if asked.Sub(d.Own.Now().HubListConfirmed) < shownKept {
		return nil
	}
	return d.Own.Change(func(id *identity.Identity) { id.HubListConfirmed = asked.UTC() })
}
