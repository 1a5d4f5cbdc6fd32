package probe

import (
	"slices"
	"time"

	"causeway/protocol"
)

// OwnKey is a static key of ours and its epoch.
type OwnKey struct {
	Key   protocol.WireGuardPrivateKey
	Epoch uint32
}

// ring is our own static keys, the one to begin with first. While a key is
// being rotated there are two, and both are good: a peer that does not know
// the new one yet goes on with the old one.
type ring struct {
	keys []OwnKey
	made uint64 // changes with keys
}

func (r *ring) set(keys []OwnKey) { r.keys, r.made = slices.Clone(keys), r.made+1 }

// tryOther is how long nothing of a peer was authentic before its questions
// take turns with our keys.
const tryOther = 500 * time.Millisecond

// keys are the probe keys with one peer, for each key of the ring. They are
// derived on first use: a netmap has many peers that are never talked to.
type keys struct {
	made  uint64 // of the ring
	list  []derived
	use   int       // the one that the peer was heard with, or that is tried
	heard time.Time // with use; zero: not since the ring changed
}

type derived struct {
	protocol.ProbeKeys
	done, bad bool
}

func (k *keys) get(r *ring, i int, peer protocol.WireGuardPublicKey) *protocol.ProbeKeys {
	if k.made != r.made || len(k.list) != len(r.keys) {
		*k = keys{made: r.made, list: make([]derived, len(r.keys))}
	}
	d := &k.list[i]
	if !d.done {
		var err error
		d.ProbeKeys, err = protocol.NewProbeKeys(r.keys[i].Key, peer)
		d.done, d.bad = true, err != nil
	}
	if d.bad {
		return nil
	}
	return &d.ProbeKeys
}

// sender returns what to sign a probe with: the keys under which the peer was
// heard last, with the epoch of ours. nil: there are none.
func (k *keys) sender(r *ring, peer protocol.WireGuardPublicKey) (*protocol.ProbeKeys, uint32) {
	if k.made != r.made {
		k.get(r, 0, peer)
	}
	p := k.get(r, k.use, peer)
	return p, r.keys[k.use].Epoch
}

// turn takes the next of our keys for a question to a peer that did not answer
// the last one and was not heard lately.
func (k *keys) turn(now time.Time, r *ring) {
	if k.made == r.made && len(r.keys) > 1 && now.Sub(k.heard) > tryOther {
		k.use = (k.use + 1) % len(r.keys)
	}
}

// verify reports whether an encoded probe is the peer's, and notes for which
// of our keys.
func (k *keys) verify(now time.Time, r *ring, peer protocol.WireGuardPublicKey, data []byte) bool {
	if k.made != r.made {
		k.get(r, 0, peer)
	}
	for n := range r.keys {
		i := (k.use + n) % len(r.keys)
		if p := k.get(r, i, peer); p != nil && p.Receive.Verify(data) {
			k.use, k.heard = i, now
			return true
		}
	}
	return false
}
