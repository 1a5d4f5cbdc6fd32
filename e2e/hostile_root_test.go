package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// A hub's commands, run by root on the directory of the hub's user, do as that user: what he put
// there neither leads root elsewhere nor keeps root waiting, and what is made is his.
func TestHubCommandsByRoot(t *testing.T) {
	t.Parallel()
	s, _ := newSmall(t, 1)
	dir := s.Hub.Dir
	root := func(args ...string) (string, error) {
		start := time.Now()
		out, err := s.Hub.Host.Run(step(t), append([]string{s.Bin.Hub}, args...)...)
		require.Less(t, time.Since(start), 20*time.Second, args)
		return out, err
	}
	his := func(dir string) {
		t.Helper()
		require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := d.Info()
			if err == nil && st.Sys().(*syscall.Stat_t).Uid != lab.Nobody.UID {
				err = fmt.Errorf("%s is not the hub's user's", path)
			}
			return err
		}))
	}
	pass := filepath.Join(t.TempDir(), "pass")
	require.NoError(t, os.WriteFile(pass, []byte("correct horse battery\n"), 0o600))
	backup := filepath.Join(t.TempDir(), "backup")
	_, err := s.CLI(step(t), "backup", backup, "--passphrase-file", pass)
	require.NoError(t, err)
	key, err := os.ReadFile(filepath.Join(dir, "cluster.key"))
	require.NoError(t, err)
	keyFile := filepath.Join(t.TempDir(), "cluster.key")
	require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	require.NoError(t, s.Hub.Proc.Stop(step(t)))

	out, err := root("rotate-key", "--data-dir", dir)
	require.NoError(t, err)
	require.Contains(t, out, "new hub key")
	his(dir)
	again := filepath.Join(filepath.Dir(dir), "restored")
	_, err = s.Hub.Host.RunAs(step(t), lab.Nobody, "mkdir", "-m", "700", again)
	require.NoError(t, err)
	_, err = root("restore", backup, "--data-dir", again, "--cluster-key", keyFile, "--passphrase-file", pass)
	require.NoError(t, err, "files that root alone reads were read before")
	his(again)

	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	require.NoError(t, os.WriteFile(secret, []byte("kept\n"), 0o600))
	trap := func(script string) {
		_, err := s.Hub.Host.RunAs(step(t), lab.Nobody, "sh", "-ec", "cd "+dir+"; "+script)
		require.NoError(t, err)
	}
	for _, c := range []struct{ set, reset, want string }{
		{"mv hub.key k; mkfifo hub.key", "mv k hub.key", "hub.key is no file but a FIFO"},
		{"mv hub.key k; ln -s " + secret + " hub.key", "mv k hub.key", "permission denied"},
		{"mv hub.key.old k; truncate -s 1T hub.key.old", "mv k hub.key.old", "is longer than 65536 bytes"},
		{"mv lock k; ln -s " + outside + "/made lock", "mv k lock", "permission denied"},
	} {
		trap(c.set)
		_, err := root("rotate-key", "--data-dir", dir)
		requireOneLine(t, err, c.want)
		trap(c.reset)
		made, err := os.ReadDir(outside)
		require.NoError(t, err)
		require.Len(t, made, 1, "nothing was made outside")
		b, err := os.ReadFile(secret)
		require.NoError(t, err)
		require.Equal(t, "kept\n", string(b))
	}
	require.NoError(t, s.StartHub(step(t)))
}
