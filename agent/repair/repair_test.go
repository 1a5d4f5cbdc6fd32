package repair

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A subject that is undone at once is mended at growing intervals, and then no more.
func TestFightEnds(t *testing.T) {
	m, now := NewMachine(never), time.Unix(1000, 0)
	start, repairs := now, 0
	var gaps []time.Duration
	for {
		at, ok := m.Due("nftables", now)
		if !ok {
			break
		}
		require.Less(t, repairs, 100)
		gaps = append(gaps, max(0, at.Sub(now)))
		if at.After(now) {
			now = at
		}
		m.Mended("nftables", now)
		repairs++
	}
	require.Equal(t, Limit, repairs)
	const ms = time.Millisecond
	require.Equal(t, []time.Duration{0, 0, 250 * ms, 500 * ms, 1000 * ms, 2000 * ms, 4000 * ms}, gaps)
	require.Less(t, now.Sub(start), 10*time.Second)
	now = now.Add(time.Hour)
	_, ok := m.Due("nftables", now)
	require.False(t, ok, "time alone is no reason")
	_, ok = m.Due("routes", now)
	require.True(t, ok, "another subject is another matter")
	m.Asked()
	at, ok := m.Due("nftables", now)
	require.True(t, ok)
	require.Equal(t, now, at)
}

// What is changed now and then, as by a tool that runs every few minutes, is mended
// at once for ever.
func TestNowAndThen(t *testing.T) {
	m, now := NewMachine(never), time.Unix(1000, 0)
	for range 100 {
		at, ok := m.Due("routes", now)
		require.True(t, ok)
		require.Equal(t, now, at)
		m.Mended("routes", now)
		now = now.Add(Calm + time.Second)
	}
}

// A subject that was given up is taken up when it is changed after a calm, or is right again.
func TestTakenUpAgain(t *testing.T) {
	m, now := NewMachine(never), time.Unix(1000, 0)
	giveUp := func() {
		for {
			at, ok := m.Due("rules", now)
			if !ok {
				return
			}
			now = at
			m.Mended("rules", now)
		}
	}
	is := func(name string) bool { return name == "rules" }
	giveUp()
	for range 100 { // the fight goes on
		now = now.Add(Calm / 2)
		m.Touched(now, is)
		_, ok := m.Due("rules", now)
		require.False(t, ok)
	}
	now = now.Add(Calm + 1)
	m.Touched(now, func(string) bool { return false })
	_, ok := m.Due("rules", now)
	require.False(t, ok)
	m.Touched(now, is)
	_, ok = m.Due("rules", now)
	require.True(t, ok)
	giveUp()
	m.Right("rules")
	_, ok = m.Due("rules", now)
	require.True(t, ok)
}

// What keeps something closed is mended for ever, at bounded intervals, and fought over until
// it was left alone for long enough.
func TestNeverGivenUp(t *testing.T) {
	m, now := NewMachine(func(name string) bool { return name == "nftables" }), time.Unix(1000, 0)
	for n := range 100 {
		at, ok := m.Due("nftables", now)
		require.True(t, ok)
		require.LessOrEqual(t, at.Sub(now), FightDelay)
		if n >= Limit {
			require.Equal(t, FightDelay, at.Sub(now))
			_, fought := m.Fought("nftables", at)
			require.True(t, fought, "between two repairs it is no end of the fight that nobody looked")
		}
		if at.After(now) {
			now = at
		}
		m.Mended("nftables", now)
		_, fought := m.Fought("nftables", now)
		require.Equal(t, n+1 >= Limit, fought)
	}
	until, fought := m.Fought("nftables", now.Add(Stand-1))
	require.True(t, fought)
	_, fought = m.Fought("nftables", until)
	require.False(t, fought)
	m.Mended("nftables", until) // undone once more
	_, fought = m.Fought("nftables", until)
	require.True(t, fought, "and the fight goes on")
	at, ok := m.Due("nftables", until.Add(Calm+1))
	require.True(t, ok)
	require.Equal(t, until.Add(Calm+1), at, "after a calm all begins anew")
	m.Mended("nftables", at)
	m.Asked()
	_, fought = m.Fought("nftables", at)
	require.False(t, fought)
	_, fought = m.Fought("link", at)
	require.False(t, fought)
}

func never(string) bool { return false }
