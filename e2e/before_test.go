package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// beforeCommit is what stands for the version before this one while no tag is there:
// its programs are built from history. With the first tag vX.Y.Z that tag takes its place.
const beforeCommit = "3ea36ffebee034b1d52a6f430e7505e20d47f598"

// before are the programs of the version before, built once.
var before = sync.OnceValues(func() (Binaries, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	root, err := moduleRoot(ctx)
	if err != nil {
		return Binaries{}, err
	}
	git := func(args ...string) error {
		out, err := exec.CommandContext(ctx, "git", append([]string{"-C", root, "-c", "safe.directory=*"}, args...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("git %v: %w\n%s", args, err, out)
		}
		return nil
	}
	if git("cat-file", "-e", beforeCommit+"^{commit}") != nil {
		// A shallow clone has it at its origin.
		if err := git("fetch", "-q", "--depth=1", "origin", beforeCommit); err != nil {
			return Binaries{}, fmt.Errorf("the version before this one is not in this clone, nor at its origin (clone with --depth of all history): %w", err)
		}
	}
	dir, err := os.MkdirTemp("", "causeway-before-")
	if err != nil {
		return Binaries{}, err
	}
	atExit(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		return Binaries{}, err
	}
	tar := filepath.Join(dir, "src.tar")
	if err := git("archive", "-o", tar, beforeCommit); err != nil {
		return Binaries{}, err
	}
	src := filepath.Join(dir, "src")
	if err := os.Mkdir(src, 0o755); err != nil {
		return Binaries{}, err
	}
	if out, err := exec.CommandContext(ctx, "tar", "-C", src, "-xf", tar).CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("unpack: %w\n%s", err, out)
	}
	return buildOther(ctx, src, dir, "-buildvcs=false", "-ldflags", "-X main.version="+beforeVersion)
})

// beforeVersion is what the version before calls itself here.
const beforeVersion = "0.0.0-before"

// The version before and this one, up and back again: 100 TCP connections stay, and the
// hub's state and the agents' are read both ways. A soak tries the other orders, the other
// engine and the stream.
func TestUpgradeFromBefore(t *testing.T) {
	t.Parallel()
	needRoot(t)
	orders := []struct {
		name   string
		steps  string // h, 1, 2: up; then again, back
		engine string
		noUDP  bool
		light  bool
	}{
		{name: "hub first", steps: "h12 21h", light: true},
		{name: "the other agent first", steps: "h21 12h"},
		{name: "agents first", steps: "12h h21"},
		{name: "mixed", steps: "1h2 1h2"},
		{name: "wireguard-go", steps: "h12 21h", engine: "wireguard-go"},
		{name: "over a stream", steps: "h12 21h", noUDP: true},
	}
	for _, o := range orders {
		if !o.light && !soak() {
			continue
		}
		t.Run(o.name, func(t *testing.T) {
			old, err := before()
			require.NoError(t, err)
			upAndBack(t, old, o.steps, o.engine, o.noUDP)
		})
	}
}

func upAndBack(t *testing.T, old Binaries, steps, engine string, noUDP bool) {
	s, nodes := newSmall(t, 2)
	now := s.Bin
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	require.NoError(t, os.RemoveAll(s.Hub.Dir))
	s.Bin.Hub, s.Bin.Agent, s.Bin.CLI = old.Hub, old.Agent, old.CLI
	s.Hub.bin, s.HubBefore = old.Hub, true
	require.NoError(t, s.StartHub(step(t)))
	if noUDP {
		s.Hub.Host.Nft("table inet noudp { chain i { type filter hook input priority 0; udp dport 51820 drop; }\n}")
	}
	for i := range nodes {
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("s%d", i+1)))
		n, err := s.Join(step(t), NodeSpec{Name: fmt.Sprintf("n%d", i+1), Site: fmt.Sprintf("s%d", i+1), Host: nodes[i].Host, TokenRoutes: PodRoutes(i+1, 1), Engine: engine})
		require.NoError(t, err)
		nodes[i].Node = n
		if noUDP { // through the hub alone
			nodes[i].Host.Nft(fmt.Sprintf("table inet apart { chain o { type filter hook output priority 0; ip daddr 203.0.113.%d drop; }\n}", 22-i))
		}
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	a, b := nodes[0].Pod, nodes[1].Pod
	_, err := s.Serve(step(t), b.Host)
	require.NoError(t, err)
	require.NoError(t, Ping(step(t), a.Host, b.V4))
	if noUDP {
		require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathStream))
	}
	hold, err := s.Hold(step(t), a.Host, b.V4, "-streams", "100")
	require.NoError(t, err)

	version := func(node string) string {
		list, err := s.Nodes(step(t))
		require.NoError(t, err)
		return list[node].AgentVersion
	}
	require.Equal(t, beforeVersion, version("n1"))
	up := true
	for _, x := range steps {
		switch x {
		case ' ':
			require.NotEqual(t, beforeVersion, version("n1"))
			require.NotEqual(t, beforeVersion, version("n2"))
			up = false
			continue
		case 'h':
			bins := old
			if up {
				bins = now
			}
			s.HubBefore, s.Bin.CLI = !up, bins.CLI
			require.NoError(t, s.ExchangeHub(step(t), bins.Hub))
			for _, cli := range []string{old.CLI, now.CLI} { // an operator's may be of either
				_, err := s.Hub.Host.Run(step(t), cli, "--socket", s.Hub.Socket, "node", "list")
				require.NoError(t, err)
			}
		default:
			bin := old.Agent
			if up {
				bin = now.Agent
			}
			require.NoError(t, nodes[x-'1'].Exchange(step(t), bin))
		}
		require.NoError(t, s.WaitReady(step(t), "n1", "n2"), "after step %c, up: %v", x, up)
		require.NoError(t, Ping(step(t), a.Host, b.V4))
		require.True(t, hold.Alive(), "after step %c, up: %v", x, up)
	}
	require.Equal(t, beforeVersion, version("n1"))
	require.Equal(t, beforeVersion, version("n2"))
	lines, gap, err := hold.End(step(t))
	require.NoError(t, err)
	require.Greater(t, lines, 100)
	t.Logf("100 connections: %d lines, none lost, at most %.1f s still", lines, gap)
}
