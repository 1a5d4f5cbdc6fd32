package protocol

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/curve25519"
)

// Every key role has a type and a text form of its own, so that no key can be
// given where another is meant. Private keys print as 'redacted' and have to
// be asked for their text by Secret.

// Text prefixes, one for each role.
const (
	prefixWireGuardPrivate = "wgkey:"
	prefixWireGuardPublic  = "wgpub:"
	prefixIdentityPrivate  = "idkey:"
	prefixIdentityPublic   = "idpub:"
	prefixClusterPrivate   = "clusterkey:"
	prefixClusterPublic    = "clusterpub:"
)

const redacted = "redacted"

// WireGuardPublicKey is the Curve25519 public key of a node or hub.
type WireGuardPublicKey [32]byte

// WireGuardPrivateKey is the Curve25519 private key of a node or hub. It never
// leaves its host.
type WireGuardPrivateKey [32]byte

// IdentityPublicKey is the Ed25519 key that peers pin for a node.
type IdentityPublicKey [32]byte

// IdentityPrivateKey is the seed of a node's Ed25519 identity key.
type IdentityPrivateKey [32]byte

// ClusterPublicKey verifies hub lists; its hash is the pin in a token.
type ClusterPublicKey [32]byte

// ClusterPrivateKey is the seed of the Ed25519 key that signs hub lists.
type ClusterPrivateKey [32]byte

func encodeKey(prefix string, b []byte) string {
	return prefix + base64.RawURLEncoding.EncodeToString(b)
}

func decodeKey(dst *[32]byte, prefix, s string) error {
	rest, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return fmt.Errorf("key does not begin with %q", prefix)
	}
	if len(rest) != base64.RawURLEncoding.EncodedLen(32) {
		return fmt.Errorf("key %s… has the wrong length", prefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil {
		return fmt.Errorf("key %s… is not base64url", prefix)
	}
	copy(dst[:], b)
	return nil
}

func newSeed() (k [32]byte, err error) {
	_, err = rand.Read(k[:])
	return k, err
}

// NewWireGuardPrivateKey makes a clamped Curve25519 private key.
func NewWireGuardPrivateKey() (WireGuardPrivateKey, error) {
	k, err := newSeed()
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k, err
}

// Public returns the public key of k.
func (k WireGuardPrivateKey) Public() WireGuardPublicKey {
	p, err := curve25519.X25519(k[:], curve25519.Basepoint)
	if err != nil { // only for a low-order point, which the base point is not
		panic(err)
	}
	return WireGuardPublicKey(p)
}

// ErrLowOrderKey says that a public key is a low-order point: whoever sent it
// would force a known shared secret.
var ErrLowOrderKey = errors.New("public key is a low-order point")

// SharedSecret is X25519(k, peer). It fails with ErrLowOrderKey.
func (k WireGuardPrivateKey) SharedSecret(peer WireGuardPublicKey) ([32]byte, error) {
	s, err := curve25519.X25519(k[:], peer[:])
	if err != nil {
		return [32]byte{}, ErrLowOrderKey
	}
	return [32]byte(s), nil
}

// IsZero reports whether k is not set.
func (k WireGuardPrivateKey) IsZero() bool { return k == WireGuardPrivateKey{} }

// Secret returns the text form of k, for the identity file alone.
func (k WireGuardPrivateKey) Secret() string { return encodeKey(prefixWireGuardPrivate, k[:]) }

// String hides the key.
func (k WireGuardPrivateKey) String() string { return redacted }

// GoString hides the key.
func (k WireGuardPrivateKey) GoString() string { return redacted }

// MarshalText refuses: private keys are written through Secret only.
func (k WireGuardPrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// ParseWireGuardPrivateKey reads the form that Secret writes.
func ParseWireGuardPrivateKey(s string) (k WireGuardPrivateKey, err error) {
	err = decodeKey((*[32]byte)(&k), prefixWireGuardPrivate, s)
	return k, err
}

// IsZero reports whether k is not set.
func (k WireGuardPublicKey) IsZero() bool { return k == WireGuardPublicKey{} }

// LowOrder reports whether k is a low-order point, with which every secret is
// the same.
func (k WireGuardPublicKey) LowOrder() bool {
	_, err := WireGuardPrivateKey{0: 8, 31: 64}.SharedSecret(k)
	return err != nil
}

// String returns the text form of k.
func (k WireGuardPublicKey) String() string { return encodeKey(prefixWireGuardPublic, k[:]) }

// MarshalText is String.
func (k WireGuardPublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (k *WireGuardPublicKey) UnmarshalText(b []byte) error {
	return decodeKey((*[32]byte)(k), prefixWireGuardPublic, string(b))
}

// NewIdentityPrivateKey makes a node identity.
func NewIdentityPrivateKey() (IdentityPrivateKey, error) {
	k, err := newSeed()
	return k, err
}

// Public returns the public key of k.
func (k IdentityPrivateKey) Public() IdentityPublicKey { return IdentityPublicKey(ed25519Public(k)) }

// Sign signs msg.
func (k IdentityPrivateKey) Sign(msg []byte) []byte { return ed25519Sign(k, msg) }

// Secret returns the text form of k, for the identity file alone.
func (k IdentityPrivateKey) Secret() string { return encodeKey(prefixIdentityPrivate, k[:]) }

// String hides the key.
func (k IdentityPrivateKey) String() string { return redacted }

// GoString hides the key.
func (k IdentityPrivateKey) GoString() string { return redacted }

// MarshalText hides the key.
func (k IdentityPrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// ParseIdentityPrivateKey reads the form that Secret writes.
func ParseIdentityPrivateKey(s string) (k IdentityPrivateKey, err error) {
	err = decodeKey((*[32]byte)(&k), prefixIdentityPrivate, s)
	return k, err
}

// IsZero reports whether k is not set.
func (k IdentityPublicKey) IsZero() bool { return k == IdentityPublicKey{} }

// Verify reports whether sig is k's signature of msg.
func (k IdentityPublicKey) Verify(msg, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && ed25519.Verify(k[:], msg, sig)
}

// String returns the text form of k.
func (k IdentityPublicKey) String() string { return encodeKey(prefixIdentityPublic, k[:]) }

// MarshalText is String.
func (k IdentityPublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (k *IdentityPublicKey) UnmarshalText(b []byte) error {
	return decodeKey((*[32]byte)(k), prefixIdentityPublic, string(b))
}

// NewClusterPrivateKey makes a cluster key.
func NewClusterPrivateKey() (ClusterPrivateKey, error) {
	k, err := newSeed()
	return k, err
}

// Public returns the public key of k.
func (k ClusterPrivateKey) Public() ClusterPublicKey { return ClusterPublicKey(ed25519Public(k)) }

// Sign signs msg.
func (k ClusterPrivateKey) Sign(msg []byte) []byte { return ed25519Sign(k, msg) }

// Secret returns the text form of k, for the key file and its backup alone.
func (k ClusterPrivateKey) Secret() string { return encodeKey(prefixClusterPrivate, k[:]) }

// String hides the key.
func (k ClusterPrivateKey) String() string { return redacted }

// GoString hides the key.
func (k ClusterPrivateKey) GoString() string { return redacted }

// MarshalText hides the key.
func (k ClusterPrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// ParseClusterPrivateKey reads the form that Secret writes.
func ParseClusterPrivateKey(s string) (k ClusterPrivateKey, err error) {
	err = decodeKey((*[32]byte)(&k), prefixClusterPrivate, s)
	return k, err
}

// Pin is the hash of a cluster key, as a token carries it.
type Pin [sha256.Size]byte

// String is the beginning of it, for a person who compares two.
func (p Pin) String() string { return hex.EncodeToString(p[:8]) }

// Pin returns the SHA-256 of k.
func (k ClusterPublicKey) Pin() Pin { return sha256.Sum256(k[:]) }

// Verify reports whether sig is k's signature of msg.
func (k ClusterPublicKey) Verify(msg, sig []byte) bool {
	return len(sig) == ed25519.SignatureSize && ed25519.Verify(k[:], msg, sig)
}

// String returns the text form of k.
func (k ClusterPublicKey) String() string { return encodeKey(prefixClusterPublic, k[:]) }

// MarshalText is String.
func (k ClusterPublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (k *ClusterPublicKey) UnmarshalText(b []byte) error {
	return decodeKey((*[32]byte)(k), prefixClusterPublic, string(b))
}

func ed25519Public(seed [32]byte) [32]byte {
	return [32]byte(ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey))
}

func ed25519Sign(seed [32]byte, msg []byte) []byte {
	return ed25519.Sign(ed25519.NewKeyFromSeed(seed[:]), msg)
}
