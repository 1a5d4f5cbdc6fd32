package hublink

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// FuzzHubList: anybody may answer in a hub's place. Nothing but what the cluster
// key signed is taken, and nothing breaks.
func FuzzHubList(f *testing.F) {
	key := protocol.ClusterPrivateKey{1}
	signed, err := protocol.HubList{Version: 1, Serial: 3, Hubs: []protocol.Hub{{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{2}, HTTPS: []string{"192.0.2.1:443"}}}}.Sign(key)
	if err != nil {
		f.Fatal(err)
	}
	b, err := json.Marshal(signed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"payload":"e30="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readList(bytes.NewReader(b))
		if err != nil {
			return
		}
		if l, err := s.Open(key.Public().Pin()); err == nil {
			require.Equal(t, signed.Payload, s.Payload, "not what was signed")
			require.Equal(t, uint64(3), l.Serial)
		}
	})
}
