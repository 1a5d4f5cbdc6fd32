package inline

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/device"
)

// At REKEY_AFTER_MESSAGES a sender goes on and asks for a new session; at
// REJECT_AFTER_MESSAGES it sends nothing more under the old one and keeps what
// comes until there is a new one.
func TestMessageLimitsOnTheWire(t *testing.T) {
	a, b := stillPair(t, Offloads{VNet: true})
	p := a.numbers[3]
	send := func() []uint32 {
		a.tx.packet(nil, stillPacket(2, 3, 60), readHead, 60)
		a.tx.flush()
		a.control()
		return kinds(a.take())
	}
	fresh := func() { p.lastHandshake, b.numbers[2].answeredAt = 0, 0; p.asked.Store(0) }
	s := p.current.Load()
	require.Equal(t, []uint32{uint32(device.MessageTransportType)}, send())

	s.next.Store(rekeyAfterMessages - 2)
	fresh()
	require.Equal(t, []uint32{uint32(device.MessageTransportType)}, send())
	require.Equal(t, []uint32{uint32(device.MessageTransportType), typeInitiation}, send(), "the limit is reached")
	a.machine.dropPending(p)

	s.next.Store(rejectAfterMessages - 1)
	fresh()
	require.Equal(t, []uint32{uint32(device.MessageTransportType), typeInitiation}, send(), "the last one")
	a.machine.dropPending(p)
	fresh()
	a.tx.packet(nil, stillPacket(2, 3, 60), readHead, 60)
	a.tx.flush()
	a.control()
	out := a.take()
	require.Equal(t, []uint32{typeInitiation}, kinds(out), "nothing is sent beyond")
	require.Equal(t, rejectAfterMessages, s.next.Load())
	b.receive(2, out...)
	b.control()
	a.receive(3, b.take()...)
	a.control()
	require.Equal(t, []uint32{uint32(device.MessageTransportType)}, kinds(a.take()), "what waited goes under the new session")
	require.NotSame(t, s, p.current.Load())
}
