package identity

import (
	"errors"
	"sync"
	"sync/atomic"

	"causeway/protocol"
)

// errLeft says that there is nothing to change any more.
var errLeft = errors.New("this node has left")

// Own is the identity of a running agent: what readers see is on disk. Its methods may be called
// concurrently.
type Own struct {
	store *Store
	told  func(error)

	mu   sync.Mutex // one at a time changes it, on disk too
	now  atomic.Pointer[Identity]
	left atomic.Bool
}

// NewOwn begins with id, which is what store has. told hears of each change whether it could be
// stored; nil: nobody.
func NewOwn(store *Store, id Identity, told func(error)) *Own {
	o := &Own{store: store, told: told}
	o.now.Store(&id)
	return o
}

// Now is the identity as it is. It waits for nothing.
func (o *Own) Now() Identity { return *o.now.Load() }

// Change changes the identity; durable when it returns. On an error nothing has changed.
func (o *Own) Change(change func(*Identity)) error {
	return o.ChangeIf(func(id *Identity) bool {
		change(id)
		return true
	})
}

// ChangeIf is Change, if change says so; it decides on the identity that it gets, which nobody
// else changes meanwhile.
func (o *Own) ChangeIf(change func(*Identity) bool) error { return o.change(change, false) }

// Hold is Change, but what cannot be stored holds for this run all the same.
func (o *Own) Hold(change func(*Identity)) error {
	return o.change(func(id *Identity) bool {
		change(id)
		return true
	}, true)
}

func (o *Own) change(change func(*Identity) bool, anyway bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.left.Load() {
		return errLeft
	}
	id := o.Now()
	if !change(&id) {
		return nil
	}
	err := o.store.SaveIdentity(id)
	if o.told != nil {
		o.told(err)
	}
	if err == nil || anyway {
		o.now.Store(&id)
	}
	return err
}

// Leave removes the identity from the disk, for good: it is changed no more, and what readers see
// is what it was.
func (o *Own) Leave() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.left.Store(true)
	return o.store.RemoveIdentity()
}

// Left reports whether the node has left. Nothing of it is stored any more.
func (o *Own) Left() bool { return o.left.Load() }

// PublicKeys are those of the node's own WireGuard keys, which are no peer's.
func (i Identity) PublicKeys() []protocol.WireGuardPublicKey {
	out := []protocol.WireGuardPublicKey{i.WireGuardKey.Public()}
	if i.Next != nil {
		out = append(out, i.Next.Key.Public())
	}
	if !i.Old.IsZero() {
		out = append(out, i.Old.Public())
	}
	return out
}
