package protocol

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A ticket is good for its own token and for no other, and holds nothing of the secret.
func TestTicket(t *testing.T) {
	a, err := NewToken(Pin{}, "h:443")
	require.NoError(t, err)
	b, err := NewToken(Pin{}, "h:443")
	require.NoError(t, err)
	got, err := ParseTicket(a.Ticket().String())
	require.NoError(t, err)
	require.Equal(t, a.Ticket(), got)
	require.True(t, got.Shows(a.Secret.Hash()))
	require.False(t, got.Shows(b.Secret.Hash()))
	require.False(t, got.Shows([32]byte{}))
	other := got
	other.ID = b.ID // another's id with this one's proof
	require.False(t, other.Shows(b.Secret.Hash()))
	require.False(t, other.Shows(a.Secret.Hash()))
	require.NotEqual(t, [32]byte(a.Secret), got.MAC)
	require.NotEqual(t, a.Secret.Hash(), got.MAC)
	for _, s := range []string{"", ".", a.Ticket().String()[1:], a.Ticket().String() + "A", a.ID.String() + "." + a.ID.String()} {
		_, err := ParseTicket(s)
		require.Error(t, err, s)
	}
}

// Whoever reaches the hub's HTTPS port sends what it likes as a ticket.
func FuzzTicket(f *testing.F) {
	f.Add(Ticket{ID: TokenID{1}, MAC: [32]byte{2}}.String())
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseTicket(s)
		if err == nil && k.String() != s {
			t.Fatalf("%q is read as %q", s, k)
		}
	})
}
