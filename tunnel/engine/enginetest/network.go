// Package enginetest has what every engine is tested with: an underlay in
// memory that can lose, copy and reorder, a TUN device made of channels, and
// the tests themselves.
package enginetest

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/underlay"
)

// Hook sees each datagram on its way and returns what is delivered: nothing
// for a loss, two for a copy, an earlier one for a reordering. It is called
// under a lock, so it may keep state.
type Hook func(from, to protocol.NodeNumber, datagram []byte) [][]byte

// Network joins engines in memory.
type Network struct {
	mu      sync.Mutex
	members map[protocol.NodeNumber]*Member
	hook    Hook
	faults  []string
}

// NewNetwork returns an empty network that delivers everything.
func NewNetwork() *Network { return &Network{members: map[protocol.NodeNumber]*Member{}} }

// SetHook changes what happens to datagrams; nil: nothing.
func (n *Network) SetHook(h Hook) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hook = h
}

// Faults lists what engines did against engine.Carrier's contract.
func (n *Network) Faults() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.faults
}

// memberQueue is how many groups wait for one member. What is beyond is lost,
// as in a socket's buffer.
const memberQueue = 4096

type delivery struct {
	from    protocol.NodeNumber
	buf     []byte
	segment int
}

// Member is one engine's place in the network: its engine.Carrier.
type Member struct {
	net    *Network
	number protocol.NodeNumber
	queue  chan delivery
}

var _ engine.Carrier = (*Member)(nil)

// Join adds a member, in place of an earlier one with its number.
func (n *Network) Join(number protocol.NodeNumber) *Member {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := &Member{net: n, number: number, queue: make(chan delivery, memberQueue)}
	n.members[number] = m
	return m
}

// Send delivers to the member with number to, if there is one.
func (m *Member) Send(to protocol.NodeNumber, datagrams []byte, segment int) error {
	n := m.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if segment <= 0 || len(datagrams) == 0 || (len(datagrams)+segment-1)/segment > 64 || len(datagrams) > 65507 {
		n.faults = append(n.faults, fmt.Sprintf("group of %d bytes in segments of %d", len(datagrams), segment))
		return underlay.ErrNoPath
	}
	var out []delivery
	for off := 0; off < len(datagrams); off += segment {
		d := datagrams[off:min(off+segment, len(datagrams))]
		if len(d) < 4 || d[1]|d[2]|d[3] != 0 {
			n.faults = append(n.faults, fmt.Sprintf("reserved bytes of a message of %d bytes are not zero", len(d)))
		}
		if n.hook != nil {
			for _, e := range n.hook(m.number, to, append([]byte(nil), d...)) {
				out = append(out, delivery{m.number, append([]byte(nil), e...), len(e)})
			}
		}
	}
	if n.hook == nil {
		out = []delivery{{m.number, append([]byte(nil), datagrams...), segment}}
		// The real underlay overwrites the reserved bytes in place.
		for off := 0; off < len(datagrams); off += segment {
			binary.LittleEndian.PutUint32(datagrams[off:], binary.LittleEndian.Uint32(datagrams[off:])|uint32(to)<<8)
		}
	}
	peer := n.members[to]
	if peer == nil {
		return underlay.ErrNoPath
	}
	for _, d := range out {
		select {
		case peer.queue <- d:
		default:
		}
	}
	return nil
}

// Deliver hands what arrives to r until ctx ends, in batches as a socket's
// reader does.
func (m *Member) Deliver(ctx context.Context, r underlay.Receiver) {
	for {
		select {
		case <-ctx.Done():
			return
		case d := <-m.queue:
			r.Receive(underlay.Source{Peer: d.from}, d.buf, d.segment)
		batch:
			for range 32 {
				select {
				case d := <-m.queue:
					r.Receive(underlay.Source{Peer: d.from}, d.buf, d.segment)
				default:
					break batch
				}
			}
			r.Flush()
		}
	}
}
