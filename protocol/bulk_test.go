package protocol

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// What is signed never changes: hubs and agents one version apart agree on it.
func TestBulkProofGolden(t *testing.T) {
	c, _, id := proofCase()
	require.Equal(t, hex.EncodeToString([]byte("causeway bulk connection v1\n"))+
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"+ // nonce
		"00000001"+"0807060000000000"+ // hub, its boot id
		"00000005", // node
		hex.EncodeToString(c.bulkMessage(5)))
	b, err := json.Marshal(c.ProveBulk(5, id))
	require.NoError(t, err)
	var p BulkProof
	require.NoError(t, json.Unmarshal(b, &p))
	require.True(t, p.Proves(c, 5, id.Public()))
	require.Regexp(t, `^\{"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","signature":"[^"]{88}"\}$`, string(b))
}

// A proof is of one challenge, hub, run of it and node, by one key, and no other signature of the
// node's is one.
func TestBulkProofIsOfOneConnection(t *testing.T) {
	c, hello, id := proofCase()
	p := c.ProveBulk(5, id)
	for what, wrong := range map[string]bool{
		"nonce":      p.Proves(Challenge{bytes.Repeat([]byte{1}, ChallengeNonce), c.Hub, c.Boot}, 5, id.Public()),
		"short":      BulkProof{c.Nonce[:31], p.Signature}.Proves(Challenge{c.Nonce[:31], c.Hub, c.Boot}, 5, id.Public()),
		"other":      BulkProof{bytes.Repeat([]byte{1}, ChallengeNonce), p.Signature}.Proves(c, 5, id.Public()),
		"hub":        p.Proves(Challenge{c.Nonce, 2, c.Boot}, 5, id.Public()),
		"boot":       p.Proves(Challenge{c.Nonce, c.Hub, BootID{1}}, 5, id.Public()),
		"node":       p.Proves(c, 6, id.Public()),
		"key":        p.Proves(c, 5, IdentityPrivateKey{4}.Public()),
		"empty":      BulkProof{Nonce: c.Nonce}.Proves(c, 5, id.Public()),
		"a session":  BulkProof{c.Nonce, c.Prove(5, hello, id).Signature}.Proves(c, 5, id.Public()),
		"a vouch":    BulkProof{c.Nonce, Vouch(c.Hub, 5, c.Boot, id)}.Proves(c, 5, id.Public()),
		"as a proof": Proof{p.Signature}.Proves(c, 5, hello, id.Public()),
	} {
		require.False(t, wrong, what)
	}
	for _, b := range []string{`{}`, `null`, `[]`, `{"nonce":"AAEC","signature":"AA=="}`, `{"nonce":1}`} {
		var p BulkProof
		require.False(t, json.Unmarshal([]byte(b), &p) == nil && p.Proves(c, 5, id.Public()), b)
	}
}
