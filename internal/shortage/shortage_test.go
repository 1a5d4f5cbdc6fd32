package shortage

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIs(t *testing.T) {
	for _, no := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EAGAIN, syscall.EINTR} {
		err := fmt.Errorf("read state: %w", &fs.PathError{Op: "open", Path: "f", Err: no})
		require.True(t, Is(err), no)
		require.NotEmpty(t, Words(err))
	}
	for _, no := range []syscall.Errno{syscall.EIO, syscall.EROFS, syscall.ENOSPC, syscall.EACCES, syscall.ENOENT, syscall.EBADMSG, syscall.EUCLEAN} {
		require.False(t, Is(no), no)
	}
	require.False(t, Is(nil))
}

// What has too few descriptors for a moment is read all the same.
func TestRetry(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
	tries := 0
	var b []byte
	require.NoError(t, Retry(func() (err error) {
		if tries++; tries < 3 {
			return &fs.PathError{Op: "open", Path: path, Err: syscall.EMFILE}
		}
		b, err = os.ReadFile(path)
		return err
	}))
	require.Equal(t, "x", string(b))
	tries = 0
	require.ErrorIs(t, Retry(func() error { tries++; return syscall.EIO }), syscall.EIO)
	require.Equal(t, 1, tries)
}
