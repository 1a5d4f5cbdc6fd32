package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// The hub is lost and made again on another host from its backup, at the old
// hub's address. Agents go on by themselves; what was revoked stays revoked, after
// the backup, too, by what the agents know; the node that joined since is named, and
// no number is given twice, not even one given after the backup.
func TestStateRestoredOnAnotherHost(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 5)
	for _, i := range []int{1, 2, 3, 5} {
		joinSmall(t, s, nodes, i)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3", "n5"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	_, err := s.CLI(step(t), "node", "revoke", "n3", "--yes")
	require.NoError(t, err)
	unused, err := s.Token(step(t), "s4")
	require.NoError(t, err)
	before, err := s.Nodes(step(t))
	require.NoError(t, err)

	apart := t.TempDir()
	at := func(name string) string { return filepath.Join(apart, name) }
	require.NoError(t, os.WriteFile(at("pass"), []byte("correct horse\n"), 0o600))
	require.NoError(t, os.WriteFile(at("wrong"), []byte("incorrect horse\n"), 0o600))
	_, err = s.CLI(step(t), "backup", at("backup"))
	requireOneLine(t, err, "--recipient", "--passphrase-file")
	_, err = s.CLI(step(t), "backup", at("backup"), "--passphrase-file", at("pass"))
	require.NoError(t, err)
	_, err = s.CLI(step(t), "backup", at("backup"), "--passphrase-file", at("pass"))
	requireOneLine(t, err, "exists")
	info, err := os.Stat(at("backup"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	key, err := os.ReadFile(filepath.Join(s.Hub.Dir, "cluster.key"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(at("cluster.key"), key, 0o600))

	// After the backup a fourth node joins; the restored hub knows nothing of it.
	joinSmall(t, s, nodes, 4)
	require.NoError(t, s.WaitReady(step(t), "n4"))
	// And a node is revoked, of which the backup says that it is well.
	_, err = s.CLI(step(t), "node", "revoke", "n5", "--yes", "--wait")
	require.NoError(t, err)
	after, err := s.Nodes(step(t))
	require.NoError(t, err)
	s.Hub.Proc.Kill()
	require.NoError(t, os.RemoveAll(s.Hub.Dir))
	s.Hub.Host.Sh("ip link set eth0 down; ip addr flush dev eth0")

	other := s.Lab.Host("hub2").Link("eth0", nodes[0].Inet, HubAddr+"/24").Sysctl("net.ipv4.ip_unprivileged_port_start=0")
	require.NoError(t, other.Settle(step(t)))
	dir := filepath.Join(other.Dir(), "hub")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "data"), 0o700))
	for _, d := range []string{dir, filepath.Join(dir, "data"), apart, at("backup"), at("pass"), at("wrong"), at("cluster.key")} {
		require.NoError(t, os.Chown(d, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	}
	s.Hub.Host, s.Hub.Dir, s.Hub.Socket = other, filepath.Join(dir, "data"), filepath.Join(dir, "admin.sock")
	// The test's own directory is root's alone: files are handed over in the host's.
	require.NoError(t, os.CopyFS(filepath.Join(dir, "apart"), os.DirFS(apart)))
	require.NoError(t, os.Chmod(filepath.Join(dir, "apart"), 0o755))
	other.Sh(fmt.Sprintf("chown -R %d:%d %s", lab.Nobody.UID, lab.Nobody.GID, dir))
	at = func(name string) string { return filepath.Join(dir, "apart", name) }
	restore := func(args ...string) (string, error) {
		return other.RunAs(step(t), lab.Nobody, append([]string{s.Bin.Hub, "restore", at("backup"), "--data-dir", s.Hub.Dir}, args...)...)
	}
	_, err = restore("--cluster-key", at("cluster.key"), "--passphrase-file", at("wrong"))
	requireOneLine(t, err, "wrong passphrase")
	_, err = restore("--cluster-key", at("pass"), "--passphrase-file", at("pass"))
	requireOneLine(t, err, "is no cluster key")
	entries, err := os.ReadDir(s.Hub.Dir)
	require.NoError(t, err)
	require.Empty(t, entries, "a refused restore leaves nothing")
	out, err := restore("--cluster-key", at("cluster.key"), "--passphrase-file", at("pass"))
	require.NoError(t, err)
	require.Contains(t, out, "netmap epoch 2")
	_, err = restore("--cluster-key", at("cluster.key"), "--passphrase-file", at("pass"))
	requireOneLine(t, err, "not empty")

	for _, n := range nodes { // as a switch's news of the address's new place would do
		n.Host.Sh("ip neigh flush all")
	}
	require.NoError(t, s.StartHub(step(t)))
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	now, err := s.Nodes(step(t))
	require.NoError(t, err)
	for _, name := range []string{"n1", "n2", "n3"} {
		require.Equal(t, before[name].Number, now[name].Number)
		require.Equal(t, before[name].WireGuardKey, now[name].WireGuardKey)
	}
	require.Equal(t, before["n3"].State, now["n3"].State)
	require.Equal(t, api.NodeRevoked, now["n3"].State, "revoked stays revoked")
	require.Equal(t, api.NodeReady, before["n5"].State)
	require.Equal(t, api.NodeRevoked, now["n5"].State, "what was revoked after the backup, too")
	require.NotContains(t, now, "n4")
	require.NoError(t, lab.Wait(step(t), "the newer node's name", func(ctx context.Context) error {
		text, err := s.CLI(ctx, "status")
		if err == nil && !regexp.MustCompile(`(?m)^n4 +s4 +\d+ +n[12]`).MatchString(text) {
			err = errors.New(text)
		}
		return err
	}))
	require.Error(t, PingOnce(step(t), nodes[4].Pod.Host, nodes[0].Pod.V4))
	_, err = nodes[3].Redeem(step(t), unused)
	require.Error(t, err, "a token from before the backup is void")
	fresh, err := s.Prepare(NodeSpec{Name: "n6", Site: "s4", Host: nodes[2].Host})
	require.NoError(t, err)
	token, err := s.Token(step(t), "s4")
	require.NoError(t, err)
	_, err = fresh.Redeem(step(t), token)
	require.NoError(t, err)
	now, err = s.Nodes(step(t))
	require.NoError(t, err)
	require.Greater(t, now["n6"].Number, after["n4"].Number, "no number twice")
	t.Logf("restored on another host: n4, joined after the backup, had number %d; the next node got %d", after["n4"].Number, now["n6"].Number)
}
