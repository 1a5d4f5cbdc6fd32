package hublink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"causeway/agent/control"
	"causeway/agent/debug"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/protocol"
	"causeway/tunnel"
)

// A WireGuard key is rotated in steps, each on disk before the next, so that an
// agent killed between any two goes on by itself:
//
//  1. a new key is stored as the next one; from now on both are good here
//  2. a hello names the next key, signed by the identity, with the next epoch
//  3. the hub has stored that and welcomes: the next key becomes the node's, and
//     the one so far stays good until its overlap ends
//
// Peers know one key at a time, the one of the highest epoch that they saw. One
// that has heard nothing yet is talked to under the old key.

const (
	// minKeyAge keeps a hub from asking for keys without end.
	minKeyAge = time.Second
	// keysEvery is how often keys are looked at unasked, and how long the hub may
	// be out of reach before the order in which keys are tried changes.
	keysEvery = 8 * time.Second
	// keyWarning is how long a next key may wait for a hub before it is told.
	keyWarning = 10 * time.Minute
	// sayAgain is when a hub that refused a key is asked again.
	sayAgain = time.Hour
	// takenWait is how long a command waits for the hub.
	takenWait = 10 * time.Second
)

// errRotating ends a control session so that the next one names the next key.
var errRotating = errors.New("the node's key is rotated")

// ring is the keys that are good here, the one to begin with first.
func (l *Link) ring() []tunnel.OwnKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := []tunnel.OwnKey{{Key: l.own.Now().WireGuardKey, Epoch: l.own.Now().KeyEpoch}}
	if n := l.own.Now().Next; n != nil {
		out = append(out, tunnel.OwnKey{Key: n.Key, Epoch: l.own.Now().KeyEpoch + 1})
		if l.nextFirst {
			out[0], out[1] = out[1], out[0]
		}
	}
	if !l.own.Now().Old.IsZero() && l.own.Now().KeyEpoch > 0 {
		out = append(out, tunnel.OwnKey{Key: l.own.Now().Old, Epoch: l.own.Now().KeyEpoch - 1})
	}
	return out
}

func (l *Link) setKeys() {
	if err := l.tunnel.SetKeys(l.ring()); err != nil {
		l.log.Error().Err(err).Msg("keys cannot be set")
	}
}

// rotate begins a rotation, unless one is under way, and asks for a session
// that names the next key.
func (l *Link) rotate(overlap time.Duration) error {
	next, err := protocol.NewWireGuardPrivateKey()
	if err != nil {
		return err
	}
	began := false
	err = l.own.Change(func(id *identity.Identity) {
		if id.Next == nil {
			id.Next, began = &identity.NextKey{Key: next, Made: l.now().UTC(), Overlap: overlap}, true
		}
	})
	if err != nil {
		return fmt.Errorf("store the new key: %w", err)
	}
	if began {
		l.log.Info().Str("wireguard_key", next.Public().String()).Msg("a new key was made, the hub is told")
	}
	l.setKeys()
	l.mu.Lock()
	l.sayOld, l.nextFirst = false, false
	end := l.endSession
	l.mu.Unlock()
	if end != nil {
		end(errRotating)
	}
	return nil
}

// say is the statement of a hello.
func (l *Link) say() protocol.SignedNodeStatement {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.saidNext = l.own.Now().Next != nil && !l.sayOld
	if l.saidNext {
		return l.own.Now().NextStatement()
	}
	return l.own.Now().Statement()
}

// keyTaken hears that a hub has stored what the last hello said.
func (l *Link) keyTaken() {
	l.mu.Lock()
	taken := l.saidNext && l.own.Now().Next != nil
	l.mu.Unlock()
	if !taken {
		return
	}
	if err := l.own.Change(func(id *identity.Identity) { id.Take(l.now().UTC()) }); err != nil {
		// The next session says the same again.
		l.log.Error().Err(err).Msg("the key that the hub took was not stored")
		return
	}
	l.mu.Lock()
	l.nextFirst, l.refusedKey = false, ""
	epoch, key := l.own.Now().KeyEpoch, l.own.Now().WireGuardKey.Public()
	l.mu.Unlock()
	l.setKeys()
	l.log.Info().Uint32("key_epoch", epoch).Str("wireguard_key", key.String()).Msg("this node's key was rotated")
	l.lookAtKeysSoon()
}

// helloRefused hears why a session ended. A hub that refused the next key is told
// the present one, and one that refused that, the next one: so one that has
// taken either is found.
func (l *Link) helloRefused(err error) {
	if !errors.Is(err, control.ErrRefused) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own.Now().Next == nil {
		return
	}
	if l.saidNext {
		l.refusedKey = err.Error()
	}
	l.sayOld = l.saidNext
}

func (l *Link) lookAtKeysSoon() {
	select {
	case l.keysDue <- struct{}{}:
	default:
	}
}

// FollowKeys rotates keys that are due, drops old ones and keeps the condition.
func (l *Link) FollowKeys(ctx context.Context) error {
	t := time.NewTicker(keysEvery)
	defer t.Stop()
	again := time.NewTicker(sayAgain)
	defer again.Stop()
	for {
		l.lookAtKeys()
		select {
		case <-ctx.Done():
			return nil
		case <-l.keysDue:
		case <-again.C:
			l.mu.Lock()
			refused := l.sayOld && l.own.Now().Next != nil
			l.mu.Unlock()
			if refused {
				if err := l.rotate(0); err != nil {
					l.log.Error().Err(err).Msg("key was not rotated")
				}
			}
		case <-t.C:
			// An engine that has but one key tries the next one, which the hub may
			// have taken without our hearing of it.
			l.mu.Lock()
			lost := l.own.Now().Next != nil && !l.control.Connected()
			if lost {
				l.nextFirst = !l.nextFirst
			}
			l.mu.Unlock()
			if lost {
				l.setKeys()
			}
		}
	}
}

func (l *Link) lookAtKeys() {
	now := l.now().UTC()
	l.mu.Lock()
	id := l.own.Now()
	self := l.want.Now().Netmap().Self
	refused := l.refusedKey
	l.mu.Unlock()
	if id.KeyMade.IsZero() { // of an agent that did not write it down
		if err := l.own.Change(func(id *identity.Identity) { id.KeyMade = now }); err != nil {
			l.log.Error().Err(err).Msg("the key's age was not stored")
		}
		id.KeyMade = now
	}
	if !id.Old.IsZero() && now.After(id.OldUntil) {
		if err := l.own.Change(func(id *identity.Identity) { id.Old, id.OldUntil = protocol.WireGuardPrivateKey{}, time.Time{} }); err == nil {
			l.setKeys()
			l.log.Info().Msg("the old key is good no more")
		}
	}
	l.board.Set(health.Keys, keysCause(now, id, self, refused))
	overlap, due := keyDue(now, id, self)
	if !due {
		return
	}
	if err := l.rotate(overlap); err != nil {
		l.log.Error().Err(err).Msg("key was not rotated")
		l.board.SetError(health.Keys, err)
	}
}

// keyDue says whether a new key is to be made, and how long the present one
// stays good then.
func keyDue(now time.Time, id identity.Identity, self protocol.NetmapSelf) (overlap time.Duration, due bool) {
	age := now.Sub(id.KeyMade)
	switch {
	case id.Next != nil || id.KeyEpoch == ^uint32(0):
		return 0, false
	case self.KeyEpoch > id.KeyEpoch && age >= minKeyAge:
		return min(max(self.KeyOverlap, 0), protocol.MaxKeyOverlap), true
	case self.RotateKeys > 0:
		every := max(self.RotateKeys, protocol.MinRotateKeys)
		// Up to a tenth earlier, so that a site does not rotate as one.
		early := every / 10 / 32 * time.Duration(id.Number%32)
		return protocol.DefaultKeyOverlap, age >= every-early
	}
	return 0, false
}

// keysCause is the keys condition's cause, empty if it holds.
func keysCause(now time.Time, id identity.Identity, self protocol.NetmapSelf, refused string) string {
	every := max(self.RotateKeys, protocol.MinRotateKeys)
	switch {
	case id.Next != nil && refused != "":
		return "the hub does not take this node's new key (" + refused + "); the present one stays; look at the hub's events"
	case id.Next != nil && now.Sub(id.Next.Made) > keyWarning:
		return fmt.Sprintf("a new key waits for a hub since %s; the present one stays", id.Next.Made.Format(time.RFC3339))
	case self.RotateKeys > 0 && now.Sub(id.KeyMade) > every+every/4:
		return fmt.Sprintf("the key is of %s and should have been rotated after %s", id.KeyMade.Format(time.RFC3339), every)
	}
	return ""
}

// RotateByHand is the command's: it waits a little until a hub has the new key.
func (l *Link) RotateByHand(ctx context.Context, overlap time.Duration) (r debug.RotateResult) {
	l.mu.Lock()
	before := l.own.Now().KeyEpoch
	l.mu.Unlock()
	if err := l.rotate(overlap); err != nil {
		r.Error = err.Error()
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, takenWait)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		l.mu.Lock()
		r = debug.RotateResult{Epoch: l.own.Now().KeyEpoch, Key: l.own.Now().WireGuardKey.Public().String(), Taken: l.own.Now().KeyEpoch > before, Error: l.refusedKey}
		if l.own.Now().Next != nil {
			r.Epoch, r.Key = l.own.Now().KeyEpoch+1, l.own.Now().Next.Key.Public().String()
		}
		l.mu.Unlock()
		if r.Taken || r.Error != "" {
			return r
		}
		select {
		case <-ctx.Done():
			r.Error = "no hub has taken the new key yet; both keys are good here, and it is told as soon as one is reached"
			return r
		case <-t.C:
		}
	}
}
