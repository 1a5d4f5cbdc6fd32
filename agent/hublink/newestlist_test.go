package hublink

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/health"
	"causeway/protocol"
)

// The hub of a session is asked whether the list is the newest; that it says so no more
// is a condition after a day.
func TestNewestListAsked(t *testing.T) {
	now := time.Now()
	var later atomic.Int64
	w := newWorld(t, func() time.Time { return now.Add(time.Duration(later.Load())) })
	a := w.Link
	cond := func() protocol.Condition {
		for _, c := range a.board.List() {
			if c.Name == health.HubList {
				return c
			}
		}
		t.Fatal("no such condition")
		return protocol.Condition{}
	}
	ask := func(at time.Time) protocol.ListNonce {
		a.askWhetherNewest(at)
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.newest.nonce
	}
	a.newestSession()
	n := ask(now)
	require.NotZero(t, n)
	require.Equal(t, n, ask(now.Add(time.Second)), "no second question at once")
	require.NotEqual(t, n, ask(now.Add(newestAgain)), "again, for there was no answer")
	ask(now.Add(30 * 24 * time.Hour))
	require.True(t, cond().OK, "a hub that never said so may be one of before")

	a.newestSession()
	ask(now)
	wrong := protocol.HubListAnswer{SignedHubList: w.signed, Fresh: w.signed.Fresh(w.cluster, w.list.Serial, protocol.ListNonce{1}, now)}
	a.hubListTold(t.Context(), wrong)
	require.Zero(t, w.stored().HubListConfirmed, "said to another")
	a.newestSession()
	ask(now)
	a.hubListTold(t.Context(), protocol.HubListAnswer{SignedHubList: w.signed})
	require.Zero(t, w.stored().HubListConfirmed, "not said")
	a.newestSession()
	n = ask(now)
	a.hubListTold(t.Context(), protocol.HubListAnswer{SignedHubList: w.signed, Fresh: w.signed.Fresh(w.cluster, w.list.Serial, n, now)})
	require.True(t, now.Equal(w.stored().HubListConfirmed))
	a.hubListTold(t.Context(), protocol.HubListAnswer{SignedHubList: w.signed, Fresh: w.signed.Fresh(w.cluster, w.list.Serial, n, now)})

	ask(now.Add(newestWithin + time.Minute))
	require.False(t, cond().OK)
	require.Contains(t, cond().Cause, "no hub has shown since")
	next := w.list
	next.Serial, next.NotAfter = w.list.Serial+1, now.Add(2*newestWithin)
	signed, err := next.Sign(w.cluster)
	require.NoError(t, err)
	later.Store(int64(newestWithin + time.Minute))
	a.newestSession()
	n = ask(a.now())
	require.False(t, cond().OK, "until it says so")
	a.hubListTold(t.Context(), protocol.HubListAnswer{SignedHubList: signed, Fresh: signed.Fresh(w.cluster, next.Serial, n, now)})
	require.True(t, cond().OK)
	require.Equal(t, signed.Payload, w.stored().HubList.Payload, "the newest list is taken with the word")
}
