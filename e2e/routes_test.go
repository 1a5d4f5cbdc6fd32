package e2e

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// approveWithin is how long an approval may take to reach the kernels.
const approveWithin = 2 * time.Second

// A pod reaches a host of another site's LAN and is reached from there, once
// the route is approved and not before. Not parallel: a time limit.
func TestLANRouteNeedsApproval(t *testing.T) {
	w := sharedWorld(t)
	pod, host := w.Pods["c1-1"], w.LAN["idc-b"]
	const lan = "192.168.2.50"
	require.NoError(t, w.WaitRoute(step(t), "b1", netip.MustParsePrefix(lanB)))
	for range 3 {
		require.Error(t, PingOnce(step(t), pod.Host, lan), "not approved: reaches nobody")
		require.Error(t, PingOnce(step(t), host, pod.V4))
	}
	require.NotContains(t, w.Hosts["c1"].Sh("ip route show table 51806"), lanB)

	_, err := w.CLI(step(t), "route", "approve", "b1", lanB)
	require.NoError(t, err)
	start := time.Now()
	require.NoError(t, lab.Wait(within(t, approveWithin), "the approved route", func(ctx context.Context) error {
		_, err := pod.Run(ctx, "ping", "-nqc1", "-W0.2", lan)
		return err
	}))
	t.Logf("works %s after the approval", time.Since(start).Round(time.Millisecond))
	require.NoError(t, Ping(step(t), host, pod.V4), "and back")
	srv, err := w.Serve(step(t), host)
	require.NoError(t, err)
	_, err = w.Send(step(t), "tcp", pod.Host, lan, 1<<20)
	require.NoError(t, err)
	_, err = w.Send(step(t), "tcp", host, pod.V4, 1<<20)
	require.NoError(t, err)
	_, err = pod.Run(step(t), w.Bin.Labtool, "http", "http://"+lan+":7080/lan")
	require.NoError(t, err)
	require.NoError(t, srv.WaitOutput(step(t), "/lan from "+pod.V4), "the pod's own address")

	_, err = w.CLI(step(t), "route", "reject", "b1", lanB)
	require.NoError(t, err)
	require.NoError(t, lab.Wait(step(t), "the route to be gone", func(ctx context.Context) error {
		if err := PingOnce(ctx, pod.Host, lan); err == nil {
			return context.DeadlineExceeded
		}
		return nil
	}))
}

// An approved route that covers the underlay addresses of hub and nodes,
// accepted and installed, changes nothing: the tunnel does not ride inside
// itself. Strict reverse path filtering makes it harder.
func TestTunnelNeverInsideItself(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 3)
	// The nodes' own addresses, and not the hub's: no name in accept: takes that.
	const underlay = "203.0.113.16/28"
	accept := []string{underlay, PublicNet, "10.0.0.0/8", "fd10::/16"}
	for i, n := range nodes {
		n.Host.Sysctl("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.eth0.rp_filter=1", "net.ipv4.ip_forward=1")
		joinSmall(t, s, nodes, i+1, accept...)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	a, b := nodes[0], nodes[1]
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4))
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V6))
	srv, err := s.Serve(step(t), b.Pod.Host)
	require.NoError(t, err)
	f := startTraffic(t, s, a.Pod, b.Pod)
	waitPaths(t, stepTimeout, a.Node, b.Node, protocol.PathDirect)
	log := watchPath(t, a.Node, b.Name)

	// Node 3 announces what the others reach each other by, under traffic.
	n3 := nodes[2].Node
	require.NoError(t, n3.Proc.Stop(step(t)))
	require.NoError(t, n3.Configure([]string{underlay}, accept))
	require.NoError(t, n3.Start())
	require.NoError(t, s.Approve(step(t), "n3", underlay))
	for _, n := range []*smallNode{a, b} {
		require.NoError(t, n.Installed(step(t), underlay))
		for _, x := range nodes {
			if x.LAN != n.LAN {
				require.Contains(t, n.Host.Sh("ip route get "+x.LAN), "dev cw0", "it does cover the others")
			}
		}
		require.Contains(t, n.Host.Sh("ip route get "+HubAddr), "dev eth0")
	}
	both := func() {
		t.Helper()
		require.NoError(t, Ping(within(t, backWithin), a.Pod.Host, b.Pod.V4))
		require.NoError(t, Ping(within(t, backWithin), b.Pod.Host, a.Pod.V6))
		require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	}
	both()
	t.Logf("longest gap %.2f s", f.end(t))
	require.Len(t, log.end(), 1, "no change of path")
	_, err = s.Send(step(t), "tcp", a.Pod.Host, b.Pod.V4, 50<<20)
	require.NoError(t, err)
	srv.Kill()
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathDirect))
	// The same for sessions that start with the route in place.
	for _, n := range []*smallNode{a, b} {
		n.Proc.Kill()
		require.NoError(t, n.Start())
		both()
		require.NoError(t, n.Installed(step(t), underlay))
	}
	s.Hub.Proc.Kill()
	require.NoError(t, s.StartHub(step(t)))
	both()
	// Nothing of the underlay in the tunnel.
	out, err := a.Host.Run(within(t, 20*time.Second), "timeout", "2", "tcpdump", "-nc1", "-i", "cw0", "net "+PublicNet+" and (udp or tcp port 443)")
	require.Error(t, err, "no packet is the expected end: %s", out)
	require.Empty(t, strings.TrimSpace(out))
}
