package backup

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/stretchr/testify/require"
)

func sealed(t testing.TB, r age.Recipient, plain []byte) []byte {
	var b bytes.Buffer
	w, err := age.Encrypt(&b, r)
	require.NoError(t, err)
	_, err = w.Write(plain)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func archive(t testing.TB, txs ...string) []byte {
	var b bytes.Buffer
	w, err := NewWriter(&b, Header{Last: uint64(len(txs)), HubKey: "k"})
	require.NoError(t, err)
	for _, x := range txs {
		require.NoError(t, w.Add([]byte(x)))
	}
	require.Error(t, w.Add([]byte("x")))
	return b.Bytes()
}

func readAll(r io.Reader) (n int, err error) {
	a, err := NewReader(r)
	if err != nil {
		return 0, err
	}
	for {
		_, err := a.Next()
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n++
	}
}

func TestBackupFileIsWholeOrRefused(t *testing.T) {
	plain := archive(t, "one", "two", "three")
	n, err := readAll(bytes.NewReader(plain))
	require.NoError(t, err)
	require.Equal(t, 3, n)
	for cut := range plain {
		_, err := readAll(bytes.NewReader(plain[:cut]))
		require.Error(t, err, cut)
	}
	_, err = readAll(bytes.NewReader(append(bytes.Clone(plain), 0)))
	require.ErrorContains(t, err, "follows")
	_, err = readAll(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff}))
	require.ErrorContains(t, err, "at most")

	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	enc := sealed(t, id.Recipient(), plain)
	for i := 0; i < len(enc); i += 7 {
		bad := bytes.Clone(enc)
		bad[i] ^= 4
		r, err := Decrypt(bytes.NewReader(bad), "", id.String())
		if err == nil {
			_, err = readAll(r)
		}
		require.Error(t, err, "byte %d changed", i)
	}
	for cut := 0; cut < len(enc); cut += 5 {
		r, err := Decrypt(bytes.NewReader(enc[:cut]), "", id.String())
		if err == nil {
			_, err = readAll(r)
		}
		require.Error(t, err, "cut to %d bytes", cut)
	}
	other, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	_, err = Decrypt(bytes.NewReader(enc), "", other.String())
	require.EqualError(t, err, "backup: none of the identities opens it")
	_, err = Decrypt(bytes.NewReader(enc), "", "AGE-SECRET-KEY-1NOTONE")
	require.NotContains(t, err.Error(), "NOTONE")
}

// What never ends is given up, wherever in the file it stands: nothing of it is kept.
func TestEndlessBackup(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	require.NoError(t, err)
	for name, begin := range map[string]string{
		"nothing": "", "a header": "age-encryption.org/v1\n-> X25519 ", "armour": armor.Header + "\n", "first line of armour": armor.Header,
	} {
		endless := &counted{r: io.MultiReader(strings.NewReader(begin), zeros{}), most: 1 << 20}
		_, err := Decrypt(endless, "", id.String())
		require.ErrorContains(t, err, "more than", name)
		require.False(t, endless.over, name)
	}
	_, err = Decrypt(strings.NewReader(strings.Repeat("x", 60<<10)+"\n"), "", id.String())
	require.Error(t, err)
	require.Less(t, len(err.Error()), 300)
	// Amid the armour of what was good so far.
	var text bytes.Buffer
	a := armor.NewWriter(&text)
	_, err = a.Write(sealed(t, id.Recipient(), archive(t, strings.Repeat("x", 100<<10))))
	require.NoError(t, err)
	require.NoError(t, a.Close())
	endless := &counted{r: io.MultiReader(bytes.NewReader(text.Bytes()[:text.Len()/2]), zeros{}), most: 1 << 20}
	r, err := Decrypt(endless, "", id.String())
	require.NoError(t, err)
	_, err = readAll(r)
	require.ErrorContains(t, err, "more than")
	require.False(t, endless.over)
	r, err = Decrypt(&text, "", id.String())
	require.NoError(t, err)
	n, err := readAll(r)
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

// counted ends, and is over, when more than most bytes were read.
type counted struct {
	r    io.Reader
	most int
	over bool
}

func (c *counted) Read(b []byte) (int, error) {
	if c.most <= 0 {
		c.over = true
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.r.Read(b)
	c.most -= n
	return n, err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// Whoever may put a file where an operator restores from chooses every byte, that
// of the plain archive too if he has the recipient.
func FuzzBackup(f *testing.F) {
	f.Add(archive(f, "one", "two"), true)
	f.Add([]byte("age-encryption.org/v1\n-> X25519 abc\n"), false)
	f.Add([]byte("-----BEGIN AGE ENCRYPTED FILE-----\nAA==\n"), false)
	f.Add([]byte{0, 0, 0, 2, '{', '}'}, true)
	id, err := age.GenerateX25519Identity()
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, b []byte, plain bool) {
		var r io.Reader = bytes.NewReader(b)
		if !plain {
			if r, err = Decrypt(r, "", id.String()); err != nil {
				require.NotContains(t, err.Error(), "AGE-SECRET")
				return
			}
		}
		n, err := readAll(r)
		require.LessOrEqual(t, n*5, len(b))
		_ = err
	})
}
