package protocol

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func proofCase() (Challenge, []byte, IdentityPrivateKey) {
	c := Challenge{Nonce: make([]byte, ChallengeNonce), Hub: 1, Boot: BootID{8, 7, 6}}
	for i := range c.Nonce {
		c.Nonce[i] = byte(i)
	}
	return c, []byte(`{"boot_id":"0102030405060708"}`), IdentityPrivateKey{3}
}

// What is signed never changes: hubs and agents one version apart agree on it.
func TestProofGolden(t *testing.T) {
	c, hello, id := proofCase()
	require.Equal(t, hex.EncodeToString([]byte("causeway session proof v1\n"))+
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"+ // nonce
		"00000001"+"0807060000000000"+ // hub, its boot id
		"00000005"+ // node
		"4463db3e6cde6664d83d416907dabe7004206125b6471d9b5037f6f1fe041a83", // of the hello
		hex.EncodeToString(c.message(5, hello)))
	require.Equal(t, hex.EncodeToString([]byte("causeway hello v1\n"))+"00000001"+"00000005"+"0900000000000000", hex.EncodeToString(vouchMessage(1, 5, BootID{9})))
	b, err := json.Marshal(c)
	require.NoError(t, err)
	require.JSONEq(t, `{"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","hub":1,"boot_id":"0807060000000000"}`, string(b))
	b, err = json.Marshal(c.Prove(5, hello, id))
	require.NoError(t, err)
	require.JSONEq(t, goldenProof, string(b))
}

const goldenProof = `{"signature":"CDBf5uSePBS23+Y+7KdPCDNZxwFb0TTkfkmBSOBd7LeqsyJ5UHFtAqjw1vQrAtBECyxZK8fvHuxZlS7wOayWBw=="}`

// A proof is of one challenge, hub, run of it, node and hello, by one key.
func TestProofIsOfOneSession(t *testing.T) {
	c, hello, id := proofCase()
	p := c.Prove(5, hello, id)
	require.True(t, p.Proves(c, 5, hello, id.Public()))
	for what, wrong := range map[string]bool{
		"nonce":      p.Proves(Challenge{bytes.Repeat([]byte{1}, ChallengeNonce), c.Hub, c.Boot}, 5, hello, id.Public()),
		"short":      p.Proves(Challenge{c.Nonce[:31], c.Hub, c.Boot}, 5, hello, id.Public()),
		"hub":        p.Proves(Challenge{c.Nonce, 2, c.Boot}, 5, hello, id.Public()),
		"boot":       p.Proves(Challenge{c.Nonce, c.Hub, BootID{1}}, 5, hello, id.Public()),
		"node":       p.Proves(c, 6, hello, id.Public()),
		"hello":      p.Proves(c, 5, append(hello, ' '), id.Public()),
		"key":        p.Proves(c, 5, hello, IdentityPrivateKey{4}.Public()),
		"empty":      Proof{}.Proves(c, 5, hello, id.Public()),
		"vouch":      Proof{Vouch(c.Hub, 5, c.Boot, id)}.Proves(c, 5, hello, id.Public()),
		"statement":  Proof{NodeStatement{Number: 5}.Sign(id).Signature}.Proves(c, 5, hello, id.Public()),
		"as a vouch": Vouched(p.Signature, c.Hub, 5, c.Boot, id.Public()),
		"vouch hub":  Vouched(Vouch(2, 5, BootID{1}, id), 1, 5, BootID{1}, id.Public()),
		"vouch node": Vouched(Vouch(1, 6, BootID{1}, id), 1, 5, BootID{1}, id.Public()),
		"vouch boot": Vouched(Vouch(1, 5, BootID{2}, id), 1, 5, BootID{1}, id.Public()),
		"vouch key":  Vouched(Vouch(1, 5, BootID{1}, IdentityPrivateKey{4}), 1, 5, BootID{1}, id.Public()),
		"no vouch":   Vouched(nil, 1, 5, BootID{1}, id.Public()),
	} {
		require.False(t, wrong, what)
	}
	require.True(t, Vouched(Vouch(1, 5, BootID{1}, id), 1, 5, BootID{1}, id.Public()))
}

func TestParseChallenge(t *testing.T) {
	for _, s := range []string{``, `{}`, `[]`, `{"nonce":"AAAA","hub":1}`, `{"nonce":"` + strings.Repeat("A", 2000) + `","hub":1}`,
		`{"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","hub":0}`, `{"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","hub":1,"boot_id":"x"}`} {
		_, err := ParseChallenge([]byte(s))
		require.ErrorIs(t, err, ErrProofInvalid, s)
	}
	for _, s := range []string{``, `[]`, `{"signature":7}`, `{"signature":"` + strings.Repeat("A", 2000) + `"}`} {
		_, err := ParseProof([]byte(s))
		require.ErrorIs(t, err, ErrProofInvalid, s)
	}
}

// FuzzProof: the challenge comes from a hub, the proof from whoever reaches the hub's
// port from a node's host. Neither parser fails but by its error, what a challenge holds is
// bounded, and no proof is good but the one that the key made.
func FuzzProof(f *testing.F) {
	c, hello, id := proofCase()
	good := c.Prove(5, hello, id)
	for _, v := range []any{c, good, Proof{}} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := ParseChallenge(b); err == nil {
			require.Len(t, got.Nonce, ChallengeNonce)
			again, err := json.Marshal(got)
			require.NoError(t, err)
			back, err := ParseChallenge(again)
			require.NoError(t, err)
			require.Equal(t, got, back)
			require.True(t, got.Prove(5, hello, id).Proves(got, 5, hello, id.Public()))
		}
		if p, err := ParseProof(b); err == nil && p.Proves(c, 5, hello, id.Public()) {
			require.Equal(t, good, p)
		}
	})
}
