package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
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
	const segments = "kind: segment\nname: prod\nsites: [s1, s2]\n---\nkind: segment\nname: dev\nsites: [s3]\n"
	require.NoError(t, apply(segments))
	closed(1, 3)
	closed(3, 2)
	open(1, 2)
	const policy = segments + "---\nkind: policy\nname: main\nrules:\n" +
		"- {name: one, from: {site: s1}, to: {site: s2, cidr: 10.2.1.0/24}, allow: [icmp]}\n" +
		"- {name: lab, across: [dev, prod], from: {segment: dev}, to: {site: s2}, allow: [icmp]}\n"
	require.NoError(t, apply(policy))
	open(1, 2)
	open(3, 2)
	closed(1, 3)
	require.ErrorContains(t, apply(policy+"tests:\n- {from: 10.1.1.11, to: 10.3.1.11, port: icmp, want: open}\n"), "wanted open, and it is closed")
	require.NoError(t, apply(segments+"---\nkind: policy\nname: main\nrules: []\n"))
	closed(1, 2)
	closed(3, 2)
}
