package underlay

import (
	"sync"
	"sync/atomic"
)

// Drops counts by reason. The zero value is ready; methods may be called concurrently.
type Drops struct{ m sync.Map } // string: *atomic.Uint64

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
	c, ok := d.m.Load(reason)
	if !ok {
		c, _ = d.m.LoadOrStore(reason, new(atomic.Uint64))
	}
	c.(*atomic.Uint64).Add(n)
}

// Map returns the counts.
func (d *Drops) Map() map[string]uint64 {
	m := map[string]uint64{}
	d.m.Range(func(k, v any) bool {
		m[k.(string)] = v.(*atomic.Uint64).Load()
		return true
	})
	return m
}
