package e2e

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/internal/durable"
	"causeway/netns/lab"
)

// all are the names that an agent reads in its state directory.
var all = slices.Concat(twice, once, []string{"held.json", "hubaddrs.json", "pending.json"})

// noFiles make of the file at path, or of what might be there, what is none, or none of the agent's.
var noFiles = map[string]func(t *testing.T, path string){
	"FIFO":          func(t *testing.T, path string) { require.NoError(t, unix.Mkfifo(path, 0o600)) },
	"directory":     func(t *testing.T, path string) { require.NoError(t, os.MkdirAll(filepath.Join(path, "full"), 0o700)) },
	"socket":        listenOn,
	"dangling link": func(t *testing.T, path string) { require.NoError(t, os.Symlink(path+".nowhere", path)) },
	"another's": func(t *testing.T, path string) {
		require.NoError(t, os.WriteFile(path, []byte("{}\n"), 0o600))
		give(t, path, lab.Nobody.UID)
	},
}

// listenOn makes a socket on which nobody answers.
func listenOn(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

func give(t *testing.T, path string, uid uint32) {
	t.Helper()
	require.NoError(t, os.Chown(path, int(uid), -1))
}

// What no file is in the place of each file of an agent's, and files and copies that its user may not read: it
// starts and its pods reach others, or it says in one line which file that is and what to do, and starts once that
// is done. The same of its debug socket.
func TestFilesOfAgent(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	n, far := nodes[0], nodes[1]
	file := func(name string) string { return filepath.Join(n.StateDir, name) }
	for _, name := range twice {
		require.NoError(t, Wait(t, func() error {
			_, err := os.Stat(durable.Copy(file(name)))
			return err
		}), name)
	}
	require.NoError(t, n.Proc.Stop(step(t)))
	// As the packages' agent, which is no root: what is another's is closed to it.
	n.Wrap = []string{"setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner,-chown"}
	starts := func(what string) {
		t.Helper()
		require.NoError(t, n.Start())
		conditionIs(t, n.Node, "control", true, "")
		conditionIs(t, n.Node, "netmap", true, "")
		require.NoError(t, Ping(step(t), n.Pod.Host, far.Pod.V4), what)
		require.NoError(t, n.Proc.Stop(step(t)))
	}
	refuses := func(want ...string) {
		t.Helper()
		_, err := n.Host.Run(step(t), append(slices.Clone(n.Wrap), s.Bin.Agent, "run", "--config", n.Config, "--state-dir", n.StateDir, "--debug-socket", n.Socket)...)
		text := failed(t, err).Stderr
		requireLine(t, text[strings.LastIndex(text, "causeway-agent: "):], want...)
	}
	for what, put := range noFiles {
		for _, name := range all {
			require.NoError(t, os.RemoveAll(file(name)))
			put(t, file(name))
		}
		starts(what)
		for _, name := range all {
			require.NoError(t, os.RemoveAll(durable.Bad(file(name))))
		}
	}

	// Both of a file's two, as after a copy of the directory by root.
	both := func(uid uint32, names ...string) {
		for _, name := range names {
			give(t, file(name), uid)
			give(t, durable.Copy(file(name)), uid)
		}
	}
	both(lab.Nobody.UID, "host.json", "netmap.json", "held.json")
	starts("another's, and the copies")
	both(lab.Nobody.UID, "identity.json")
	refuses("identity.json cannot be read (permission denied); give it to the user that runs this program")
	both(0, "identity.json")
	both(lab.Nobody.UID, "pins.json")
	require.NoError(t, n.Start())
	conditionIs(t, n.Node, "netmap", false, "pins.json cannot be read (permission denied)")
	conditionIs(t, n.Node, "netmap", false, "give it to the user that runs this program")
	require.Error(t, PingOnce(step(t), n.Pod.Host, far.Pod.V4))
	require.NoError(t, n.Proc.Stop(step(t)))
	both(0, "pins.json")
	starts("given back")

	for _, what := range []string{"FIFO", "directory", "another's"} {
		require.NoError(t, os.RemoveAll(n.Socket))
		noFiles[what](t, n.Socket)
		refuses(n.Socket, "remove it")
	}
	require.NoError(t, os.RemoveAll(n.Socket))
	listenOn(t, n.Socket)
	starts("a socket that is left over")
	l, err := net.Listen("unix", n.Socket)
	require.NoError(t, err)
	refuses(n.Socket, "another process answers there")
	require.NoError(t, l.Close())
	starts("all in its place")
}
