package join

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/internal/retry"
	"causeway/protocol"
)

// A hub that is busy, away or restarts is asked again by the same keys, and says so; the time is
// bounded; what does not pass is final at once.
func TestWaits(t *testing.T) {
	h, s := newHub(t), store(t)
	left := []int{http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable}
	h.post = func(w http.ResponseWriter) bool {
		if len(left) == 0 {
			return false
		}
		w.WriteHeader(left[0])
		left = left[1:]
		return true
	}
	var told []string
	id, err := Join(t.Context(), s, Config{Token: h.token, Name: "n", Proxy: noProxy, Wait: time.Minute,
		Progress: func(p Progress) { told = append(told, p.Err.Error()) }})
	require.NoError(t, err)
	require.Equal(t, h.token.Addr, id.Joined.Hub)
	require.Equal(t, "127.0.0.1", id.Joined.Local.String())
	require.Equal(t, h.token.Addr, id.Joined.Addr.String())
	require.Len(t, told, 3)
	require.Contains(t, told[0], "too many requests (HTTP status 429)")
	require.Contains(t, told[1], "is away or busy, or a proxy before it finds none (HTTP status 502)")
	for _, k := range h.keys {
		require.Equal(t, h.keys[0], k)
	}
}

func TestWaitIsBounded(t *testing.T) {
	final := errors.New("final")
	passes := &retry.StatusError{Code: 429, After: 20 * time.Second}
	synctest.Test(t, func(t *testing.T) {
		w := newWaiter(Config{Wait: 2 * time.Minute})
		begun := time.Now()
		err := w.do(t.Context(), func() error { return passes })
		require.ErrorIs(t, err, passes)
		require.ErrorContains(t, err, "tried 6 times within ")
		require.Less(t, time.Since(begun), 2*time.Minute)
		require.Greater(t, time.Since(begun), 90*time.Second)

		begun = time.Now()
		require.Equal(t, final, newWaiter(Config{Wait: time.Minute}).do(t.Context(), func() error { return final }))
		require.Equal(t, passes, newWaiter(Config{}).do(t.Context(), func() error { return passes }))
		require.Zero(t, time.Since(begun))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, newWaiter(Config{Wait: time.Minute}).do(ctx, func() error { return passes }), context.DeadlineExceeded)
	})
}

// Every answer has the words on which whoever sits at the console acts rightly.
func TestAnswered(t *testing.T) {
	for code, want := range map[int]string{
		429: "the hub at hub:443 has too many requests (HTTP status 429); try again with the same token",
		503: "is away or busy", 504: "a proxy before it finds none", 511: "a captive portal or a proxy; log in there", 302: "a captive portal",
		404: "no Causeway hub is there", 401: "no Causeway hub is there",
	} {
		err := answered("hub:443", &retry.StatusError{Code: code})
		require.ErrorContains(t, err, want)
		require.Equal(t, retry.Status(code), temporary(err), code)
	}
	require.True(t, temporary(&RefusedError{Code: protocol.RefusedBusy}))
	require.False(t, temporary(&RefusedError{Code: protocol.RefusedHalted}), "it takes an operator")
	require.False(t, temporary(&RefusedError{Code: protocol.RefusedToken}))
}

// Each request shows the token's ticket.
func TestTicketIsShown(t *testing.T) {
	tok, err := protocol.NewToken(protocol.Pin{}, "x:1")
	require.NoError(t, err)
	var got string
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get(protocol.TicketHeader) }))
	defer srv.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	require.NoError(t, err)
	_, err = ask(srv.Client(), r, tok, 10)
	require.NoError(t, err)
	require.Equal(t, tok.Ticket().String(), got)
}
