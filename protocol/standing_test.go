package protocol

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNodeAsk(t *testing.T) {
	k, err := NewIdentityPrivateKey()
	require.NoError(t, err)
	n := ListNonce{1}
	a := NodeAsk{Number: 7, WireGuardKey: WireGuardPublicKey{2}, Epoch: 3, Time: time.Unix(1700000000, 5)}.Sign(n, k)
	read, err := ParseNodeAsk(a.Query())
	require.NoError(t, err)
	require.Equal(t, a, read)
	require.Less(t, len(a.Query()), MaxNodeAsk)
	require.True(t, read.SignedBy(n, k.Public()))
	for name, change := range map[string]func(*NodeAsk){
		"number":    func(a *NodeAsk) { a.Number++ },
		"key":       func(a *NodeAsk) { a.WireGuardKey[5]++ },
		"epoch":     func(a *NodeAsk) { a.Epoch++ },
		"time":      func(a *NodeAsk) { a.Time = a.Time.Add(time.Second) },
		"signature": func(a *NodeAsk) { a.Signature = a.Signature[1:] },
	} {
		bad := a
		change(&bad)
		require.False(t, bad.SignedBy(n, k.Public()), name)
	}
	require.False(t, a.SignedBy(ListNonce{2}, k.Public()), "of another question")
	for _, text := range []string{"", "%", "bnVsbA", string(make([]byte, MaxNodeAsk+1))} {
		if a, err := ParseNodeAsk(text); err == nil {
			require.False(t, a.SignedBy(n, k.Public()), text)
		}
	}
}

func TestStanding(t *testing.T) {
	k, err := NewClusterPrivateKey()
	require.NoError(t, err)
	n := ListNonce{1}
	s := Standing{Number: 7, WireGuardKey: WireGuardPublicKey{2}, KeyEpoch: 3, KeySince: time.Unix(1700000000, 5)}.Sign(n, k)
	require.True(t, s.SignedBy(n, k.Public()))
	require.False(t, s.SignedBy(ListNonce{2}, k.Public()), "of another question")
	for name, change := range map[string]func(*Standing){
		"number":    func(s *Standing) { s.Number++ },
		"key":       func(s *Standing) { s.WireGuardKey[5]++ },
		"epoch":     func(s *Standing) { s.KeyEpoch++ },
		"since":     func(s *Standing) { s.KeySince = s.KeySince.Add(time.Second) },
		"gone":      func(s *Standing) { s.Gone = StandingLeft },
		"name":      func(s *Standing) { s.Name = "x" },
		"taken":     func(s *Standing) { s.Taken = true },
		"signature": func(s *Standing) { s.Signature = nil },
	} {
		bad := s
		change(&bad)
		require.False(t, bad.SignedBy(n, k.Public()), name)
	}

	own, other := s.WireGuardKey, WireGuardPublicKey{3}
	for name, c := range map[string]struct {
		ask      NodeAsk
		gone     string
		outdated bool
	}{
		"the same key":                         {ask: NodeAsk{WireGuardKey: own, Epoch: 3}},
		"a key that was rotated out":           {ask: NodeAsk{WireGuardKey: other, Epoch: 2}, outdated: true},
		"another key of the same epoch":        {ask: NodeAsk{WireGuardKey: other, Epoch: 3}, outdated: true},
		"a key that the hub does not know yet": {ask: NodeAsk{WireGuardKey: other, Epoch: 4}},
		"gone":                                 {ask: NodeAsk{WireGuardKey: other, Epoch: 2}, gone: StandingLeft},
	} {
		s := s
		s.Gone = c.gone
		require.Equal(t, c.outdated, s.Outdates(c.ask), name)
	}
}

func FuzzNodeAsk(f *testing.F) {
	f.Add(NodeAsk{Number: 7, Epoch: 3}.Query())
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseNodeAsk(text)
		if err == nil {
			if again, err := ParseNodeAsk(a.Query()); err == nil {
				require.Equal(t, a.Number, again.Number)
			}
		}
	})
}
