package agent

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
func (a *Agent) ring() []tunnel.OwnKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := []tunnel.OwnKey{{Key: a.own.Now().WireGuardKey, Epoch: a.own.Now().KeyEpoch}}
	if n := a.own.Now().Next; n != nil {
		out = append(out, tunnel.OwnKey{Key: n.Key, Epoch: a.own.Now().KeyEpoch + 1})
		if a.nextFirst {
			out[0], out[1] = out[1], out[0]
		}
	}
	if !a.own.Now().Old.IsZero() && a.own.Now().KeyEpoch > 0 {
		out = append(out, tunnel.OwnKey{Key: a.own.Now().Old, Epoch: a.own.Now().KeyEpoch - 1})
	}
	return out
}

func (a *Agent) setKeys() {
	if err := a.tunnel.SetKeys(a.ring()); err != nil {
		a.log.Error().Err(err).Msg("keys cannot be set")
	}
}

// rotate begins a rotation, unless one is under way, and asks for a session
// that names the next key.
func (a *Agent) rotate(overlap time.Duration) error {
	next, err := protocol.NewWireGuardPrivateKey()
	if err != nil {
		return err
	}
	began := false
	err = a.own.Change(func(id *identity.Identity) {
		if id.Next == nil {
			id.Next, began = &identity.NextKey{Key: next, Made: a.now().UTC(), Overlap: overlap}, true
		}
	})
	if err != nil {
		return fmt.Errorf("store the new key: %w", err)
	}
	if began {
		a.log.Info().Str("wireguard_key", next.Public().String()).Msg("a new key was made, the hub is told")
	}
	a.setKeys()
	a.mu.Lock()
	a.sayOld, a.nextFirst = false, false
	end := a.endSession
	a.mu.Unlock()
	if end != nil {
		end(errRotating)
	}
	return nil
}

// say is the statement of a hello.
func (a *Agent) say() protocol.SignedNodeStatement {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.saidNext = a.own.Now().Next != nil && !a.sayOld
	if a.saidNext {
		return a.own.Now().NextStatement()
	}
	return a.own.Now().Statement()
}

// keyTaken hears that a hub has stored what the last hello said.
func (a *Agent) keyTaken() {
	a.mu.Lock()
	taken := a.saidNext && a.own.Now().Next != nil
	a.mu.Unlock()
	if !taken {
		return
	}
	if err := a.own.Change(func(id *identity.Identity) { id.Take(a.now().UTC()) }); err != nil {
		// The next session says the same again.
		a.log.Error().Err(err).Msg("the key that the hub took was not stored")
		return
	}
	a.mu.Lock()
	a.nextFirst, a.refusedKey = false, ""
	epoch, key := a.own.Now().KeyEpoch, a.own.Now().WireGuardKey.Public()
	a.mu.Unlock()
	a.setKeys()
	a.log.Info().Uint32("key_epoch", epoch).Str("wireguard_key", key.String()).Msg("this node's key was rotated")
	a.lookAtKeysSoon()
}

// helloRefused hears why a session ended. A hub that refused the next key is told
// the present one, and one that refused that, the next one: so one that has
// taken either is found.
func (a *Agent) helloRefused(err error) {
	if !errors.Is(err, control.ErrRefused) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.own.Now().Next == nil {
		return
	}
	if a.saidNext {
		a.refusedKey = err.Error()
	}
	a.sayOld = a.saidNext
}

func (a *Agent) lookAtKeysSoon() {
	select {
	case a.keysDue <- struct{}{}:
	default:
	}
}

// followKeys rotates keys that are due, drops old ones and keeps the condition.
func (a *Agent) followKeys(ctx context.Context) error {
	t := time.NewTicker(keysEvery)
	defer t.Stop()
	again := time.NewTicker(sayAgain)
	defer again.Stop()
	for {
		a.lookAtKeys()
		select {
		case <-ctx.Done():
			return nil
		case <-a.keysDue:
		case <-again.C:
			a.mu.Lock()
			refused := a.sayOld && a.own.Now().Next != nil
			a.mu.Unlock()
			if refused {
				if err := a.rotate(0); err != nil {
					a.log.Error().Err(err).Msg("key was not rotated")
				}
			}
		case <-t.C:
			// An engine that has but one key tries the next one, which the hub may
			// have taken without our hearing of it.
			a.mu.Lock()
			lost := a.own.Now().Next != nil && !a.control.Connected()
			if lost {
				a.nextFirst = !a.nextFirst
			}
			a.mu.Unlock()
			if lost {
				a.setKeys()
			}
		}
	}
}

func (a *Agent) lookAtKeys() {
	now := a.now().UTC()
	a.mu.Lock()
	id := a.own.Now()
	self := a.want.Now().Netmap().Self
	refused := a.refusedKey
	a.mu.Unlock()
	if id.KeyMade.IsZero() { // of an agent that did not write it down
		if err := a.own.Change(func(id *identity.Identity) { id.KeyMade = now }); err != nil {
			a.log.Error().Err(err).Msg("the key's age was not stored")
		}
		id.KeyMade = now
	}
	if !id.Old.IsZero() && now.After(id.OldUntil) {
		if err := a.own.Change(func(id *identity.Identity) { id.Old, id.OldUntil = protocol.WireGuardPrivateKey{}, time.Time{} }); err == nil {
			a.setKeys()
			a.log.Info().Msg("the old key is good no more")
		}
	}
	a.board.Set(health.Keys, keysCause(now, id, self, refused))
	overlap, due := keyDue(now, id, self)
	if !due {
		return
	}
	if err := a.rotate(overlap); err != nil {
		a.log.Error().Err(err).Msg("key was not rotated")
		a.board.SetError(health.Keys, err)
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

// rotateByHand is the command's: it waits a little until a hub has the new key.
func (a *Agent) rotateByHand(ctx context.Context, overlap time.Duration) (r debug.RotateResult) {
	a.mu.Lock()
	before := a.own.Now().KeyEpoch
	a.mu.Unlock()
	if err := a.rotate(overlap); err != nil {
		r.Error = err.Error()
		return r
	}
	ctx, cancel := context.WithTimeout(ctx, takenWait)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		a.mu.Lock()
		r = debug.RotateResult{Epoch: a.own.Now().KeyEpoch, Key: a.own.Now().WireGuardKey.Public().String(), Taken: a.own.Now().KeyEpoch > before, Error: a.refusedKey}
		if a.own.Now().Next != nil {
			r.Epoch, r.Key = a.own.Now().KeyEpoch+1, a.own.Now().Next.Key.Public().String()
		}
		a.mu.Unlock()
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
