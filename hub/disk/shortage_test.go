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
	require.ErrorAs(t, g.Explain(syscall.EIO), &broken)
	require.NoError(t, g.Check())
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
