package fleet

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/protocol"
)

// A node pays for what it changes in the log, and not for what the log did not take.
func TestChangesAreChargedOnce(t *testing.T) {
	w := newWorld(t, 1)
	half := ChangesBurst/2 + 1
	for range 100 { // the log is away
		back, ok := w.MayStore(2, "n1", Announcement{}, half)
		require.True(t, ok)
		back()
	}
	_, ok := w.MayStore(2, "n1", Announcement{}, half)
	require.True(t, ok)
	for range 2 {
		_, ok = w.MayStore(2, "n1", Announcement{}, half)
		require.False(t, ok)
		require.True(t, w.Late(2))
	}
	_, ok = w.MayStore(2, "n1", Announcement{}, half-10)
	require.True(t, ok, "what it may not do costs nothing")
	_, ok = w.MayStore(2, "n1", Announcement{}, ChangesBurst+1)
	require.False(t, ok)
}

// A session that is silent may be one that its node left for another hub: what it announced is not stored over what
// the node announces there.
func TestSilentSessionsAnnounceNothing(t *testing.T) {
	w := newWorld(t, 1)
	st := w.st.State
	now, l := time.Now(), w.node(2)
	l.session, l.hello.Routes = NewSession(2, true), []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}
	l.said = Announcement{Announce: func(*state.Draft) error { return nil }, Routes: 1}
	require.Len(t, st.Waiting(2, l.hello.Routes), 1)
	l.lastWord = now.Add(-protocol.StatusInterval)
	require.Empty(t, w.Due(st, nil, now))
	l.lastWord = now
	require.Len(t, w.Due(st, st, now), 1, "it was silent when the state changed")
	l.said.late = false
	require.Empty(t, w.Due(st, st, now))
	require.Len(t, w.Due(st, nil, now), 1)
}
