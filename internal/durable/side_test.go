package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/internal/durable/durabletest"
)

type content struct {
	Name string `json:"name"`
	N    int    `json:"n"`
}

func TestSide(t *testing.T) {
	check := func(c *content) func() error {
		return func() error {
			if c.Name == "" {
				return errors.New("no name")
			}
			return nil
		}
	}
	want := content{"first", 7}
	for name, damage := range durabletest.Damages {
		for _, twice := range []bool{false, true} {
			for _, both := range []bool{false, true} {
				if both && !twice {
					continue
				}
				t.Run(name, func(t *testing.T) {
					s := Side{Path: filepath.Join(t.TempDir(), "f"), Max: 1 << 10, Twice: twice}
					require.NoError(t, s.Save(want))
					var c content
					require.NoError(t, s.Load(&c, check(&c)))
					require.Equal(t, want, c)

					damage(t, s.Path)
					if both {
						damage(t, Copy(s.Path))
					}
					var d *Damage
					err := s.Load(&c, check(&c))
					require.ErrorAs(t, err, &d)
					require.NotContains(t, err.Error(), "\n")
					require.Equal(t, twice && !both, d.Copied)
					if !d.Copied {
						require.Zero(t, c)
						require.ErrorAs(t, s.Load(&c, check(&c)), &d, "it stays")
						require.NoError(t, s.SetAside())
						require.ErrorIs(t, s.Load(&c, check(&c)), fs.ErrNotExist)
						require.NoError(t, s.Save(want))
					}
					require.NoError(t, s.Load(&c, check(&c)))
					require.Equal(t, want, c)
					_, err = os.Lstat(Bad(s.Path))
					require.NoError(t, err, "kept for the engineer")
					require.NoError(t, s.Remove())
					require.ErrorIs(t, s.Load(&c, check(&c)), fs.ErrNotExist)
					left, err := os.ReadDir(filepath.Dir(s.Path))
					require.NoError(t, err)
					require.Empty(t, left)
				})
			}
		}
	}
}

// What an operator removes, or an older version that knows of no copies, is not taken up
// again.
func TestRemovedStaysRemoved(t *testing.T) {
	s := Side{Path: filepath.Join(t.TempDir(), "f"), Max: 1 << 10, Twice: true}
	require.NoError(t, s.Save(content{"first", 7}))
	require.NoError(t, os.Remove(s.Path))
	var c content
	require.ErrorIs(t, s.Load(&c, nil), fs.ErrNotExist)
	require.Zero(t, c)
}

// A directory that somebody puts in the way while the service runs.
func TestSideWritesOverDirectory(t *testing.T) {
	s := Side{Path: filepath.Join(t.TempDir(), "f"), Max: 1 << 10, Twice: true}
	for _, path := range []string{s.Path, Copy(s.Path), Temp(s.Path)} {
		require.NoError(t, os.MkdirAll(filepath.Join(path, "full"), 0o700))
	}
	require.NoError(t, s.Save(content{"first", 7}))
	var c content
	require.NoError(t, s.Load(&c, nil))
}

// What older versions wrote reads, and they read what this one writes.
func TestSideAndOlderVersions(t *testing.T) {
	s := Side{Path: filepath.Join(t.TempDir(), "f"), Max: 1 << 10}
	require.NoError(t, os.WriteFile(s.Path, []byte("{\n  \"name\": \"old\",\n  \"n\": 1\n}\n"), 0o600))
	var c content
	require.NoError(t, s.Load(&c, nil))
	require.Equal(t, "old", c.Name)
	require.NoError(t, s.Save(c))
	b, err := os.ReadFile(s.Path)
	require.NoError(t, err)
	var old content
	require.NoError(t, json.Unmarshal(b, &old))
	require.Equal(t, c, old)

	n := Side{Path: filepath.Join(t.TempDir(), "g"), Max: 1 << 10, Numbered: true}
	for _, m := range []map[uint32]content{{}, {3: {"three", 3}}} {
		require.NoError(t, n.Save(m))
		var got map[uint32]content
		require.NoError(t, n.Load(&got, nil))
		require.Equal(t, m, got)
		b, err := os.ReadFile(n.Path)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, &got))
		require.Len(t, got, len(m)+1)
	}
}

// Who has no descriptors left is not told that its files are damaged.
func TestShortageIsNoDamage(t *testing.T) {
	s := Side{Path: filepath.Join(t.TempDir(), "f.json"), Max: 1 << 10}
	require.NoError(t, s.Save(map[string]int{"n": 1}))
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}))
	var v map[string]int
	err := s.Load(&v, nil)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	require.ErrorIs(t, err, unix.EMFILE)
	var d *Damage
	require.False(t, errors.As(err, &d))
	require.NoError(t, s.Load(&v, nil))
	require.Equal(t, map[string]int{"n": 1}, v)
}

// The text is whoever's has the directory, or a broken disk's: never a panic, and what
// is read is what was written.
func FuzzSide(f *testing.F) {
	f.Add([]byte(`{"name":"x"}`), true)
	f.Add([]byte("{\n  \"sum\": \""+strings.Repeat("0", 64)+"\"\n}\n"), false)
	f.Fuzz(func(t *testing.T, b []byte, numbered bool) {
		s := Side{Numbered: numbered}
		_, _ = s.opened(b)
		if !json.Valid(b) || len(bytes.TrimSpace(b)) == 0 || bytes.TrimSpace(b)[0] != '{' {
			return
		}
		sealed, err := s.sealed(b)
		require.NoError(t, err)
		require.True(t, json.Valid(sealed))
		opened, err := s.opened(sealed)
		require.NoError(t, err)
		var want, got any
		require.NoError(t, json.Unmarshal(b, &want))
		require.NoError(t, json.Unmarshal(opened, &got))
		require.Equal(t, want, got)
	})
}
