package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// podLimit is how many seconds after a container began, or went, rules by its labels may be what they were.
const podLimit = 2.0

// Rules by the labels of real containers: they open when one with these labels is there, and close when another has its address.
// Not parallel: a time limit.
func TestPolicyPods(t *testing.T) {
	s, nodes := newSmall(t, 2)
	const containers = "10.2.201.0/24"
	p := nodes[1].Host.Podman(containers)
	require.NoError(t, p.Image(step(t), "tool"))
	socket, err := p.Serve(step(t))
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p.Run(ctx, "rm", "-f", "-a", "-t", "0")
	})
	joinSmall(t, s, nodes, 1)
	nodes[1].Node, err = s.Join(step(t), NodeSpec{Name: "n2", Site: "s2", Host: nodes[1].Host, TokenRoutes: append(PodRoutes(2, 1), containers), Podman: socket})
	require.NoError(t, err)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	require.NoError(t, os.WriteFile(policy, []byte("kind: policy\nname: main\nrules:\n- {name: db, from: {site: s1}, to: {site: s2, pods: {tier: db}}, allow: [icmp]}\n"), 0o600))
	_, err = s.CLI(step(t), "apply", "-f", policy)
	require.NoError(t, err)

	const addr = "10.2.201.50"
	run := func(name, tier string) {
		t.Helper()
		_, err := p.Run(step(t), "run", "-d", "--name", name, "--ip", addr, "--label", "tier="+tier, "tool", "/bin/sleep", "600")
		require.NoError(t, err)
	}
	reaches := func() bool { return PingOnce(step(t), nodes[0].Pod.Host, addr) == nil }
	became := func(what string, open bool, since time.Time) {
		t.Helper()
		var at time.Time
		require.NoError(t, Wait(t, func() error {
			if at = time.Now(); reaches() != open {
				return fmt.Errorf("%s is reached: %v", addr, !open)
			}
			return nil
		}))
		measured(t, what, at.Sub(since).Seconds(), podLimit)
	}
	says := func(open bool) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			if out, err := s.CLI(step(t), "policy", "test", "10.1.1.11", addr, "icmp"); (err == nil) != open {
				return fmt.Errorf("%s %w", out, err)
			}
			return nil
		}))
	}
	run("front", "front")
	require.NoError(t, Wait(t, func() error { // it is there, as its own host shows
		return PingOnce(step(t), nodes[1].Host, addr)
	}))
	require.False(t, reaches())
	for range rounds(1) {
		_, err = p.Run(step(t), "rm", "-f", "-t", "0", "front")
		require.NoError(t, err)
		run("db", "db")
		became("container with the label to open", true, stamped(t, p, "db", "StartedAt"))
		require.Error(t, PingOnce(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4), "another pod of the node")
		_, err = p.Run(step(t), "rm", "-f", "-t", "0", "db")
		require.NoError(t, err)
		run("front", "front")
		became("another container with its address to closed", false, stamped(t, p, "front", "StartedAt"))
	}

	// What a node told holds while it is away, and over the hub's start.
	_, err = p.Run(step(t), "rm", "-f", "-t", "0", "front")
	require.NoError(t, err)
	run("db", "db")
	says(true)
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	nodes[1].Node.Proc.Signal(syscall.SIGKILL)
	require.NoError(t, s.StartHub(step(t)))
	says(true)
	require.NoError(t, nodes[1].Node.Start())
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Wait(t, func() error {
		if !reaches() {
			return fmt.Errorf("%s is not reached", addr)
		}
		return nil
	}))
}
