package hub

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/join"
)

// A hub restored from its backup knows what the old one knew, gives no number
// twice, keeps what was revoked revoked and takes no token from before.
func TestBackupAndRestore(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a", "10.1.0.0/16")
	one := joined(t, w, "one", api.TokenSpec{Site: "a"})
	two := joined(t, w, "two", api.TokenSpec{Site: "a"})
	w.must("DELETE", "/v1/nodes/two", nil, nil)
	unused := w.token(api.TokenSpec{Site: "a"})
	res, err := w.admin.Get("http://hub/v1/backup")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, res.StatusCode)
	archive, err := io.ReadAll(res.Body)
	res.Body.Close()
	require.NoError(t, err)
	require.Contains(t, string(archive), "causeway-backup")
	require.FileExists(t, filepath.Join(w.dir, "data", backupNote))
	key, err := os.ReadFile(filepath.Join(w.dir, "data", join.ClusterKeyFile))
	require.NoError(t, err)
	require.NotContains(t, string(archive), string(bytes.TrimSpace(key)), "the cluster key is kept apart")
	later := joined(t, w, "later", api.TokenSpec{Site: "a"}) // after the backup
	w.stop()

	to := t.TempDir()
	data := filepath.Join(to, "data")
	restore := func(b []byte, key string) (Restored, error) {
		return Restore(context.Background(), data, bytes.NewReader(b), key, 1000, nil)
	}
	empty := func() {
		t.Helper()
		entries, err := os.ReadDir(data)
		if err == nil {
			require.Empty(t, entries, "a refused restore leaves nothing")
		}
	}
	for name, c := range map[string]struct {
		archive []byte
		key     string
		says    string
	}{
		"no key":      {archive, "junk", "no cluster key"},
		"other key":   {archive, otherKey(t), "not the one of this backup"},
		"no archive":  {[]byte("junk"), string(key), "backup"},
		"cut":         {archive[:len(archive)-10], string(key), "ends early"},
		"longer":      {append(bytes.Clone(archive), 1), string(key), "follows"},
		"a bit of it": {flipped(archive, len(archive)/2), string(key), ""},
	} {
		_, err := restore(c.archive, c.key)
		require.ErrorContains(t, err, c.says, name)
		require.NotContains(t, err.Error(), "\n", name)
		empty()
	}
	r, err := restore(archive, string(key))
	require.NoError(t, err)
	require.Equal(t, uint64(2), r.Epoch)
	require.Equal(t, 1, r.Nodes)
	require.Equal(t, 1, r.Voided)
	_, err = restore(archive, string(key))
	require.ErrorContains(t, err, "not empty")

	w = start(t, to)
	var nodes []api.Node
	w.must("GET", "/v1/nodes", nil, &nodes)
	require.Len(t, nodes, 2)
	require.Equal(t, one.answer.Number, nodes[0].Number)
	require.Equal(t, two.answer.Number, nodes[1].Number)
	require.EqualValues(t, api.NodeRevoked, nodes[1].State)
	host := newHost(t)
	fresh := w.token(api.TokenSpec{Site: "a"})
	void := fresh // the host and pin of the new hub, the token of the old one
	void.ID, void.Secret = unused.ID, unused.Secret
	require.NotNil(t, host.join(t, void, "n", nil).Refused)
	ans := host.join(t, fresh, "n", nil)
	require.Nil(t, ans.Refused)
	require.Greater(t, ans.Number, later.answer.Number, "no number twice")
	a := w.dial(one, nil)
	require.Eventually(t, func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.netmap != nil && a.netmap.Epoch == 2
	}, patience, 5*time.Millisecond, "the epoch is raised")
}

func otherKey(t *testing.T) string {
	k, err := join.LoadKeys(t.TempDir(), true)
	require.NoError(t, err)
	return k.Cluster.Secret()
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// Whatever the hub makes is its user's alone.
func TestFilesAreTheHubsAlone(t *testing.T) {
	w := start(t, t.TempDir())
	w.site("a")
	joined(t, w, "one", api.TokenSpec{Site: "a"})
	files, dirs := 0, 0
	require.NoError(t, filepath.WalkDir(filepath.Join(w.dir, "data"), func(p string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := d.Info()
		require.NoError(t, err)
		if d.IsDir() {
			require.Equal(t, fs.FileMode(0o700), info.Mode().Perm(), p)
			dirs++
		} else {
			require.Equal(t, fs.FileMode(0o600), info.Mode().Perm(), p)
			files++
		}
		return nil
	}))
	t.Logf("%d files 0600, %d directories 0700", files, dirs)
}
