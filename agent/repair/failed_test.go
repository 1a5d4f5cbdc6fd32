package repair

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What does not work is tried for ever, at bounded intervals, and does not count as a fight.
func TestFailedIsNoFight(t *testing.T) {
	m, now := NewMachine(never), time.Unix(1700000000, 0)
	for range 100 {
		m.Failed("link", now)
		at, ok := m.Due("link", now)
		require.True(t, ok)
		require.Greater(t, at.Sub(now), time.Duration(0))
		require.LessOrEqual(t, at.Sub(now), lastDelay)
		now = at
	}
	m.Mended("link", now)
	at, ok := m.Due("link", now)
	require.True(t, ok)
	require.Equal(t, now, at)
}
