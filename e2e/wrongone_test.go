package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

// A command that acts on an agent refuses another one than that of the state directory which was
// named, names both, and does nothing; what it says to give instead is taken.
func TestWrongAgent(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	one, two := nodes[0], nodes[1]
	list, err := s.CLI(step(t), "hubs", "list", "-o", "json")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "list")
	require.NoError(t, os.WriteFile(file, []byte(list), 0o600))
	none := filepath.Join(t.TempDir(), "none")
	clone := filepath.Join(t.TempDir(), "clone")
	one.Host.Sh(snapshotOf(one.StateDir, clone))
	network := func() (out []string) {
		for _, n := range nodes {
			out = append(out, installed(n.Host))
		}
		return out
	}
	before := network()
	agent := func(args ...string) (string, error) {
		out, err := one.Host.Run(step(t), append([]string{s.Bin.Agent}, args...)...)
		if err != nil {
			out = err.Error()
		}
		return out, err
	}
	oneSock, twoSock := "--debug-socket="+one.Socket, "--debug-socket="+two.Socket
	commands := [][]string{{"leave"}, {"release", "10.2.1.0/24"}, {"repair"}, {"rotate-key"}, {"hubs", "set", "@" + file}, {"hubs", "show"}}
	for _, c := range commands {
		for _, x := range []struct {
			what string
			args []string
			want []string
		}{
			{"another's socket", []string{twoSock, "--state-dir", one.StateDir}, []string{"node n2 (number 3, cluster ", "node n1 (number 2, cluster ", two.StateDir, one.StateDir}},
			{"another's state", []string{oneSock, "--state-dir", two.StateDir}, []string{"node n1 (number 2, cluster ", "node n2 (number 3, cluster ", "or --state-dir " + one.StateDir}},
			{"nobody's state", []string{oneSock, "--state-dir", none}, []string{"node n1 (number 2, cluster ", none + " has no node"}},
			{"a copy of its state", []string{oneSock, "--state-dir", clone}, []string{one.StateDir, clone}},
		} {
			out, err := agent(append(c, x.args...)...)
			require.Error(t, err, "%s: %v", x.what, c)
			for _, w := range append(x.want, "nothing was done") {
				require.Contains(t, out, w, "%s: %v", x.what, c)
			}
		}
	}
	// Nobody answers, and so the state directory is what is acted on: whose that is has to be said.
	for _, c := range [][]string{{"leave"}, {"hubs", "set", "@" + file}, {"hubs", "show"}} {
		out, err := agent(append(c, "--debug-socket", filepath.Join(t.TempDir(), "none.sock"))...)
		require.Error(t, err, c)
		require.Contains(t, out, "say whose state is meant with --state-dir", c)
	}
	// And the interface that it would remove is a running agent's.
	out, err := agent("leave", "--state-dir", none, "--debug-socket", filepath.Join(t.TempDir(), "none.sock"))
	require.Error(t, err)
	require.Contains(t, out, "a running agent has interface cw0, and it is not the one of this state directory")
	require.Empty(t, cmp.Diff(before, network()), "nothing was done")
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), one.Pod.Host, two.Pod.V4))
	// A refusal of the agent's own is its reason, and no status line.
	out, err = agent("release", "10.77.0.0/16", oneSock)
	require.Error(t, err)
	require.Contains(t, out, "causeway-agent: 10.77.0.0/16: nothing of it is held closed; see 'causeway-agent status'")
	_, said, _ := strings.Cut(out, "causeway-agent: ") // before that stands the command, with numbers of its own
	require.NotContains(t, said, "404")
	require.NotContains(t, said, "POST")
	for _, c := range commands[2:] {
		_, err := agent(append(c, oneSock, "--state-dir", one.StateDir)...)
		require.NoError(t, err, c)
		_, err = agent(append(c, oneSock)...) // a socket alone names its agent
		require.NoError(t, err, c)
	}
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(one.StateDir, link))
	_, err = agent("repair", oneSock, "--state-dir", link)
	require.NoError(t, err, "another name of the same directory")
	require.True(t, strings.HasPrefix(one.StateDir, "/"))
	require.NoError(t, one.Leave(step(t)))
	awaitLeft(t, s, "n1")
	require.NoError(t, s.WaitReady(step(t), "n2"))
}
