package protocol

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"unicode"
)

// Token is a one-time join token. Its text form is
//
//	cw1.<id>.<secret>.<pin>.<host:port>
//
// id: 12 bytes, secret: 32 bytes, pin: SHA-256 of the cluster key, each
// base64url without padding; host:port is where the hub answers HTTPS.
//
// Agents of before the hub list's Freshness take no further part. So what a token says
// of it stands in the secret, where they look at nothing: see Require.
type Token struct {
	ID     TokenID
	Secret TokenSecret
	Pin    Pin
	Addr   string // host:port of the hub's HTTPS
}

// TokenID names a token. It is not secret.
type TokenID [12]byte

// TokenSecret is what whoever redeems a token has to show. The hub keeps its
// SHA-256 only.
type TokenSecret [32]byte

const tokenPrefix = "cw1"

// maxToken bounds the text before anything is split or allocated: the fixed
// parts take 107 characters, a host name at most 253, a port 6. MaxTokenText bounds it with what
// is around and between.
const (
	maxToken     = 512
	MaxTokenText = 4 << 10
)

// NewToken makes a token with fresh id and secret.
func NewToken(pin Pin, addr string) (Token, error) {
	t := Token{Pin: pin, Addr: addr}
	for first := true; first || strings.HasPrefix(t.ID.String(), "-"); first = false { // which commands would take for a flag
		if _, err := rand.Read(t.ID[:]); err != nil {
			return Token{}, err
		}
	}
	if _, err := rand.Read(t.Secret[:]); err != nil {
		return Token{}, err
	}
	return t, nil
}

// Layout of the secret of a token that requires a Freshness: 20 random bytes, the least
// serial (big endian), and a sum that tells it from 32 random bytes.
const (
	secretSerial = 20
	secretSum    = 28
)

// Require makes a new token ask its redeemer to join by a hub list that is shown to be
// the newest, of this serial or a higher one. 160 bits of the secret stay random.
func (t *Token) Require(least uint64) {
	binary.BigEndian.PutUint64(t.Secret[secretSerial:], least)
	copy(t.Secret[secretSum:], t.sum())
}

// Required returns what Require was given; ok is false for a token without it. One
// in 2^32 of those seems to have it, and is refused by its redeemer.
func (t Token) Required() (least uint64, ok bool) {
	if subtle.ConstantTimeCompare(t.Secret[secretSum:], t.sum()) == 0 {
		return 0, false
	}
	return binary.BigEndian.Uint64(t.Secret[secretSerial:]), true
}

// sum is over id, pin and the secret before it.
func (t Token) sum() []byte {
	b := append([]byte("causeway token fresh v1\n"), t.ID[:]...)
	b = append(b, t.Pin[:]...)
	h := sha256.Sum256(append(b, t.Secret[:secretSum]...))
	return h[:len(t.Secret)-secretSum]
}

// ErrMalformedToken wraps every error of ParseToken.
var ErrMalformedToken = errors.New("malformed token")

// ParseToken reads the text form. What a mail, a terminal or an editor put into it is no part of
// it: blanks and ends of lines, quotes around it, byte order marks (a file in UTF-16 as well).
// It never puts the secret into an error.
func ParseToken(s string) (Token, error) {
	bad := func(what string) (Token, error) {
		return Token{}, fmt.Errorf("%w: %s; a token looks like cw1.ID.SECRET.PIN.HOST:PORT and is made by 'causeway token create'", ErrMalformedToken, what)
	}
	if len(s) > MaxTokenText {
		return bad("longer than 512 characters")
	}
	if s = unwrap(s); len(s) > maxToken {
		return bad("longer than 512 characters")
	}
	f := strings.SplitN(s, ".", 5)
	if len(f) != 5 {
		return bad("it has not five parts")
	}
	if f[0] != tokenPrefix {
		return bad("it does not begin with cw1")
	}
	var t Token
	for _, p := range []struct {
		name string
		dst  []byte
		text string
	}{{"id", t.ID[:], f[1]}, {"secret", t.Secret[:], f[2]}, {"pin", t.Pin[:], f[3]}} {
		if len(p.text) != base64.RawURLEncoding.EncodedLen(len(p.dst)) {
			return bad("its " + p.name + " has the wrong length")
		}
		b, err := base64.RawURLEncoding.Strict().DecodeString(p.text)
		if err != nil {
			return bad("its " + p.name + " is not base64url")
		}
		copy(p.dst, b)
	}
	if err := checkHostPort(f[4]); err != nil {
		return bad("its address: " + err.Error())
	}
	t.Addr = f[4]
	return t, nil
}

// unwrap takes off a token what is no part of it. None of it can be: a token is of visible ASCII.
func unwrap(s string) string {
	if len(s) >= 2 && (s[:2] == "\xff\xfe" || s[:2] == "\xfe\xff") { // UTF-16, as PowerShell's > writes it
		s = strings.ReplaceAll(s[2:], "\x00", "")
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == '\ufeff' || r == '\u200b' {
			return -1
		}
		return r
	}, s)
	return strings.Trim(s, "\"'`<>")
}

func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("not HOST:PORT")
	}
	if host == "" || strings.ContainsAny(host, " /@?#\\") || strings.ContainsFunc(host, unicode.IsControl) {
		return errors.New("no valid host")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("no valid port")
	}
	return nil
}

// Text returns the token with its secret. It is shown once, to whoever made
// the token.
func (t Token) Text() string {
	e := base64.RawURLEncoding.EncodeToString
	return strings.Join([]string{tokenPrefix, e(t.ID[:]), e(t.Secret[:]), e(t.Pin[:]), t.Addr}, ".")
}

// String hides the secret.
func (t Token) String() string { return tokenPrefix + "." + t.ID.String() + "." + redacted }

// GoString hides the secret.
func (t Token) GoString() string { return t.String() }

// String returns the id's text form.
func (id TokenID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// MarshalText is String.
func (id TokenID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (id *TokenID) UnmarshalText(b []byte) error {
	if len(b) != base64.RawURLEncoding.EncodedLen(len(id)) {
		return errors.New("token id has the wrong length")
	}
	d, err := base64.RawURLEncoding.Strict().DecodeString(string(b))
	if err != nil {
		return errors.New("token id is not base64url")
	}
	copy(id[:], d)
	return nil
}

// Hash is what the hub keeps of a secret.
func (s TokenSecret) Hash() [sha256.Size]byte { return sha256.Sum256(s[:]) }

// String hides the secret.
func (s TokenSecret) String() string { return redacted }

// GoString hides the secret.
func (s TokenSecret) GoString() string { return redacted }
