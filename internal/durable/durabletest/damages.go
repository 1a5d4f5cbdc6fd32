// Package durabletest is what may happen to a file, for tests of whoever keeps one.
package durabletest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Damages are ways in which the file at path, an object of JSON with a checksum, becomes
// useless, by name.
var Damages = map[string]func(t testing.TB, path string){
	"empty":     func(t testing.TB, path string) { require.NoError(t, os.WriteFile(path, nil, 0o600)) },
	"truncated": func(t testing.TB, path string) { require.NoError(t, os.Truncate(path, 9)) },
	"flipped":   flip,
	"garbage":   func(t testing.TB, path string) { require.NoError(t, os.WriteFile(path, []byte("\x00\xff{"), 0o600)) },
	"null":      func(t testing.TB, path string) { require.NoError(t, os.WriteFile(path, []byte("null\n"), 0o600)) },
	"huge":      func(t testing.TB, path string) { require.NoError(t, os.Truncate(path, 1<<40)) },
	"directory": func(t testing.TB, path string) {
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.MkdirAll(filepath.Join(path, "full"), 0o700))
	},
	"FIFO": func(t testing.TB, path string) {
		require.NoError(t, os.Remove(path))
		require.NoError(t, unix.Mkfifo(path, 0o600))
	},
	"link": func(t testing.TB, path string) {
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.Symlink("/dev/zero", path))
	},
}

// flip changes the first digit or letter after the first colon, so that it is JSON still.
func flip(t testing.TB, path string) {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	i := bytes.IndexByte(b, ':')
	require.GreaterOrEqual(t, i, 0, "nothing to flip in %s", path)
	for b[i] < '0' || b[i] > '9' && b[i] < 'A' || b[i] > 'Z' && b[i] < 'a' || b[i] > 'z' {
		i++
	}
	switch {
	case bytes.HasPrefix(b[i:], []byte("true")):
		b = bytes.Replace(b, []byte("true"), []byte("null"), 1)
	case bytes.HasPrefix(b[i:], []byte("false")):
		b = bytes.Replace(b, []byte("false"), []byte(" null"), 1)
	default:
		b[i]++
	}
	require.NoError(t, os.WriteFile(path, b, 0o600))
}
