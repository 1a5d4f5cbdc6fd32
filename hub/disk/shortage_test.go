package disk

import (
	"io/fs"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// What comes back is no broken disk: Check says so until a write goes through again.
func TestShortageIsNoDamage(t *testing.T) {
	g := New(t.TempDir())
	require.NoError(t, g.Check())
	var short *ShortageError
	var broken *BrokenError
	for _, no := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EINTR, syscall.EAGAIN} {
		err := g.Explain(&fs.PathError{Op: "open", Path: "probe", Err: no})
		require.ErrorAs(t, err, &short)
		require.NotErrorIs(t, g.Explain(err), &BrokenError{})
		require.ErrorAs(t, g.Check(), &short)
		require.NoError(t, g.Probe())
		require.NoError(t, g.Check())
	}
	for _, no := range []syscall.Errno{syscall.EIO, syscall.EROFS, syscall.ENXIO, syscall.EUCLEAN} {
		require.ErrorAs(t, g.Explain(&fs.PathError{Op: "write", Path: "probe", Err: no}), &broken)
		require.NoError(t, g.Check())
	}
}

// A disk without room for the hub's user is full, whoever's the room is, and the words say whose.
func TestFullDiskIsNoDamage(t *testing.T) {
	g := New(t.TempDir())
	var full *FullError
	require.ErrorAs(t, g.Explain(&fs.PathError{Op: "write", Path: "probe", Err: syscall.ENOSPC}), &full)
	require.False(t, full.Quota)
	require.ErrorAs(t, g.Explain(&fs.PathError{Op: "write", Path: "probe", Err: syscall.EDQUOT}), &full)
	require.ErrorContains(t, full, "raise the quota")
	require.NotContains(t, full.Error(), "0 MiB are free")
}

// A process that has no descriptor left says what it has too little of.
func TestProbeWithoutDescriptors(t *testing.T) {
	g := New(t.TempDir())
	var was syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 24, Max: was.Max}))
	err := g.Probe()
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was))
	var short *ShortageError
	require.ErrorAs(t, err, &short)
	require.ErrorContains(t, err, "LimitNOFILE")
	require.NoError(t, g.Probe())
}
