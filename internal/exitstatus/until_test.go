package exitstatus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A pipe that nobody writes to keeps nobody who is told to end.
func TestUntil(t *testing.T) {
	t.Parallel()
	n, err := Until(t.Context(), func() (int, error) { return 7, errors.New("x") })
	require.Equal(t, 7, n)
	require.EqualError(t, err, "x")
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	began := make(chan bool)
	go func() { <-began; cancel() }()
	_, err = Until(ctx, func() ([]byte, error) { close(began); return os.ReadFile(pipe) })
	require.ErrorIs(t, err, context.Canceled)
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0) // lets the reader end
	require.NoError(t, err)
	require.NoError(t, w.Close())
}
