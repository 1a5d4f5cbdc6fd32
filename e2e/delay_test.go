package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// The lab's own delay and loss are what they say: other tests rest on it.
func TestLabDelay(t *testing.T) {
	needRoot(t)
	bin := binaries(t)
	l := lab.New(t)
	left, right := l.Switch("left"), l.Switch("right")
	r := l.Router("r", lab.None).Link("lan", left, "192.168.1.1/24").Link("wan", right, "192.168.2.1/24")
	a := l.Host("a").Link("eth0", left, "192.168.1.2/24").Default("192.168.1.1")
	l.Host("b").Link("eth0", right, "192.168.2.2/24").Default("192.168.2.1")
	require.NoError(t, Ping(step(t), a, "192.168.2.2"))
	s := System{Bin: bin}
	rtt := func() float64 {
		got, missing, err := s.PingAll(step(t), a, "192.168.2.2")
		require.NoError(t, err)
		require.Empty(t, missing)
		return got["192.168.2.2"]
	}
	require.Less(t, rtt(), 40.0)
	end, err := r.DelayBoth(step(t), bin.Labtool, "lan", "wan", lab.Slow{Delay: 50 * time.Millisecond})
	require.NoError(t, err)
	got := rtt()
	require.Greater(t, got, 99.0)
	require.Less(t, got, 140.0)
	end()
	require.Less(t, rtt(), 40.0)
	p, err := r.Delay(step(t), bin.Labtool, "lan", "wan", lab.Slow{Loss: 100})
	require.NoError(t, err)
	_, missing, err := s.PingAll(step(t), a, "192.168.2.2")
	require.NoError(t, err)
	require.NotEmpty(t, missing)
	p.Kill()
	require.NoError(t, Ping(step(t), a, "192.168.2.2"))
}
