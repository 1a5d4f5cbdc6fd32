package e2e

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// noticedWithin is how soon the hub notices that an identity is on two hosts.
const noticedWithin = 60 * time.Second

func quarantined(s *System, name string) func(context.Context) error {
	return func(ctx context.Context) error {
		l, err := s.Nodes(ctx)
		if err == nil && l[name].State != api.NodeQuarantined {
			err = errState(l[name].State)
		}
		return err
	}
}

// A state directory that was copied to a second host. Parallel all the same: it mostly
// waits, and its limits are several times what it takes.
func TestClonedMachine(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 3)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[1].Pod.Host, nodes[0].Pod.V4))
	state := func(name string) api.Node {
		l, err := s.Nodes(step(t))
		require.NoError(t, err)
		return l[name]
	}
	// Restarts, and a machine set back to a snapshot of its disk, are none.
	snap := filepath.Join(nodes[0].Host.Dir(), "snapshot")
	copyLive(t, snap, nodes[0].StateDir)
	for i := range 4 {
		nodes[0].Proc.Kill()
		if i == 2 {
			require.NoError(t, os.RemoveAll(nodes[0].StateDir))
			require.NoError(t, os.CopyFS(nodes[0].StateDir, os.DirFS(snap)))
		}
		require.NoError(t, nodes[0].Start())
		require.NoError(t, Ping(step(t), nodes[1].Pod.Host, nodes[0].Pod.V4))
		require.NoError(t, s.WaitReady(step(t), "n1"))
	}
	require.Equal(t, api.NodeReady, state("n1").State)

	clone, err := s.Prepare(NodeSpec{Name: "clone", Site: "s1", Host: nodes[2].Host})
	require.NoError(t, err)
	require.NoError(t, os.CopyFS(clone.StateDir, os.DirFS(snap)))
	begin := time.Now()
	require.NoError(t, clone.Start())
	require.NoError(t, lab.Wait(within(t, noticedWithin), "the quarantine", quarantined(s, "n1")))
	t.Logf("noticed after %.1f s", time.Since(begin).Seconds())
	out, err := s.CLI(step(t), "node", "show", "n1")
	require.NoError(t, err)
	require.Contains(t, out, "used on two hosts")
	require.NoError(t, Wait(t, func() error {
		if PingOnce(step(t), nodes[1].Pod.Host, nodes[0].Pod.V4) == nil {
			return errState("reachable")
		}
		return nil
	}))

	// Released while both run it is quarantined again; once one is gone it is well.
	_, err = s.CLI(step(t), "node", "release", "n1")
	require.NoError(t, err)
	require.NoError(t, lab.Wait(within(t, noticedWithin), "the quarantine again", quarantined(s, "n1")))
	require.NoError(t, clone.Proc.Stop(step(t)))
	c := &curing{t: t, s: s, nodes: nodes}
	mend := c.found("node-quarantined", "n1")
	require.Regexp(t, `^stop the agent of one of the two hosts, then: causeway node release n1;`, mend)
	c.run(commands(mend)[0])
	require.NoError(t, s.WaitReady(step(t), "n1"))
	c.gone("node-quarantined", "n1")
	require.NoError(t, Ping(step(t), nodes[1].Pod.Host, nodes[0].Pod.V4))
	out, err = s.CLI(step(t), "audit")
	require.NoError(t, err)
	require.Contains(t, out, "quarantined")
	require.Contains(t, out, "released")
}

// copyLive copies the directory of a program that runs, as a snapshot of its disk would have it: a
// file that is being replaced is there under its own name, before and after.
func copyLive(t *testing.T, to, from string) {
	t.Helper()
	require.NoError(t, Wait(t, func() error {
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		return os.CopyFS(to, os.DirFS(from))
	}))
}
