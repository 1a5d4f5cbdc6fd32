package probe

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// A view says over what a peer is reached, why, and what else was tried.
func TestView(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.agent(10), w.agent(11)
	_, ok := a.View(w.now, 99)
	require.False(t, ok)
	blocked := true
	w.lost = func(p packet) bool { return blocked && p.from != w.hub.addr && p.to != w.hub.addr }
	a.candidates(11, b.addr)
	b.candidates(10, a.addr)
	a.busy[11], a.next = true, w.now
	w.pass(8 * time.Second)
	v, ok := a.View(w.now, 11)
	require.True(t, ok)
	require.Equal(t, protocol.PathRelay, v.Path)
	require.Contains(t, v.Why, "none of the peer's 1 addresses answers")
	require.Len(t, v.Candidates, 2)
	require.Equal(t, protocol.PathRelay, v.Candidates[0].Path)
	require.True(t, v.Candidates[0].Chosen)
	require.Equal(t, protocol.PathAnswers, v.Candidates[0].State)
	require.NotZero(t, v.Candidates[0].Hub)
	require.Equal(t, protocol.PathNever, v.Candidates[1].State)

	noInterface := func() bool {
		i := slices.IndexFunc(a.Ways(w.now, 11), func(y protocol.Way) bool { return y.Chosen && y.NoInterface })
		return i >= 0
	}
	require.False(t, noInterface())
	b.SetInterface(false)
	w.until(t, 5*time.Second, noInterface)
	b.SetInterface(true)
	w.until(t, 5*time.Second, func() bool { return !noInterface() })

	blocked = false
	w.until(t, time.Minute, func() bool { return a.kind(11) == direct })
	w.pass(5 * time.Second)
	v, _ = a.View(w.now, 11)
	require.Equal(t, "it answers, and a direct path goes before the relay", v.Why)
	require.Equal(t, b.addr, v.Candidates[0].Addr)
	require.Equal(t, v.MTU+protocol.MinTransportSize+28, v.Size)
	delete(a.busy, 11)
	w.pass(time.Minute)
	v, _ = a.View(w.now, 11)
	require.Contains(t, v.Why, "no traffic")
	require.Equal(t, protocol.PathIdle, v.Candidates[0].State)
}
