package hub

import (
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/hub/api"
)

// sideFiles are all that a hub keeps in its data directory, and whether it does without: what it only
// remembers, it makes anew.
var sideFiles = map[string]bool{
	"cluster.key": false, "hub.key": false, "hub.key.old": false, "admin-ca.pem": false, "log.json": false, "set-back.json": false, "lock": false, "nats": false, "log": false,
	"tls.pem": true, "live.json": true, "backup.time": true, "packages": true, "remaking": true, "reserve": true, "probe": true,
	"tls.pem.new": true, "live.json.new": true, "log.json.new": true, "live.json.bad": true,
}

// asGood are kinds that are as good as the file, or as none.
var asGood = map[string]bool{"lock is a empty file": true, "lock is a FIFO": true, "log is a directory": true}

// instead are what may lie where a file is looked for.
var instead = map[string]func(t *testing.T, path string){
	"directory": func(t *testing.T, path string) { require.NoError(t, os.MkdirAll(filepath.Join(path, "full"), 0o700)) },
	"FIFO":      func(t *testing.T, path string) { require.NoError(t, unix.Mkfifo(path, 0o600)) },
	"socket": func(t *testing.T, path string) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		require.NoError(t, err)
		l.SetUnlinkOnClose(false)
		require.NoError(t, l.Close())
	},
	"link to nowhere": func(t *testing.T, path string) { require.NoError(t, os.Symlink("nowhere/at/all", path)) },
	"empty file":      func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, nil, 0o600)) },
}

// Whatever lies in the place of any file of the data directory, the hub starts, or says in one line
// what is wrong with which file and what to do; then it has changed nothing, and starts once the file is as it was.
func TestSideFiles(t *testing.T) {
	good := t.TempDir()
	listen := func(c *Config) { c.ListenAdmin = "127.0.0.1:0" }
	w, err := tryStart(t, good, listen)
	require.NoError(t, err)
	w.site("a")
	w.token(api.TokenSpec{Site: "a"})
	w.stop()
	for name, without := range sideFiles {
		for kind, put := range instead {
			t.Run(name+" is a "+kind, func(t *testing.T) {
				dir, err := os.MkdirTemp("", "cw-side") // a socket's path is short
				require.NoError(t, err)
				t.Cleanup(func() { os.RemoveAll(dir) })
				out, err := exec.Command("cp", "-a", filepath.Join(good, "data"), dir).CombinedOutput()
				require.NoError(t, err, string(out))
				path, kept := filepath.Join(dir, "data", name), filepath.Join(dir, "kept")
				if err := os.Rename(path, kept); !errors.Is(err, fs.ErrNotExist) {
					require.NoError(t, err)
				}
				put(t, path)
				files := func() map[string][32]byte {
					all := tree(t, filepath.Join(dir, "data"))
					maps.DeleteFunc(all, func(name string, _ [32]byte) bool { return strings.HasPrefix(name, "nats/") }) // the server's own
					return all
				}
				before := files()
				w, err := tryStart(t, dir, listen)
				if err == nil {
					w.stop()
					require.True(t, without || asGood[name+" is a "+kind], "it did without")
					return
				}
				t.Log(err)
				require.False(t, without, err)
				require.NotContains(t, err.Error(), "\n")
				require.Contains(t, err.Error(), path)
				require.Regexp(t, `; .*(restore|remove|move)`, err.Error())
				require.Equal(t, before, files())
				require.NoError(t, os.RemoveAll(path))
				if err := os.Rename(kept, path); !errors.Is(err, fs.ErrNotExist) {
					require.NoError(t, err)
				}
				w, err = tryStart(t, dir, listen)
				require.NoError(t, err)
				w.stop()
			})
		}
	}
}
