package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
)

// Segments and policies on real hosts: what is closed is closed soon and what is open stays open.
func TestPolicy(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 3)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	dir := t.TempDir()
	apply := func(text string) error {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(text), 0o600))
		out, err := s.CLI(step(t), "apply", "-f", dir)
		t.Log(out)
		return err
	}
	open := func(from, to int) { require.NoError(t, Ping(step(t), nodes[from-1].Pod.Host, nodes[to-1].Pod.V4)) }
	closed := func(from, to int) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			if PingOnce(step(t), nodes[from-1].Pod.Host, nodes[to-1].Pod.V4) == nil {
				return fmt.Errorf("a ping of n%d reaches n%d", from, to)
			}
			return nil
		}))
	}
	open(1, 2)
	open(1, 3)

	// Walls between segments, and all open inside them.
	const segments = "kind: segment\nname: prod\nsites: [s1, s2]\n---\nkind: segment\nname: dev\nsites: [s3]\n"
	require.NoError(t, apply(segments))
	closed(1, 3)
	closed(3, 2)
	open(1, 2)

	// Rules: what none opens is closed.
	const policy = segments + "---\nkind: policy\nname: main\nrules:\n" +
		"- {name: one, from: {site: s1}, to: {site: s2, cidr: 10.2.1.0/24}, allow: [icmp, tcp/7002]}\n" +
		"- {name: lab, across: [dev, prod], from: {segment: dev}, to: {site: s2}, allow: [icmp]}\n"
	require.NoError(t, apply(policy))
	have := func() {
		require.NoError(t, Wait(t, func() error {
			var o api.Object
			if err := s.Ask(step(t), &o, "get", "policy", "main"); err != nil || len(o.Lack) > 0 || o.Have != 3 {
				return fmt.Errorf("%d nodes have it, %v do not: %v", o.Have, o.Lack, err)
			}
			return nil
		}))
	}
	have()
	open(1, 2)
	open(3, 2)
	closed(1, 3)
	closed(2, 1)
	require.ErrorContains(t, apply(policy+"tests:\n- {from: 10.1.1.11, to: 10.3.1.11, port: icmp, want: open}\n"), "wanted open, and it is closed")
	out, err := s.CLI(step(t), "policy", "test", "10.1.1.11", "10.2.1.11", "tcp/7002")
	require.NoError(t, err)
	require.Contains(t, out, "open by rule main/one")
	out, err = s.CLI(step(t), "diag", "explain", "10.1.1.11", "10.2.1.11", "--port", "7080")
	require.Error(t, err)
	require.Contains(t, out, "the nearest is main/one, but it opens icmp, tcp/7002 and not tcp/7080")

	// Ports are judged on the hosts: the two nodes are peers, and the relay and the tunnel pass all between them.
	one, two := nodes[0].Pod, nodes[1].Pod
	server := startServer(t, s, two)
	http := func() error {
		_, err := one.Host.Run(step(t), s.Bin.Labtool, "http", "http://"+two.V4+":7080/ready")
		return err
	}
	require.Error(t, http(), "tcp/7080 is in no rule")
	kept, err := s.Hold(step(t), one.Host, server)
	require.NoError(t, err)
	more := strings.Replace(policy, "tcp/7002]", "tcp/7002, tcp/7080]", 1)
	require.NoError(t, apply(more))
	require.NoError(t, Wait(t, http))
	require.NoError(t, apply(policy))
	require.NoError(t, Wait(t, func() error {
		if http() == nil {
			return fmt.Errorf("tcp/7080 is still open")
		}
		return nil
	}))
	require.True(t, kept.Alive())
	_, _, err = kept.End(step(t))
	require.NoError(t, err, "a connection that no change forbade")
	held, err := s.Hold(step(t), one.Host, server)
	require.NoError(t, err)

	// A rule that goes cuts what it opened.
	start := time.Now()
	require.NoError(t, apply(segments+"---\nkind: policy\nname: main\nrules: []\n"))
	broke, err := held.Broken(step(t))
	require.NoError(t, err)
	require.Contains(t, broke, "connection reset by peer")
	measured(t, "policy rule removed to reset", time.Since(start).Seconds(), 2)
	closed(1, 2)
	closed(3, 2)
	events, err := s.CLI(step(t), "events")
	require.NoError(t, err)
	require.NotContains(t, events, "firewall", "a trial of the firewalls took a policy for one")
	_, err = s.CLI(step(t), "delete", "policy", "main", "--yes")
	require.NoError(t, err)
	open(2, 1)
	for _, name := range []string{"dev", "prod"} {
		_, err = s.CLI(step(t), "delete", "segment", name, "--yes")
		require.NoError(t, err)
	}
	open(3, 1)
	for _, n := range nodes {
		tables, err := n.Host.Run(step(t), "nft", "list", "tables")
		require.NoError(t, err)
		require.NotContains(t, tables, "causeway-policy")
	}
}
