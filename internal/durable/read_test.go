package durable

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever lies in a directory that a service's user may write, reading as root ends, at once, and
// reads nothing that is not his.
func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, WriteFile(in("good"), []byte("x")))
	secret := filepath.Join(t.TempDir(), "shadow")
	require.NoError(t, os.WriteFile(secret, []byte("root:secret"), 0o600))
	require.NoError(t, syscall.Mkfifo(in("pipe"), 0o600))
	l, err := net.Listen("unix", in("socket"))
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Mkdir(in("directory"), 0o700))
	require.NoError(t, os.Symlink("/dev/zero", in("device")))
	require.NoError(t, os.Symlink(secret, in("symlink")))
	require.NoError(t, os.WriteFile(in("giant"), nil, 0o600))
	require.NoError(t, os.Truncate(in("giant"), 1<<40))
	require.NoError(t, os.WriteFile(in("long"), []byte(strings.Repeat("x", 101)), 0o600))
	root := os.Geteuid() == 0
	if root {
		require.NoError(t, os.Link(secret, in("hardlink")))
		require.NoError(t, os.Chown(dir, 65534, 65534))
		require.NoError(t, os.Chown(in("good"), 65534, 65534))
	}
	read := func(name string) (b []byte, err error) {
		done := make(chan struct{})
		go func() { defer close(done); b, err = ReadFile(in(name), 100) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it waits", name)
		}
		return b, err
	}
	b, err := read("good")
	require.NoError(t, err)
	require.Equal(t, "x", string(b))
	_, err = read("none")
	require.ErrorIs(t, err, os.ErrNotExist)
	bad := []string{"pipe", "socket", "directory", "device", "giant", "long"}
	if root {
		bad = append(bad, "symlink", "hardlink")
	}
	for _, name := range bad {
		b, err := read(name)
		require.ErrorIs(t, err, ErrForeign, name)
		require.Empty(t, b, name)
		require.NotContains(t, err.Error(), "secret")
	}
}
