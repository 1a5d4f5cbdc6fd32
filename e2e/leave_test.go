package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/internal/durable"
	"causeway/netns/lab"
)

// snapshot is all that can be seen of a host's network, but for counters.
func snapshot(h *lab.Host) string {
	// A bridge's state and timers change by themselves, and ip complains of
	// namespaces of other tests that end meanwhile.
	return h.Sh(`exec 2>/dev/null; ip -d link | sed 's/ state [A-Z]*//; s/ [a-z_]*_timer *[0-9.]*//g'; ip -d addr | sed 's/ state [A-Z]*//; s/ [a-z_]*_timer *[0-9.]*//g; s/valid_lft.*//'
		ip -d -4 route show table all; ip -d -6 route show table all; ip -d -4 rule; ip -d -6 rule; nft -s list ruleset
		sysctl -a 2>/dev/null | grep '^net\.' | grep -v -e nf_conntrack_count -e nf_conntrack_max -e stable_secret -e tcp_fastopen_key`)
}

// Leaving takes everything back, byte for byte, after crashes too.
func TestLeaveRestoresHost(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	n := nodes[0]
	n.Host.Sh(`sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.eth0.rp_filter=1
		nft add table inet own; nft 'add chain inet own f { type filter hook forward priority 0; }'; nft add rule inet own f counter accept
		ip rule add pref 100 fwmark 7 lookup 77; ip route add 10.77.0.0/16 dev eth0 table 77`)
	before := snapshot(n.Host)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), n.Pod.Host, nodes[1].Pod.V4))
	require.NotEmpty(t, cmp.Diff(before, snapshot(n.Host)))
	one := installed(n.Host)
	for range 2 {
		n.Proc.Kill()
		require.NoError(t, n.Start())
		require.NoError(t, s.WaitReady(step(t), "n1"))
		require.NoError(t, Ping(within(t, backWithin), n.Pod.Host, nodes[1].Pod.V4))
		require.Empty(t, cmp.Diff(one, installed(n.Host)), "exactly one set")
	}
	require.NoError(t, n.Leave(step(t)))
	require.Empty(t, cmp.Diff(before, snapshot(n.Host)))
	require.NoDirExists(t, n.StateDir)
	require.NoFileExists(t, n.Socket)
	awaitLeft(t, s, "n1")
	require.Error(t, PingOnce(within(t, 5*time.Second), nodes[1].Pod.Host, n.Pod.V4))

	// And a second life on the same host.
	joinSmall(t, s, nodes[:1], 1)
}

// awaitLeft waits until the hub knows that a node left.
func awaitLeft(t *testing.T, s *System, name string) {
	t.Helper()
	require.NoError(t, Wait(t, func() error {
		list, err := s.Nodes(step(t))
		if err != nil {
			return err
		}
		if st := list[name].State; st != api.NodeLeft && st != "" {
			return errState(st)
		}
		return nil
	}))
}

// Without a hub the host is restored all the same.
func TestLeaveWithoutHub(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 1)
	n := nodes[0]
	before := snapshot(n.Host)
	joinSmall(t, s, nodes, 1)
	require.NoError(t, s.WaitReady(step(t), "n1"))
	s.Hub.Proc.Kill()
	n.Proc.Kill()
	require.NoError(t, n.Leave(step(t)), "the hub was not told, which is no failure")
	require.Empty(t, cmp.Diff(before, snapshot(n.Host)))
}

// Root leaves where the state directory is another user's, as the packages have it, and no agent
// runs: the hub is told by that user, who may have put there what he likes, and nothing
// outside changes.
func TestLeaveOfAnotherUser(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.WriteFile(outside, []byte("kept"), 0o644))
	for i, n := range nodes {
		n.Host.Sh("sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
		joinSmall(t, s, nodes, i+1)
		require.NoError(t, s.WaitReady(step(t), fmt.Sprintf("n%d", i+1)))
		require.NoError(t, n.Proc.Stop(step(t)))
	}
	take := func(n *smallNode) {
		require.NoError(t, os.Chmod(filepath.Dir(n.StateDir), 0o777)) // for his socket, too
		_, err := n.Host.Run(step(t), "chown", "-R", fmt.Sprintf("%d:%d", lab.Nobody.UID, lab.Nobody.GID), n.StateDir)
		require.NoError(t, err)
	}
	trap := func(n *smallNode, name, script string) {
		_, err := n.Host.RunAs(step(t), lab.Nobody, "sh", "-ec", script, filepath.Join(n.StateDir, name), outside)
		require.NoError(t, err)
	}
	leave := func(n *smallNode) string {
		start := time.Now()
		// With the device for every user, as udev makes it.
		out, err := n.Host.Run(step(t), "unshare", "-m", "sh", "-ec", `mknod -m 666 "$4/tun" c 10 200; mount --bind "$4/tun" /dev/net/tun
			exec "$0" leave --config "$1" --state-dir "$2" --debug-socket "$3" 2>&1`, s.Bin.Agent, n.Config, n.StateDir, n.Socket, t.TempDir())
		require.NoError(t, err)
		require.Less(t, time.Since(start), 25*time.Second)
		require.NoFileExists(t, filepath.Join(n.StateDir, "identity.json"))
		b, err := os.ReadFile(outside)
		require.NoError(t, err)
		require.Equal(t, "kept", string(b))
		require.NotContains(t, n.Host.Sh("ip -o link"), "cw0")
		return out
	}
	n := nodes[0]
	take(n)
	for _, name := range []string{"port.json", "incidents.json", "inventory.jsonl", "netmap.json.new"} {
		trap(n, name, `rm -f "$0"; mkfifo -m 666 "$0"`)
	}
	trap(n, "upgrade", `ln -s "$1" "$0"`)
	require.Contains(t, leave(n), "node n1 has left; the hub was told")
	awaitLeft(t, s, "n1")

	// Neither the record of what was changed nor its copy reads: all else is taken back, and a line says so.
	n = nodes[1]
	take(n)
	trap(n, "host.json", `rm -f "$0"; mkfifo -m 666 "$0"`)
	trap(n, "host.json.copy", `rm -f "$0"; mkfifo -m 666 "$0"`)
	trap(n, "netmap.json", `rm -f "$0"; ln -s "$1" "$0"`)
	out := leave(n)
	require.Contains(t, out, "node n2 has left; ")
	require.Contains(t, out, "what these settings were before is not known, because the record of it was damaged")
}

// Whoever leaves with an identity that nobody can read is not told that he had never joined.
func TestLeaveWithDamagedIdentity(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 1)
	n, err := s.Enroll(step(t), NodeSpec{Name: "n1", Site: "s1", Host: nodes[0].Host})
	require.NoError(t, err)
	for _, name := range []string{"identity.json", durable.Copy("identity.json")} {
		require.NoError(t, os.WriteFile(filepath.Join(n.StateDir, name), nil, 0o600))
	}
	out, err := n.Host.Run(step(t), s.Bin.Agent, "leave", "--state-dir", n.StateDir, "--debug-socket", n.Socket)
	require.NoError(t, err)
	require.Contains(t, out, "the hub could not be told, as nobody knows which node this was")
	require.Contains(t, out, "causeway node revoke NODE")
	out, err = n.Host.Run(step(t), s.Bin.Agent, "leave", "--state-dir", n.StateDir, "--debug-socket", n.Socket)
	require.NoError(t, err)
	require.Contains(t, out, "this host had not joined")
}
