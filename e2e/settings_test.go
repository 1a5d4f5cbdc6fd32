package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
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
	require.Contains(t, c.Cause, "net.ipv4.conf.pods0.forwarding=51806")
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

// A host with a LAN and a management network forwards for the tunnel and for nothing else; who
// else turns forwarding on has it, before or after, and keeps it.
func TestHostIsNoRouter(t *testing.T) {
	t.Parallel()
	l, hub, nodes := smallHosts(t, 2)
	n, far := nodes[0], nodes[1]
	nets := map[string]*lab.Host{}
	for i, name := range []string{"lan", "mgmt"} {
		sw := l.Switch(name)
		n.Host.Link(name+"0", sw, fmt.Sprintf("172.16.%d.1/24", i), fmt.Sprintf("fd99:%d::1/64", i))
		nets[name] = l.Host(name+"x").Link("eth0", sw, fmt.Sprintf("172.16.%d.2/24", i), fmt.Sprintf("fd99:%d::2/64", i)).Default(fmt.Sprintf("172.16.%d.1", i), fmt.Sprintf("fd99:%d::1", i))
	}
	s := startSmall(t, l, hub, nodes)
	lan, mgmt := nets["lan"], nets["mgmt"]
	require.NoError(t, lan.Settle(step(t)))
	require.NoError(t, mgmt.Settle(step(t)))
	n.Host.Sh("sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
	before := snapshot(n.Host)
	node, err := s.Join(step(t), NodeSpec{Name: "n1", Site: "s1", Host: n.Host, TokenRoutes: append(PodRoutes(1, 1), "172.16.0.0/24", "fd99::/64")})
	require.NoError(t, err)
	n.Node = node
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), far.Pod.Host, n.Pod.V4))
	require.NoError(t, Ping(step(t), n.Pod.Host, far.Pod.V6))
	require.NoError(t, Ping(step(t), far.Pod.Host, "172.16.0.2"), "the LAN's route was approved")
	require.NoError(t, Ping(step(t), lan, far.Pod.V4))
	require.NoError(t, Ping(step(t), lan, far.Pod.V6))

	ways := []struct {
		from *lab.Host
		to   string
	}{{lan, "172.16.1.2"}, {mgmt, "172.16.0.2"}, {n.Pod.Host, "172.16.1.2"}, {mgmt, n.Pod.V4}, {lan, "fd99:1::2"}, {mgmt, "fd99::2"}, {n.Pod.Host, "fd99:1::2"}}
	closed := func() {
		t.Helper()
		errs := make([]error, len(ways))
		var wg sync.WaitGroup
		for i, w := range ways {
			wg.Go(func() { errs[i] = PingOnce(step(t), w.from, w.to) })
		}
		wg.Wait()
		for i, w := range ways {
			require.Error(t, errs[i], "from %s to %s", w.from.Namespace(), w.to)
		}
	}
	closed()
	out, err := n.Host.Run(step(t), s.Bin.Agent, "doctor", "--config", n.Config, "--state-dir", n.StateDir)
	require.Contains(t, out, "lan0, pods0 forward IPv4", "%v", err)
	require.Equal(t, "0\n0\n0\n", n.Host.Sh("sysctl -n net.ipv4.ip_forward net.ipv4.conf.mgmt0.forwarding net.ipv6.conf.eth0.forwarding"))

	// As a Docker that is installed now does it, and an admin.
	n.Host.Sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.default.forwarding=1 net.ipv6.conf.all.forwarding=1")
	for _, w := range ways {
		require.NoError(t, Ping(step(t), w.from, w.to), "from %s to %s", w.from.Namespace(), w.to)
	}
	require.NoError(t, Ping(step(t), far.Pod.Host, n.Pod.V4))
	n.Proc.Kill()
	require.NoError(t, n.Start())
	require.NoError(t, s.WaitReady(step(t), "n1"))
	require.NoError(t, Ping(step(t), lan, "172.16.1.2"))

	// And off again: the tunnel's goes on, the rest ends.
	n.Host.Sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	require.NoError(t, Ping(step(t), far.Pod.Host, n.Pod.V4))
	require.NoError(t, Ping(step(t), far.Pod.Host, n.Pod.V6))
	closed()
	require.NoError(t, n.Leave(step(t)))
	require.Empty(t, cmp.Diff(before, snapshot(n.Host)))
}
