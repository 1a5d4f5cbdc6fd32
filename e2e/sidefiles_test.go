package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/internal/durable"
	"causeway/internal/durable/durabletest"
	"causeway/netns/lab"
)

// twice are the files of an agent that have a copy; the others are made anew.
var twice = []string{"identity.json", "pins.json", "netmap.json", "host.json"}

var once = []string{"port.json", "incidents.json", "inventory.jsonl"}

// damage damages a file, or the one that might have been there.
func damage(t *testing.T, kind, path string) {
	t.Helper()
	if st, err := os.Lstat(path); err != nil || !st.Mode().IsRegular() || st.Size() < 10 || st.Size() > 1<<20 { // of the damage before
		require.NoError(t, os.RemoveAll(path))
		require.NoError(t, os.WriteFile(path, []byte("{\"v\": 1}\n"), 0o600))
	}
	durabletest.Damages[kind](t, path)
}

// Every file that an agent keeps is damaged, in every way: it starts, its pods reach others and
// are reached, and the damaged files are kept for an engineer. Where copies are damaged
// as well, what only the agent knew is missed in one line each: who it is, and whose
// keys it had seen; what is printed mends it.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	n, far := nodes[0], nodes[1]
	pings := func() {
		t.Helper()
		require.NoError(t, Ping(step(t), n.Pod.Host, far.Pod.V4))
		require.NoError(t, Ping(step(t), far.Pod.Host, n.Pod.V6))
	}
	pings()
	file := func(name string) string { return filepath.Join(n.StateDir, name) }
	for _, name := range twice { // what was never kept has no copy
		require.NoError(t, Wait(t, func() error {
			_, err := os.Stat(durable.Copy(file(name)))
			return err
		}), name)
	}
	again := func() {
		t.Helper()
		require.NoError(t, n.Start())
		conditionIs(t, n.Node, "control", true, "")
		conditionIs(t, n.Node, "netmap", true, "")
		pings()
	}
	kinds := slices.Sorted(maps.Keys(durabletest.Damages))
	if os.Getenv("CAUSEWAY_SOAK") == "" {
		kinds = []string{"FIFO", "directory", "flipped", "truncated"}
	}
	for _, kind := range kinds {
		require.NoError(t, n.Proc.Stop(step(t)))
		for _, name := range slices.Concat(twice, once, []string{"held.json"}) {
			damage(t, kind, file(name))
		}
		again()
		for _, name := range slices.Concat(twice, once) {
			if name == "inventory.jsonl" && (kind != "FIFO" && kind != "directory" && kind != "link") {
				continue // its lines are taken as far as they read
			}
			if kind == "flipped" && slices.Contains(once, name) && name != "incidents.json" {
				continue // a port is as good as another
			}
			_, err := os.Lstat(durable.Bad(file(name)))
			require.NoError(t, err, "%s %s", kind, name)
		}
		for _, name := range append([]string{"held.json"}, twice...) {
			st, err := os.Lstat(file(name))
			require.NoError(t, err)
			require.True(t, st.Mode().IsRegular(), "%s %s", kind, name)
		}
	}

	both := func(names ...string) {
		require.NoError(t, n.Proc.Stop(step(t)))
		for _, name := range names {
			damage(t, "truncated", file(name))
			damage(t, "truncated", durable.Copy(file(name)))
		}
	}
	both("host.json", "netmap.json", "held.json")
	again()
	both("pins.json")
	require.NoError(t, n.Start())
	conditionIs(t, n.Node, "control", true, "")
	lost := conditionIs(t, n.Node, "netmap", false, "no peer is reached, since any key would do")
	require.Error(t, PingOnce(step(t), n.Pod.Host, far.Pod.V4))
	_, cure, ok := strings.Cut(lost.Cause, "pinned: '")
	require.True(t, ok, lost.Cause)
	cure, _, _ = strings.Cut(cure, "'")
	n.Host.Sh(cure)
	conditionIs(t, n.Node, "netmap", true, "")
	pings()

	both("identity.json")
	_, err := n.Host.Run(step(t), s.Bin.Agent, "run", "--config", n.Config, "--state-dir", n.StateDir, "--debug-socket", n.Socket)
	var r *lab.RunError
	require.ErrorAs(t, err, &r)
	requireLine(t, r.Stderr, "identity.json is damaged", "join again with 'causeway-agent join --replace TOKEN'")
	require.NoError(t, s.WaitReady(step(t), "n2"))
	token, err := s.Token(step(t), "s1", "--route", PodRoutes(1, 1)[0], "--route", PodRoutes(1, 1)[1], "--replace", "n1")
	require.NoError(t, err)
	_, err = n.Redeem(step(t), token, "--replace")
	require.NoError(t, err)
	again()
	require.NoError(t, n.Leave(step(t)))
	left, err := os.ReadDir(n.StateDir) // which this join has not made
	require.NoError(t, err)
	require.Empty(t, left)
}

// The hub's file of what is known live, and its note of the last backup: damaged in every way,
// the hub starts and learns anew.
func TestDamagedFilesOfHub(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 1)
	joinSmall(t, s, nodes, 1)
	require.NoError(t, s.WaitReady(step(t), "n1"))
	for _, kind := range slices.Sorted(maps.Keys(durabletest.Damages)) {
		require.NoError(t, s.Hub.Proc.Stop(step(t)))
		for _, name := range []string{"live.json", "backup.time"} {
			damage(t, kind, filepath.Join(s.Hub.Dir, name))
		}
		require.NoError(t, s.StartHub(step(t)))
		_, err := os.Lstat(durable.Bad(filepath.Join(s.Hub.Dir, "live.json")))
		require.NoError(t, err, kind)
		ctx := within(t, 20*time.Second)
		s.CLI(ctx, "doctor") // which reads the note, and has findings
		require.NoError(t, ctx.Err(), kind)
	}
	require.NoError(t, s.WaitReady(step(t), "n1"))
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	st, err := os.Lstat(filepath.Join(s.Hub.Dir, "live.json"))
	require.NoError(t, err)
	require.True(t, st.Mode().IsRegular())
}

// Each file of a hub's data directory that its user may not read: the hub starts, or says in one line which
// file that is and what to do, and starts once that is done.
func TestUnreadableFilesOfHub(t *testing.T) {
	t.Parallel()
	s, _ := newSmall(t, 0)
	require.NoError(t, s.CreateSite(step(t), "s1"))
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	files, err := os.ReadDir(s.Hub.Dir)
	require.NoError(t, err)
	require.Greater(t, len(files), 6)
	for _, f := range files {
		path := filepath.Join(s.Hub.Dir, f.Name())
		st, err := os.Lstat(path)
		require.NoError(t, err)
		owner := st.Sys().(*syscall.Stat_t)
		require.NoError(t, os.Chown(path, 0, 0))
		require.NoError(t, os.Chmod(path, st.Mode().Perm()&0o700))
		err = s.StartHub(step(t))
		if err == nil {
			require.Contains(t, []string{"tls.pem", "live.json", "backup.time", "reserve"}, f.Name(), "the hub did without")
		} else {
			out := s.Hub.Proc.Output()
			requireLine(t, out[strings.LastIndex(out, "causeway-hub: "):], s.Hub.Dir, "; give it to ")
			require.NoError(t, os.Chown(path, int(owner.Uid), int(owner.Gid)))
			require.NoError(t, s.StartHub(step(t)), f.Name())
		}
		require.NoError(t, s.Hub.Proc.Stop(step(t)))
	}
}
