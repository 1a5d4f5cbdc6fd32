package protocol

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzNodeStatement: statements come from nodes (Hello) and from hubs (netmaps),
// either of which may lie. Nothing but what the identity signed is valid, and
// what is valid survives its JSON form.
func FuzzNodeStatement(f *testing.F) {
	id := IdentityPrivateKey{3}
	s := NodeStatement{Number: 2, WireGuardKey: WireGuardPublicKey{4}, Epoch: 7}.Sign(id)
	b, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"number":4294967295,"epoch":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got SignedNodeStatement
		if json.Unmarshal(b, &got) != nil || !got.Valid() {
			return
		}
		if got.IdentityKey == id.Public() {
			require.Equal(t, s.NodeStatement, got.NodeStatement, "not what was signed")
		}
		again, err := json.Marshal(got)
		require.NoError(t, err)
		var back SignedNodeStatement
		require.NoError(t, json.Unmarshal(again, &back))
		require.True(t, back.Valid())
		require.Equal(t, got, back)
	})
}
