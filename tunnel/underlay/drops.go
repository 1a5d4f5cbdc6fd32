package underlay

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Drops counts by reason. The zero value is ready; methods may be called
// concurrently. A reason that was there before costs no lock and no memory.
type Drops struct {
	m  atomic.Pointer[map[string]*atomic.Uint64] // never changed
	mu sync.Mutex                                // orders changes
}

// Reasons for which datagrams are dropped; those of probes are probe.Reason.
const (
	DropMalformed    = "malformed"
	DropUnknownPeer  = "unknown_peer"
	DropUnproven     = "unproven_source"   // not from a hub's or a proven peer's address
	DropPlain        = "plain_from_peer"   // zeros from an address that is no hub's
	DropStreamFull   = "stream_queue_full" // on the way out
	DropCrossed      = "crossed_initiation"
	DropTooLarge     = "larger_than_path"    // sent: the path carries no datagram of this size
	DropNotYetProven = "unproven_initiation" // its sender did not answer our question
)

// Add counts n.
func (d *Drops) Add(reason string, n uint64) {
	if m := d.m.Load(); m != nil {
		if c := (*m)[reason]; c != nil {
			c.Add(n)
			return
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m := map[string]*atomic.Uint64{}
	if old := d.m.Load(); old != nil {
		maps.Copy(m, *old)
	}
	if m[reason] == nil {
		m[reason] = new(atomic.Uint64)
	}
	m[reason].Add(n)
	d.m.Store(&m)
}

// Map returns the counts.
func (d *Drops) Map() map[string]uint64 {
	out := map[string]uint64{}
	if m := d.m.Load(); m != nil {
		for k, v := range *m {
			out[k] = v.Load()
		}
	}
	return out
}
