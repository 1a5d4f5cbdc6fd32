package unixsock

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The mode is there before the socket is, whatever the umask.
func TestMode(t *testing.T) {
	for _, umask := range []int{0, 0o22, 0o77} {
		old := unix.Umask(umask)
		path := filepath.Join(t.TempDir(), "a.sock")
		l, err := Listen(path, 0o660)
		unix.Umask(old)
		require.NoError(t, err)
		fi, err := os.Lstat(path)
		require.NoError(t, err)
		require.Equal(t, os.ModeSocket|0o660, fi.Mode())
		require.NoError(t, l.Close())
	}
	_, err := Listen(filepath.Join(t.TempDir(), strings.Repeat("x", 200)), 0o600)
	require.Error(t, err)
}
