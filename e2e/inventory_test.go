package e2e

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// changeLimit is how many seconds a change on a host may take to the operator's screen.
const changeLimit = 2.0

// newContainerNode is a small system whose one node runs Podman with an image 'tool'.
func newContainerNode(t *testing.T) (*System, *Node, *lab.Podman) {
	t.Helper()
	s, nodes := newSmall(t, 1)
	p := nodes[0].Host.Podman(containersA)
	require.NoError(t, p.Image(step(t), "tool"))
	socket, err := p.Serve(step(t))
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p.Run(ctx, "rm", "-f", "-a", "-t", "0")
	})
	n, err := s.Join(step(t), NodeSpec{Name: "n1", Site: "s1", Host: nodes[0].Host, TokenRoutes: []string{containersA}, Podman: socket})
	require.NoError(t, err)
	require.NoError(t, s.WaitReady(step(t), "n1"))
	return s, n, p
}

// watching is 'causeway inventory watch' on the hub's host.
type watching struct {
	t    *testing.T
	proc *lab.Process
}

func (s *System) watchInventory(t *testing.T, args ...string) *watching {
	t.Helper()
	p, err := s.Hub.Host.Start(lab.Program{Name: "watch", Args: append([]string{s.Bin.CLI, "--socket", s.Hub.Socket, "inventory", "watch"}, args...)})
	require.NoError(t, err)
	w := &watching{t, p}
	w.wait("watching; interrupt to end")
	return w
}

// wait waits for a line and returns when it was there.
func (w *watching) wait(pattern string) time.Time {
	w.t.Helper()
	re := regexp.MustCompile(pattern)
	var at time.Time
	require.Eventually(w.t, func() bool {
		b, err := os.ReadFile(w.proc.Log)
		at = time.Now()
		return err == nil && re.Match(b)
	}, stepTimeout, 5*time.Millisecond, "no line like %s in:\n%s", pattern, w.proc.Output())
	return at
}

// stamped reads an instant of a container from Podman.
func stamped(t *testing.T, p *lab.Podman, container, field string) time.Time {
	t.Helper()
	out, err := p.Run(step(t), "inspect", "-f", "{{.State."+field+".UnixNano}}", container)
	require.NoError(t, err)
	n, err := strconv.ParseInt(out, 10, 64)
	require.NoError(t, err)
	return time.Unix(0, n)
}

// Real containers: what starts, stops and goes is on the operator's screen within two
// seconds, and the node's facts say all of it. Not parallel: a time limit.
func TestContainersAreWatched(t *testing.T) {
	s, _, p := newContainerNode(t)
	w := s.watchInventory(t)
	for i := range rounds(1) {
		name := fmt.Sprintf("web%d", i)
		_, err := p.Run(step(t), "run", "-d", "--name", name, "--label", "tier=front", "--memory", "64m", "tool", "/bin/sleep", "600")
		require.NoError(t, err)
		addr, err := p.Address(step(t), name)
		require.NoError(t, err)
		seen := w.wait(fmt.Sprintf(`s1  n1  container %s running at %s \(`, name, regexp.QuoteMeta(addr)))
		measured(t, "container started to inventory watch", seen.Sub(stamped(t, p, name, "StartedAt")).Seconds(), changeLimit)

		var inv api.Inventory
		require.NoError(t, s.Ask(step(t), &inv, "inventory", "show", "n1"))
		require.Contains(t, inv.Runtimes, "podman")
		require.NotEmpty(t, inv.Runtimes["podman"].Version)
		require.Len(t, inv.Containers, i+1)
		for _, c := range inv.Containers {
			if c.Name != name {
				continue
			}
			require.Equal(t, addr, c.Addresses[0].String())
			require.Equal(t, "front", c.Labels["tier"])
			require.Contains(t, c.Image, "tool")
			require.Equal(t, uint64(64<<20), c.MemoryRequested)
			require.NotNil(t, c.Started)
		}
		require.Equal(t, protocol.Amount{Total: 253, Used: 1, Free: 252}, inv.Capacity.Pods)
		out, err := s.CLI(step(t), "inventory", "list", "--containers")
		require.NoError(t, err)
		require.Regexp(t, `(?m)^`+name+` +n1 +s1 +running +`+regexp.QuoteMeta(addr)+` `, out)

		var ping api.PingResult
		require.NoError(t, s.Ask(step(t), &ping, "diag", "ping", "n1", name), "a pod by its name")
		require.Equal(t, addr, ping.Addr.String())

		_, err = p.Run(step(t), "stop", "-t", "0", name)
		require.NoError(t, err)
		seen = w.wait(fmt.Sprintf(`s1  n1  container %s exited \(`, name))
		measured(t, "container stopped to inventory watch", seen.Sub(stamped(t, p, name, "FinishedAt")).Seconds(), changeLimit)
	}
	_, err := p.Run(step(t), "rm", "web0")
	require.NoError(t, err)
	w.wait(`container web0 removed`)

	// What the kernel tells of.
	h := s.Node("n1").Host
	before := time.Now()
	h.Sh("ip link add lan7 type veth peer name lan7p && ip link set lan7p up && ip addr add 192.0.2.7/32 dev lan7 && ip link set lan7 up")
	seen := w.wait(`interface lan7 appeared.*192\.0\.2\.7/32|interface lan7 has 192\.0\.2\.7/32`)
	measured(t, "interface to inventory watch", seen.Sub(before).Seconds(), changeLimit)
	require.NotContains(t, w.proc.Output(), "memory", "load and the like are not told of")
	require.Empty(t, strings.TrimSpace(h.Sh("ip link del lan7")))
	w.wait(`interface lan7 is gone`)
}
