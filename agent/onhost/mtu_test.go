package onhost

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func TestMTUFollower(t *testing.T) {
	now := time.Unix(1000, 0)
	f := mtuFollower{normal: 1380, most: 8000}
	at := func(mtus ...int) bool {
		now = now.Add(mtuPoll)
		var l []protocol.PathStatus
		for i, m := range mtus {
			l = append(l, protocol.PathStatus{Peer: protocol.NodeNumber(10 + i), MTU: m})
		}
		return f.step(now, l)
	}
	changes := func(n int, mtus ...int) (c int) {
		for range n {
			if at(mtus...) {
				c++
			}
		}
		return c
	}
	require.False(t, at(0, 1380), "nothing is known, or nothing differs")
	require.True(t, at(1216, 1380), "a smaller one at once")
	require.Equal(t, 1216, f.used[10])
	require.Zero(t, changes(4, 1440, 1440), "a larger one has to last")
	require.Equal(t, 1, changes(8, 1440, 1440), "both in one apply")
	require.Equal(t, map[protocol.NodeNumber]int{10: 1440, 11: 1440}, f.used)

	// One that comes and goes stays down.
	require.Equal(t, 1, changes(1, 1328, 1440))
	for range 20 {
		require.Zero(t, changes(3, 1440, 1440))
		require.Zero(t, changes(3, 1328, 1440))
	}
	require.Equal(t, 1, changes(20, 8928, 1440))
	require.Equal(t, 8000, f.used[10], "no more than the config allows")
	require.Zero(t, changes(20, 0, 1440), "while nothing is known it stays")
	require.Equal(t, 8000, f.used[10])
	require.False(t, f.step(now, nil))

	// Many that rise one by one share their applies.
	many := make([]int, 40)
	n := 0
	for i := range many {
		many[i] = 1440
		n += changes(1, many...)
	}
	n += changes(20, many...)
	require.LessOrEqual(t, n, 7)
	require.Equal(t, 1440, f.used[49])
}
