package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// The disks of the hub and of an agent are full: a change is refused with the right words, and a node is revoked all
// the same; the agent shuts it out, says that it can store nothing, and says so no more once there is room. It holds
// after both have started again.
func TestRevokeWithFullDisks(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	n, bad := nodes[0], nodes[1]
	require.NoError(t, n.Proc.Stop(step(t)))
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	for dir, size := range map[string]string{s.Hub.Dir: "96m", n.StateDir: "512k"} {
		require.NoError(t, os.Rename(dir, dir+".moved"))
		require.NoError(t, os.Mkdir(dir, 0o700))
		mount(t, "-t", "tmpfs", "-o", "mode=700,size="+size, "tmpfs", dir)
		t.Cleanup(func() { umount(t, dir) })
		n.Host.Sh(fmt.Sprintf("cp -a %s.moved/. %s; chown --reference=%s.moved %s", dir, dir, dir, dir))
	}
	t.Cleanup(func() { // before they are taken away
		s.Hub.Proc.Kill()
		n.Proc.Kill()
	})
	require.NoError(t, s.StartHub(step(t)))
	require.NoError(t, n.Start())
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), n.Pod.Host, bad.Pod.V4))

	freeHub, freeAgent := fill(t, s.Hub.Dir), fill(t, n.StateDir)
	_, err := s.CLI(step(t), "site", "create", "refused")
	requireOneLine(t, err, "the disk at "+s.Hub.Dir, "full")
	_, err = s.CLI(step(t), "node", "revoke", "n2", "--yes")
	require.NoError(t, err)
	shutOut := func() {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			if PingOnce(step(t), n.Pod.Host, bad.Pod.V4) == nil {
				return fmt.Errorf("n2 is reached")
			}
			return nil
		}))
	}
	shutOut()
	conditionIs(t, n.Node, "state", false, "no space left on device")
	require.True(t, n.Proc.Running())
	freeHub()
	freeAgent()
	conditionIs(t, n.Node, "state", true, "")
	require.NoError(t, lab.Wait(step(t), "changes to be taken again", func(ctx context.Context) error { return s.CreateSite(ctx, "taken") }))

	s.Hub.Proc.Kill()
	require.NoError(t, s.StartHub(step(t)))
	all, err := s.Nodes(step(t))
	require.NoError(t, err)
	require.Equal(t, api.NodeRevoked, all["n2"].State)
	s.Hub.Proc.Kill() // what the agent stored shuts it out, without a hub
	n.Proc.Kill()
	require.NoError(t, n.Start())
	conditionIs(t, n.Node, "netmap", true, "")
	require.Error(t, PingOnce(step(t), n.Pod.Host, bad.Pod.V4))
}
