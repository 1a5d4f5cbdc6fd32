package relay

import (
	"sync/atomic"

	"causeway/protocol"
)

// Bound holds the data that some nodes send through the relay to a rate, all of them
// together. Control is no data, as for Limits.
type Bound struct {
	Name string // told in Bounded; not twice
	Rate Rate
	From []protocol.NodeNumber // who sends
	To   []protocol.NodeNumber // whom to; empty: anybody
	Both bool                  // what goes from To to From counts too
}

// bounding is a Bound as the fast path sees it.
type bounding struct {
	rate    rate
	to      map[protocol.NodeNumber]bool // nil: anybody
	meter   *meter
	dropped *atomic.Uint64
}

// bounds are what a sender is bound by. They are never changed.
type bounds struct {
	names    map[string]*bounding // one of each name
	bySender map[protocol.NodeNumber][]*bounding
}

// SetBounds replaces the bounds: whole state. It takes effect with the next datagram. A bound
// that was there before under its name goes on counting, and with the same rate has no new burst.
func (r *Relay) SetBounds(list []Bound) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.bounds.Load()
	next := &bounds{names: map[string]*bounding{}, bySender: map[protocol.NodeNumber][]*bounding{}}
	for _, b := range list {
		one := bounding{rate: newRate(b.Rate), meter: new(meter), dropped: new(atomic.Uint64)}
		if o := old.names[b.Name]; o != nil {
			if one.dropped = o.dropped; one.rate == o.rate {
				one.meter = o.meter
			} // else what is owed at the old rate might take minutes at the new one
		}
		next.names[b.Name] = &one
		next.hold(one, b.From, b.To)
		if b.Both {
			next.hold(one, b.To, b.From)
		}
	}
	r.bounds.Store(next)
}

// hold holds what goes from some nodes to others; to none means to anybody.
func (b *bounds) hold(one bounding, from, to []protocol.NodeNumber) {
	if len(to) > 0 {
		one.to = make(map[protocol.NodeNumber]bool, len(to))
		for _, n := range to {
			one.to[n] = true
		}
	}
	for _, n := range from {
		b.bySender[n] = append(b.bySender[n], &one)
	}
}

// Bounded counts the datagrams that each bound has dropped since it was first set.
func (r *Relay) Bounded() map[string]uint64 {
	b := r.bounds.Load()
	out := make(map[string]uint64, len(b.names))
	for name, one := range b.names {
		out[name] = one.dropped.Load()
	}
	return out
}

// pass takes a datagram to n from every bound that holds it. One that a later bound refuses
// has been counted by those before it, which only makes them stricter.
func pass(l []*bounding, n protocol.NodeNumber, tick int64, size int) bool {
	for _, b := range l {
		if (b.to == nil || b.to[n]) && !b.meter.take(&b.rate, tick, size) {
			b.dropped.Add(1)
			return false
		}
	}
	return true
}
