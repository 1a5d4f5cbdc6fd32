package join

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// Who shows the ticket of a token is let in, as long as that is good, though strangers used up what
// the address may ask; a wrong ticket is none, and nobody uses up a token's budget with its id alone.
func TestTicketPassesTheDoor(t *testing.T) {
	dir := t.TempDir()
	keys, err := LoadKeys(dir, true)
	require.NoError(t, err)
	store := statetest.Open(t)
	s, err := New(Config{Dir: dir, Keys: keys, Store: store, Events: &event.Log{}, Log: zerolog.Nop()})
	require.NoError(t, err)
	_, err = EnsureHub(t.Context(), store, keys, protocol.Hub{WireGuardKey: keys.Hub.Public(), UDP: []string{"192.0.2.1:1"}, HTTPS: []string{"192.0.2.1:2"}}, []netip.Prefix{protocol.DefaultOverlay4}, false)
	require.NoError(t, err)
	made := func(ttl time.Duration, revoke bool) protocol.Token {
		tok, err := protocol.NewToken(keys.Cluster.Public().Pin(), "192.0.2.1:2")
		require.NoError(t, err)
		hash := tok.Secret.Hash()
		_, err = store.Update(t.Context(), "test", "token", func(d *state.Draft) error {
			if _, ok := d.Sites.Find("a"); !ok {
				if err := d.Add(state.SiteCreated{Name: "a"}); err != nil {
					return err
				}
			}
			if err := d.Add(state.TokenCreated{ID: tok.ID, Hash: hash[:], Site: "a", Expires: d.Now.Add(ttl)}); err != nil || !revoke {
				return err
			}
			return d.Add(state.TokenCancelled{ID: tok.ID})
		})
		require.NoError(t, err)
		return tok
	}
	asks := func(ticket string) bool {
		r := httptest.NewRequest(http.MethodGet, protocol.PathHubList, nil)
		r.Header.Set(protocol.TicketHeader, ticket)
		return s.invited(r)
	}
	good, revoked := made(time.Hour, false), made(time.Hour, true)
	wrong := good.Ticket()
	wrong.MAC[3] ^= 1
	stolen := protocol.Ticket{ID: good.ID}
	unknown, err := protocol.NewToken(good.Pin, good.Addr)
	require.NoError(t, err)
	for range 2 * tokenBurst {
		for _, x := range []string{wrong.String(), stolen.String(), unknown.Ticket().String(), revoked.Ticket().String(), "junk", good.ID.String()} {
			require.False(t, asks(x), x)
		}
	}
	passed := 0
	for range 2 * tokenBurst {
		if asks(good.Ticket().String()) {
			passed++
		}
	}
	require.GreaterOrEqual(t, passed, tokenBurst)
	require.Less(t, passed, 2*tokenBurst, "a token has a budget too")
	next := made(time.Hour, false).Ticket().String()
	require.True(t, asks(next), "each its own")
	for i := 0; i < 1000*DefaultSourceRate; i++ { // what the address may ask is used up
		s.door.source(netip.MustParseAddr("192.0.2.1"), time.Now())
	}
	r := httptest.NewRequest(http.MethodGet, protocol.PathHubList, nil)
	r.RemoteAddr = "192.0.2.1:7"
	r.Header.Set(protocol.TicketHeader, next)
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	require.Equal(t, http.StatusOK, w.Code)
}
