//go:build linux

package inline

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A kernel that does not know a kind of super-packet is asked once. A timerfd
// refuses every write as such a kernel does, by EINVAL.
func TestRefusedSuperPackets(t *testing.T) {
	e := newStill(t, 2, Offloads{VNet: true, TSO: true, USO: true})
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	d := e.device.(*rawDevice)
	s := &rawSink{e: e.Engine, d: d, queues: []int{fd}}
	two := func(in inner) {
		for range 2 {
			p := in.build(false)
			s.add(append(make([]byte, headerSize), p...), false)
			in.seq += uint32(in.payload)
			in.id++
		}
	}
	two(inner{udp: true, payload: 100})
	two(inner{flags: tcpACK, payload: 100})
	require.Equal(t, 2, s.c.n, "merged by twos")
	s.flush()
	require.True(t, d.noUDP.Load())
	require.True(t, d.noTCP.Load())
	require.EqualValues(t, 4, e.counts.writeErrors.Load(), "each packet was written by itself")
	two(inner{udp: true, payload: 100})
	two(inner{flags: tcpACK, payload: 100})
	require.Equal(t, 4, s.c.n)
	s.flush()
	require.EqualValues(t, 8, e.counts.writeErrors.Load())
}
