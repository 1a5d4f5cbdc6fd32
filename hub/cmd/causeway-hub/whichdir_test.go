package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub"
)

// What changes a data directory refuses the default one where this host's hub has another, names both
// and does nothing; the directory that is named is the one that is meant.
func TestWrongDirectory(t *testing.T) {
	was := configFile
	t.Cleanup(func() { configFile = was })
	mine, other := t.TempDir(), t.TempDir()
	run := func(args ...string) error {
		c := command()
		c.SetArgs(args)
		return c.ExecuteContext(t.Context())
	}
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte("x"), 0o600))
	commands := [][]string{{"rotate-key"}, {"repair"}, {"restore", key, "--cluster-key", key, "--passphrase-file", key}}
	refused := func(where, dir string) {
		t.Helper()
		for _, c := range commands {
			err := run(c...)
			require.ErrorContains(t, err, where+" says that the hub's data are in "+dir+", and the default is "+hub.DefaultDataDir+": nothing was done")
			err = run(append(c, "--data-dir", other)...)
			require.NotContains(t, err.Error(), "nothing was done; say which")
		}
	}
	configFile = filepath.Join(t.TempDir(), "hub.yaml")
	require.NoError(t, os.WriteFile(configFile, []byte("data_dir: "+mine+"\n"), 0o600))
	refused(configFile, mine)
	configFile = was
	t.Setenv("CAUSEWAY_HUB_DATA_DIR", mine)
	refused("$CAUSEWAY_HUB_DATA_DIR", mine)
}
