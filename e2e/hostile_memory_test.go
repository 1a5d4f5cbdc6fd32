package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/identity"
	"causeway/netns/lab"
)

// A hub in a control group with little memory, one node of which floods NATS: Go's limit follows the group's, the
// kernel kills nothing, and changes go on.
func TestHostileNATSInMemoryGroup(t *testing.T) {
	t.Parallel()
	const limit = 64 << 20
	l, hub, nodes := smallHosts(t, 2)
	s, err := PrepareSystem(l, binaries(t), hub, HubAddr)
	require.NoError(t, err)
	g := newMemoryGroup(t, hub.Namespace(), limit)
	t.Cleanup(func() { // before the group goes
		if s.Hub.Proc != nil {
			s.Hub.Proc.Kill()
		}
	})
	s.Hub.Wrap = g.wrap()
	require.NoError(t, s.StartHub(step(t)))
	require.NoError(t, s.Hub.Proc.WaitOutput(step(t), "memory limit, by the control group"))
	share := limit * 9 / 10
	require.Contains(t, s.Hub.Proc.Output(), fmt.Sprintf(`"bytes":%d,`, share))
	for i := range nodes {
		require.NoError(t, nodes[i].Host.Settle(step(t)))
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("s%d", i+1)))
	}
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	pid := s.Hub.Proc.PID()
	id, err := identity.Peek(nodes[1].StateDir)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	defer stop()
	var sent atomic.Int64
	wg.Go(func() { floodAgain(ctx, &attacker{t: t, n: nodes[1].Node}, id, &sent) })
	begin, most, changes := time.Now(), 0, 0
	for time.Since(begin) < time.Duration(repeat(10, 120))*time.Second || sent.Load() < 2<<20 {
		require.NoError(t, step(t).Err())
		_, err := s.CLI(step(t), "node", "label", "n1", fmt.Sprintf("try=%d", time.Now().UnixNano()))
		require.NoError(t, err)
		changes++
		most = max(most, rss(t, pid))
	}
	stop()
	require.True(t, s.Hub.Proc.Running())
	require.Equal(t, pid, s.Hub.Proc.PID())
	require.Zero(t, g.killed(), "the kernel killed something")
	require.NoError(t, s.WaitReady(step(t), "n1"))
	t.Logf("%d MiB for the group: %d KiB taken in %s, %d changes meanwhile, the hub held %d MB at most, the group %d MB with what files are cached", limit>>20,
		sent.Load()>>10, time.Since(begin).Round(time.Second), changes, most, g.peak()>>20)
}

// memoryGroup is a control group, of version 1 or 2, that has a limit of memory.
type memoryGroup struct {
	t   *testing.T
	dir string
	v2  bool
}

func newMemoryGroup(t *testing.T, name string, limit int) *memoryGroup {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	g := &memoryGroup{t: t}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		require.Len(t, f, 3)
		switch {
		case f[1] == "memory":
			g.dir, g.v2 = filepath.Join("/sys/fs/cgroup/memory", f[2], name), false
		case f[1] == "" && g.dir == "":
			g.dir, g.v2 = filepath.Join("/sys/fs/cgroup", f[2], name), true
		}
	}
	require.NoError(t, os.Mkdir(g.dir, 0o755))
	t.Cleanup(func() {
		err := lab.Wait(step(t), "an empty group", func(context.Context) error { return syscall.Rmdir(g.dir) })
		require.NoError(t, err)
	})
	file := "memory.limit_in_bytes"
	if g.v2 {
		file = "memory.max"
	}
	require.NoError(t, os.WriteFile(filepath.Join(g.dir, file), []byte(strconv.Itoa(limit)), 0o644))
	return g
}

// wrap is a command that runs another one in the group, as whoever runs it.
func (g *memoryGroup) wrap() []string {
	g.t.Helper()
	procs := filepath.Join(g.dir, "cgroup.procs")
	require.NoError(g.t, os.Chown(procs, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	return []string{"sh", "-c", fmt.Sprintf(`echo $$ > %s && exec "$@"`, procs), "sh"}
}

// killed is how many processes the kernel has killed for the group's memory.
func (g *memoryGroup) killed() int {
	g.t.Helper()
	file := "memory.oom_control"
	if g.v2 {
		file = "memory.events"
	}
	text, err := os.ReadFile(filepath.Join(g.dir, file))
	require.NoError(g.t, err)
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return g.number(n)
		}
	}
	g.t.Fatal("no oom_kill in " + file)
	return 0
}

// peak is the most that the group has had.
func (g *memoryGroup) peak() int {
	g.t.Helper()
	file := "memory.max_usage_in_bytes"
	if g.v2 {
		file = "memory.peak"
	}
	text, err := os.ReadFile(filepath.Join(g.dir, file))
	require.NoError(g.t, err)
	return g.number(string(text))
}

func (g *memoryGroup) number(text string) int {
	g.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(text))
	require.NoError(g.t, err)
	return n
}
