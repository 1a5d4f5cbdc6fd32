package protocol

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTokenRoundTrip(t *testing.T) {
	key, err := NewClusterPrivateKey()
	require.NoError(t, err)
	tok, err := NewToken(key.Public().Pin(), "hub.example.com:443")
	require.NoError(t, err)
	got, err := ParseToken(" " + tok.Text() + "\n")
	require.NoError(t, err)
	require.Equal(t, tok, got)

	six := tok
	six.Addr = "[2001:db8::1]:443"
	got, err = ParseToken(six.Text())
	require.NoError(t, err)
	require.Equal(t, six, got)
}

// A token is taken as mails, terminals and editors leave it.
func TestTokenAsItComes(t *testing.T) {
	tok, err := NewToken(Pin{1}, "hub.example.com:443")
	require.NoError(t, err)
	text := tok.Text()
	utf16 := func(s string, little bool) string {
		out := "\xfe\xff"
		if little {
			out = "\xff\xfe"
		}
		for _, c := range []byte(s) {
			if little {
				out += string([]byte{c, 0})
			} else {
				out += string([]byte{0, c})
			}
		}
		return out
	}
	for name, s := range map[string]string{
		"blanks around": "\t  " + text + " \r\n\n", "wrapped": text[:70] + "\n" + text[70:], "wrapped by Windows, indented": "> " + text[:40] + "\r\n  " + text[40:120] + "\r\n  " + text[120:],
		"byte order mark": "\ufeff" + text, "no-break space": "\u00a0" + text[:9] + "\u200b" + text[9:], "quoted": "'" + text + "'\n", "quoted twice": "\"`" + text + "`\"",
		"UTF-16, little endian": utf16(text+"\r\n", true), "UTF-16, big endian": utf16(text, false),
	} {
		got, err := ParseToken(s)
		require.NoError(t, err, name)
		require.Equal(t, tok, got, name)
	}
	_, err = ParseToken(text + strings.Repeat(" ", MaxTokenText))
	require.ErrorIs(t, err, ErrMalformedToken)
}

func TestTokenGolden(t *testing.T) {
	var tok Token
	for i := range tok.ID {
		tok.ID[i] = byte(i)
	}
	for i := range tok.Secret {
		tok.Secret[i] = byte(0x40 + i)
	}
	tok.Pin = ClusterPublicKey{1}.Pin()
	tok.Addr = "192.0.2.1:8443"
	require.Equal(t, "cw1.AAECAwQFBgcICQoL.QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8."+
		"AdD6vSUfy74rk7S5J7Jq0qGpkHcVLkXe0eZ4r6RdvsU.192.0.2.1:8443", tok.Text())
}

// What a token requires stands in its secret, so that agents of before read it as ever.
func TestTokenRequires(t *testing.T) {
	tok, err := NewToken(Pin{1}, "hub:443")
	require.NoError(t, err)
	_, ok := tok.Required()
	require.False(t, ok)
	before := tok
	tok.Require(5<<32 | 7)
	require.Equal(t, before.Secret[:secretSerial], tok.Secret[:secretSerial])
	got, err := ParseToken(tok.Text())
	require.NoError(t, err)
	require.Len(t, tok.Text(), len(before.Text()))
	least, ok := got.Required()
	require.True(t, ok)
	require.Equal(t, uint64(5<<32|7), least)
	for i := range got.Secret {
		changed := got
		changed.Secret[i] ^= 1
		_, ok := changed.Required()
		require.False(t, ok, "byte %d", i)
	}
	for _, other := range []func(*Token){func(t *Token) { t.ID[0] ^= 1 }, func(t *Token) { t.Pin[0] ^= 1 }} {
		changed := got
		other(&changed)
		_, ok := changed.Required()
		require.False(t, ok)
	}
	// The layout, for agents and hubs of two versions.
	golden := Token{Addr: "192.0.2.1:8443"}
	golden.Require(258)
	require.Equal(t, "0000000000000000000000000000000000000000"+"0000000000000102"+"b7459fa4", hex.EncodeToString(golden.Secret[:secretSum])+hex.EncodeToString(golden.Secret[secretSum:]))
}

func TestTokenHidesItsSecret(t *testing.T) {
	tok, err := NewToken(Pin{}, "h:1")
	require.NoError(t, err)
	secret := strings.Split(tok.Text(), ".")[2]
	for _, s := range []string{tok.String(), fmt.Sprintf("%v %+v %#v %s", tok, tok, tok, tok.Secret), fmt.Sprintf("%v %#v", tok.Secret, tok.Secret)} {
		require.NotContains(t, s, secret)
	}
}

func TestParseTokenRefuses(t *testing.T) {
	tok, err := NewToken(Pin{}, "hub:443")
	require.NoError(t, err)
	good := tok.Text()
	f := strings.SplitN(good, ".", 5)
	for name, s := range map[string]string{
		"empty":          "",
		"four parts":     strings.Join(f[:4], "."),
		"other version":  "cw2" + strings.TrimPrefix(good, "cw1"),
		"short secret":   strings.Join([]string{f[0], f[1], f[2][1:], f[3], f[4]}, "."),
		"not base64url":  strings.Join([]string{f[0], f[1], "+" + f[2][1:], f[3], f[4]}, "."),
		"long id":        strings.Join([]string{f[0], f[1] + "AA", f[2], f[3], f[4]}, "."),
		"no port":        strings.Join([]string{f[0], f[1], f[2], f[3], "hub"}, "."),
		"port zero":      strings.Join([]string{f[0], f[1], f[2], f[3], "hub:0"}, "."),
		"port too large": strings.Join([]string{f[0], f[1], f[2], f[3], "hub:65536"}, "."),
		"no host":        strings.Join([]string{f[0], f[1], f[2], f[3], ":443"}, "."),
		"path in host":   strings.Join([]string{f[0], f[1], f[2], f[3], "hub/x:443"}, "."),
		"too long":       good + strings.Repeat("a", maxToken),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseToken(s)
			require.ErrorIs(t, err, ErrMalformedToken)
			require.NotContains(t, err.Error(), f[2])
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

// FuzzParseToken: the text comes from a shell, a file or a ticket, perhaps from
// an attacker who hopes to crash the agent or to send it to an odd address.
// Whatever parses has to come out as it went in.
func FuzzParseToken(f *testing.F) {
	tok, err := NewToken(Pin{1}, "hub:443")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(tok.Text())
	f.Add("cw1....")
	f.Add("cw1.AAECAwQFBgcICQoL.QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8.AfKl5lH_jdnwg1_1b8LODDS7izlKcQZqJ5lIuRx2RN4.[::1]:1")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !errors.Is(err, ErrMalformedToken) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		again, err := ParseToken(tok.Text())
		if err != nil || again != tok {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

// An id is an argument of commands.
func TestTokenIDsAreNoFlags(t *testing.T) {
	for range 1000 {
		k, err := NewToken(Pin{1}, "hub.example.net:443")
		require.NoError(t, err)
		require.NotEqual(t, byte('-'), k.ID.String()[0])
	}
}
