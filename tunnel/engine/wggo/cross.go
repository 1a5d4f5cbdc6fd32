package wggo

import (
	"bytes"
	"encoding/binary"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// crossing is how long a message of a handshake keeps others of the same peer away that cross
// it. wireguard-go has one handshake for each peer, and more than one worker for what comes:
// messages that it takes side by side overwrite each other's, and both sides wait for a retry,
// which comes after five seconds or, where each believes to have a session, after fifteen.
const crossing = time.Second

// cross settles a peer's handshake messages that cross or come twice. Its methods may be
// called concurrently.
type cross struct {
	mu sync.Mutex

	own    uint32 // index of our unanswered initiation
	sent   time.Time
	lost   uint32 // index of ours that was given up when the device answered theirs
	lostAt time.Time

	taken   []byte // the response that the device has, or has had
	takenAt time.Time
}

// what becomes of a message.
type verdict int

const (
	deliver verdict = iota
	ignore
	// renew says that each side has answered the other's initiation and forgotten its own:
	// this one begins anew.
	renew
)

// leaves notes a message of ours.
func (c *cross) leaves(now time.Time, m []byte) {
	switch messageType(m) {
	case device.MessageInitiationType:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.own, c.sent = binary.LittleEndian.Uint32(m[4:]), now
	case device.MessageResponseType:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.lost, c.lostAt = c.own, now
		c.own = 0
	}
}

// comes judges an initiation or response of the peer; lower says that our number is the lower
// one.
func (c *cross) comes(now time.Time, m []byte, lower bool) verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	within := func(t time.Time) bool { return now.Sub(t) < crossing }
	if messageType(m) == device.MessageInitiationType {
		// Ours is under way and wins, or it was answered: theirs was given up.
		if lower && c.own != 0 && within(c.sent) || c.taken != nil && within(c.takenAt) {
			return ignore
		}
		return deliver
	}
	if len(m) < device.MessageResponseSize {
		return deliver // which the device refuses
	}
	switch index := binary.LittleEndian.Uint32(m[8:]); {
	case index == 0:
	case index == c.own:
		c.own, c.taken, c.takenAt = 0, bytes.Clone(m), now
	case bytes.Equal(m, c.taken) && within(c.takenAt): // by another path
		return ignore
	case index == c.lost && within(c.lostAt):
		c.lost = 0
		if !lower {
			return renew
		}
	}
	return deliver
}

// forget is for a peer that leaves the device.
func (c *cross) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own, c.lost, c.taken = 0, 0, nil
}
