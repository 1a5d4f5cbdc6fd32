package relay

import (
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
)

// A bound holds those that it names, in the directions that it names, from the next datagram
// on; under another rate it goes on counting, and nothing is owed for the one before.
func TestBounds(t *testing.T) {
	const sent = 600 // of 200 bytes, half of them to each addressee
	one := Rate{Packets: 1}
	for name, c := range map[string]struct {
		list   func(to []protocol.NodeNumber) []Bound
		passed int
	}{
		"none": {func([]protocol.NodeNumber) []Bound { return nil }, sent},
		"a sender": {func([]protocol.NodeNumber) []Bound {
			return []Bound{{Name: "a", Rate: one, From: []protocol.NodeNumber{2}}}
		}, burstPackets},
		"bytes": {func([]protocol.NodeNumber) []Bound {
			return []Bound{{Name: "a", Rate: Rate{Bytes: 1}, From: []protocol.NodeNumber{2}}}
		}, sent},
		"another sender": {func(to []protocol.NodeNumber) []Bound { return []Bound{{Name: "a", Rate: one, From: to}} }, sent},
		"to one": {func(to []protocol.NodeNumber) []Bound {
			return []Bound{{Name: "a", Rate: one, From: []protocol.NodeNumber{2}, To: to[:1]}}
		}, sent/2 + burstPackets},
		"from one": {func(to []protocol.NodeNumber) []Bound {
			return []Bound{{Name: "a", Rate: one, From: to[:1], To: []protocol.NodeNumber{2}}}
		}, sent},
		"both ways": {func(to []protocol.NodeNumber) []Bound {
			return []Bound{{Name: "a", Rate: one, From: to[:1], To: []protocol.NodeNumber{2}, Both: true}}
		}, sent/2 + burstPackets},
		"the smaller of two": {func([]protocol.NodeNumber) []Bound {
			return []Bound{{Name: "a", Rate: Rate{Packets: 1 << 30}, From: []protocol.NodeNumber{2}}, {Name: "b", Rate: one, From: []protocol.NodeNumber{2}}}
		}, burstPackets},
	} {
		t.Run(name, func(t *testing.T) {
			d, from, _, numbers := forwarder(t, 2)
			d.r.SetBounds(c.list(numbers))
			for range 10 {
				d.batch([]sock.Message{{From: from.LocalAddr(), Data: burst(numbers, sent/10, 200, 1), Segment: 200}})
			}
			dropped := uint64(0)
			for _, n := range d.r.Bounded() {
				dropped += n
			}
			require.InDelta(t, c.passed, d.r.datagrams.Load(), 2)
			require.Equal(t, uint64(sent), d.r.datagrams.Load()+dropped)
			require.Equal(t, dropped, d.r.drops.Map()[DropBound])
		})
	}
	d, from, _, numbers := forwarder(t, 2)
	send := func() uint64 {
		before := d.r.datagrams.Load()
		d.batch([]sock.Message{{From: from.LocalAddr(), Data: burst(numbers, 200, 200, 1), Segment: 200}})
		return d.r.datagrams.Load() - before
	}
	d.r.SetBounds([]Bound{{Name: "a", Rate: one, From: []protocol.NodeNumber{2}}})
	require.InDelta(t, burstPackets, send(), 2)
	dropped := d.r.Bounded()["a"]
	d.r.SetBounds([]Bound{{Name: "a", Rate: one, From: numbers}, {Name: "b", Rate: one, From: numbers}})
	require.Equal(t, dropped, d.r.Bounded()["a"])
	d.r.SetBounds([]Bound{{Name: "a", Rate: one, From: []protocol.NodeNumber{2}}})
	require.InDelta(t, 0, send(), 2, "no new burst")
	dropped = d.r.Bounded()["a"]
	d.r.SetBounds([]Bound{{Name: "a", Rate: Rate{Packets: 1 << 20}, From: []protocol.NodeNumber{2}}})
	require.Equal(t, uint64(200), send(), "nothing is owed")
	require.Equal(t, dropped, d.r.Bounded()["a"])
	d.r.SetBounds(nil)
	require.Equal(t, uint64(200), send())
	require.Empty(t, d.r.Bounded())
}
