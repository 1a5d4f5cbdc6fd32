//go:build linux

package inline_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// replayWindow is how far behind the newest counter a message may be (the
// replay package of WireGuard keeps 8128).
const replayWindow = 8128

// Queues share a session's counters. One that kept some for later would send
// them when the peer's replay window is past them, so that its flows arrive
// nowhere while another queue is busy.
func TestSlowFlowsBesideABusyQueue(t *testing.T) {
	needRoot(t)
	a, b := newRawPair(t)
	a.startInline(allOffloads, 2)
	b.startInline(allOffloads, 2)
	join(t, a, b)
	transfer(t, a, b, b.addr4(), 1<<20)

	echo := b.packetConn(b.addr4())
	defer echo.Close()
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		buf := make([]byte, 100)
		for {
			n, from, err := echo.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			echo.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	defer func() { echo.Close(); <-echoed }()

	sink := b.packetConn(b.addr4()) // nobody reads; the socket drops
	defer sink.Close()
	busy := a.packetConn(a.addr4())
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		for {
			if _, err := busy.WriteTo(make([]byte, 100), sink.LocalAddr()); err != nil {
				return
			}
		}
	}()
	defer func() { busy.Close(); <-flooded }()

	to := echo.LocalAddr().(*net.UDPAddr).AddrPort()
	var slow []*net.UDPConn
	for range 8 { // some are on the other queue
		c := a.packetConn(a.addr4())
		defer c.Close()
		slow = append(slow, c)
	}
	answered := func(c *net.UDPConn, to netip.AddrPort) bool {
		// Pass the window by before each try.
		from := a.udp.segments.Load()
		require.Eventually(t, func() bool { return a.udp.segments.Load() > from+2*replayWindow }, 20*time.Second, time.Millisecond)
		_, err := c.WriteToUDPAddrPort([]byte("slow"), to)
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
		_, _, err = c.ReadFromUDPAddrPort(make([]byte, 100))
		return err == nil
	}
	for i, c := range slow {
		ok := false
		for range 10 { // a queue that is full drops
			if ok = answered(c, to); ok {
				break
			}
		}
		require.True(t, ok, "flow %d is not answered", i)
	}
	for _, h := range []*host{a, b} {
		require.Zero(t, h.engine.Drops()[protocol.DropRejected], "too old for the replay window")
	}
}
