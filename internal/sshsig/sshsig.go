// Package sshsig verifies signatures made by 'ssh-keygen -Y sign' with keys of
// type ed25519, without OpenSSH and without I/O.
//
// The format is PROTOCOL.sshsig of OpenSSH: an armoured blob of
//
//	"SSHSIG"  uint32 version  string key  string namespace  string reserved  string hash  string signature
//
// whose signature is over
//
//	"SSHSIG"  string namespace  string reserved  string hash  string H(message)
package sshsig

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// MaxSignature is what an armoured signature is never longer than.
const MaxSignature = 4 << 10

const (
	magic   = "SSHSIG"
	version = 1
	keyType = "ssh-ed25519"
	begin   = "-----BEGIN SSH SIGNATURE-----"
	end     = "-----END SSH SIGNATURE-----"
)

// PublicKey is an ed25519 key.
type PublicKey struct{ key [ed25519.PublicKeySize]byte }

// String is the key as it stands in authorized_keys, without a comment.
func (k PublicKey) String() string {
	return keyType + " " + base64.StdEncoding.EncodeToString(k.blob())
}

func (k PublicKey) blob() []byte { return appendString(appendString(nil, []byte(keyType)), k.key[:]) }

// ParseKey reads a line 'ssh-ed25519 AAAA… comment'.
func ParseKey(line string) (k PublicKey, err error) {
	f := strings.Fields(line)
	if len(f) < 2 || f[0] != keyType {
		return k, fmt.Errorf("not a public key 'ssh-ed25519 AAAA…'")
	}
	b, err := base64.StdEncoding.DecodeString(f[1])
	if err != nil {
		return k, fmt.Errorf("not a public key 'ssh-ed25519 AAAA…': what follows the type is not base64")
	}
	return parseBlob(b)
}

func parseBlob(b []byte) (k PublicKey, err error) {
	typ, b, err := cutString(b)
	if err != nil {
		return k, err
	}
	key, b, err := cutString(b)
	if err != nil || len(b) > 0 || string(typ) != keyType || len(key) != len(k.key) {
		return k, errors.New("not a key of type ssh-ed25519")
	}
	copy(k.key[:], key)
	return k, nil
}

// Errors that callers tell apart.
var (
	ErrUntrusted = errors.New("signed by a key that is not trusted here")
	ErrInvalid   = errors.New("the signature does not belong to these bytes")
)

// Verify checks that one of keys signed message for namespace, and returns which.
func Verify(message, armoured []byte, namespace string, keys []PublicKey) (PublicKey, error) {
	var none PublicKey
	if len(armoured) > MaxSignature {
		return none, fmt.Errorf("the signature is longer than %d bytes", MaxSignature)
	}
	b, err := unarmour(armoured)
	if err != nil {
		return none, err
	}
	b, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok || len(b) < 4 || binary.BigEndian.Uint32(b) != version {
		return none, errors.New("not an SSH signature of version 1")
	}
	b = b[4:]
	var field [5][]byte // key, namespace, reserved, hash, signature
	for i := range field {
		if field[i], b, err = cutString(b); err != nil {
			return none, err
		}
	}
	if len(b) > 0 {
		return none, errors.New("the signature has bytes behind its end")
	}
	key, err := parseBlob(field[0])
	if err != nil {
		return none, err
	}
	if string(field[1]) != namespace {
		return none, fmt.Errorf("the signature is for %.40q, not for %q", field[1], namespace)
	}
	var sum []byte
	switch string(field[3]) {
	case "sha512":
		h := sha512.Sum512(message)
		sum = h[:]
	case "sha256":
		h := sha256.Sum256(message)
		sum = h[:]
	default:
		return none, fmt.Errorf("the signature's hash %.20q is none of sha256 and sha512", field[3])
	}
	typ, rest, err := cutString(field[4])
	if err != nil {
		return none, err
	}
	sig, rest, err := cutString(rest)
	if err != nil || len(rest) > 0 || string(typ) != keyType || len(sig) != ed25519.SignatureSize {
		return none, errors.New("the signature is not of type ssh-ed25519")
	}
	trusted := false
	for _, k := range keys {
		trusted = trusted || k == key
	}
	if !trusted {
		return none, fmt.Errorf("%w: %s", ErrUntrusted, key)
	}
	signed := []byte(magic)
	for _, s := range [][]byte{field[1], field[2], field[3], sum} {
		signed = appendString(signed, s)
	}
	if !ed25519.Verify(key.key[:], signed, sig) {
		return none, ErrInvalid
	}
	return key, nil
}

func unarmour(b []byte) ([]byte, error) {
	text := strings.TrimSpace(string(b))
	text, ok := strings.CutPrefix(text, begin)
	text, ok2 := strings.CutSuffix(text, end)
	if !ok || !ok2 {
		return nil, errors.New("not an SSH signature")
	}
	out, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		return nil, errors.New("not an SSH signature: its text is not base64")
	}
	return out, nil
}

// cutString takes one string, behind its length in 4 bytes, off b.
func cutString(b []byte) (s, rest []byte, err error) {
	if len(b) < 4 {
		return nil, nil, errors.New("an SSH string is cut short")
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, errors.New("an SSH string is cut short")
	}
	return b[4 : 4+n], b[4+n:], nil
}

func appendString(b, s []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
