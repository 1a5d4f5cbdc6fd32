package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where /proc/sys is read-only, as in containers, the agent sets up all else: the host itself is
// reached, and what its pods lack is said with the command that mends it from outside.
func TestReadOnlySettings(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 2)
	n, far := nodes[0], nodes[1]
	n.Host.Sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv4.conf.all.rp_filter=0")
	node, err := s.Enroll(step(t), NodeSpec{Name: "n1", Site: "s1", Host: n.Host, TokenRoutes: PodRoutes(1, 1)})
	require.NoError(t, err)
	n.Node = node
	n.Wrap = []string{"unshare", "-m", "sh", "-ec", `mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$0" "$@"`}
	require.NoError(t, n.Start())
	c := conditionIs(t, n.Node, "routes", false, "read-only file system")
	require.Contains(t, c.Cause, "net.ipv4.ip_forward=1")
	require.Contains(t, c.Cause, "pods and LANs behind this host reach no other site")
	conditionIs(t, n.Node, "netmap", true, "")
	require.NoError(t, Ping(step(t), n.Host, far.Pod.V4), "the host itself")
	require.Error(t, PingOnce(step(t), n.Pod.Host, far.Pod.V4))
	conditionIs(t, n.Node, "repair", true, "")

	for _, part := range strings.Split(c.Cause, "set it by '")[1:] {
		cure, _, _ := strings.Cut(part, "'")
		n.Host.Sh(cure)
	}
	conditionIs(t, n.Node, "routes", true, "")
	require.NoError(t, Ping(step(t), n.Pod.Host, far.Pod.V4))
	require.NoError(t, Ping(step(t), far.Pod.Host, n.Pod.V6))
	require.NoError(t, s.WaitReady(step(t), "n1"))
}
