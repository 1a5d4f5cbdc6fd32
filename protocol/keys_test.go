package protocol

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestKeysRoundTripAndHide(t *testing.T) {
	wg, err := NewWireGuardPrivateKey()
	require.NoError(t, err)
	id, err := NewIdentityPrivateKey()
	require.NoError(t, err)
	cl, err := NewClusterPrivateKey()
	require.NoError(t, err)

	wg2, err := ParseWireGuardPrivateKey(wg.Secret())
	require.NoError(t, err)
	require.Equal(t, wg, wg2)
	id2, err := ParseIdentityPrivateKey(id.Secret())
	require.NoError(t, err)
	require.Equal(t, id, id2)
	cl2, err := ParseClusterPrivateKey(cl.Secret())
	require.NoError(t, err)
	require.Equal(t, cl, cl2)

	j, err := json.Marshal([]any{wg, id, cl})
	require.NoError(t, err)
	printed := fmt.Sprintf("%v %+v %#v %s %q %s", []any{wg, id, cl}, []any{wg, id, cl}, []any{wg, id, cl}, wg, id, j)
	for _, s := range []string{wg.Secret(), id.Secret(), cl.Secret()} {
		require.NotContains(t, printed, s[strings.Index(s, ":")+1:])
	}

	var pub WireGuardPublicKey
	require.NoError(t, pub.UnmarshalText([]byte(wg.Public().String())))
	require.Equal(t, wg.Public(), pub)
	require.Error(t, pub.UnmarshalText([]byte(id.Public().String())), "a key of another role")
	_, err = ParseWireGuardPrivateKey(id.Secret())
	require.Error(t, err, "a key of another role")
	require.NotContains(t, err.Error(), id.Secret()[len(prefixIdentityPrivate):])
}

func TestSharedSecretRefusesLowOrderPoints(t *testing.T) {
	k, err := NewWireGuardPrivateKey()
	require.NoError(t, err)
	for _, low := range []WireGuardPublicKey{{}, {1}} {
		_, err := k.SharedSecret(low)
		require.ErrorIs(t, err, ErrLowOrderKey)
	}
	o, err := NewWireGuardPrivateKey()
	require.NoError(t, err)
	a, err := k.SharedSecret(o.Public())
	require.NoError(t, err)
	b, err := o.SharedSecret(k.Public())
	require.NoError(t, err)
	require.Equal(t, a, b)
}

func TestNodeStatement(t *testing.T) {
	id, err := NewIdentityPrivateKey()
	require.NoError(t, err)
	s := NodeStatement{Number: 7, WireGuardKey: WireGuardPublicKey{1}, Epoch: 3}.Sign(id)
	require.True(t, s.Valid())
	for name, change := range map[string]func(*SignedNodeStatement){
		"number":   func(s *SignedNodeStatement) { s.Number++ },
		"key":      func(s *SignedNodeStatement) { s.WireGuardKey[5] ^= 1 },
		"epoch":    func(s *SignedNodeStatement) { s.Epoch-- },
		"identity": func(s *SignedNodeStatement) { s.IdentityKey[0] ^= 1 },
		"cut":      func(s *SignedNodeStatement) { s.Signature = s.Signature[:63] },
		"none":     func(s *SignedNodeStatement) { s.Signature = nil },
	} {
		c := s
		change(&c)
		require.False(t, c.Valid(), name)
	}
}
