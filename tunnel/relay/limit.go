package relay

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"causeway/protocol"
)

// Rate bounds what is forwarded in a second; zero: no bound.
type Rate struct {
	Packets uint64 // datagrams
	Bytes   uint64 // of UDP payload
}

// Limits bounds the data that is forwarded. Control (probes between nodes,
// handshake messages) is no data, and has a bound of its own.
type Limits struct {
	Node Rate // for each node, as the sender
	Pair Rate // from each node to each other one
}

// controlRate bounds the control that is forwarded for one node: it goes ahead
// of everybody's data. A node that probes 1,000 peers sends half of it.
var controlRate = newRate(Rate{Packets: 5000, Bytes: 4 << 20})

// hubRate bounds what one node sends to the hub's own device, which holds a buffer of 64 KB for
// each datagram that it has not decrypted yet. TCP inside finds it.
var hubRate = newRate(Rate{Packets: 5000, Bytes: 4 << 20})

// Bursts: what a sender's queue lets go of at once must pass.
const (
	burstFor     = 100 * time.Millisecond // at the full rate
	burstPackets = 128
	burstBytes   = 256 << 10
)

// pace is a token bucket's rate: what one unit costs, and how much may be
// taken at once, both in nanoseconds.
type pace struct {
	cost  float64 // 0: no bound
	burst int64
}

func newPace(perSecond uint64, burst float64) pace {
	if perSecond == 0 {
		return pace{}
	}
	cost := 1e9 / float64(perSecond)
	return pace{cost, max(int64(burst*cost), int64(burstFor))}
}

type rate struct{ packets, bytes pace }

func newRate(r Rate) rate {
	return rate{newPace(r.Packets, burstPackets), newPace(r.Bytes, burstBytes)}
}

func (r *rate) bounded() bool { return r.packets.cost > 0 || r.bytes.cost > 0 }

// bucket holds the instant at which it is full again. All readers share it,
// without a lock.
type bucket struct{ full atomic.Int64 }

func (b *bucket) take(p *pace, now int64, n int) bool {
	if p.cost == 0 {
		return true
	}
	cost := int64(float64(n) * p.cost)
	for {
		old := b.full.Load()
		full := max(old, now) + cost
		if full-now > p.burst {
			return false
		}
		if b.full.CompareAndSwap(old, full) {
			return true
		}
	}
}

// meter holds one sender, or one pair, to a rate.
type meter struct{ packets, bytes bucket }

func (m *meter) take(r *rate, now int64, size int) bool {
	return m.packets.take(&r.packets, now, 1) && m.bytes.take(&r.bytes, now, size)
}

// meters are a node's. They outlive its entry.
type meters struct {
	data, control meter
	hub           meter                                          // what is for the hub itself
	pairs         atomic.Pointer[map[protocol.NodeNumber]*meter] // by addressee; never changed
	mu            sync.Mutex                                     // orders changes
}

// pair is the meter of what goes to n. It is made when first asked for; there
// are no more than nodes that may be sent to.
func (m *meters) pair(n protocol.NodeNumber) *meter {
	if l := m.pairs.Load(); l != nil && (*l)[n] != nil {
		return (*l)[n]
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	l := map[protocol.NodeNumber]*meter{}
	if old := m.pairs.Load(); old != nil {
		if (*old)[n] != nil {
			return (*old)[n]
		}
		maps.Copy(l, *old)
	}
	l[n] = new(meter)
	m.pairs.Store(&l)
	return l[n]
}

// keep drops the pairs with nodes that are gone.
func (m *meters) keep(there func(protocol.NodeNumber) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.pairs.Load()
	if old == nil {
		return
	}
	l := maps.Clone(*old)
	maps.DeleteFunc(l, func(n protocol.NodeNumber, _ *meter) bool { return !there(n) })
	m.pairs.Store(&l)
}
