package look

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns"
)

// What a bridge passes on from port to port is not held to the wall, though br_netfilter shows it
// like a forwarded packet; what the host routes from a bridge back to it is.
func TestBridgesPassOn(t *testing.T) {
	t.Parallel()
	w := newWall(t)
	if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err != nil {
		t.Skip("this kernel has no br_netfilter: no bridged frame is seen by nftables' inet")
	}
	net := w.node.PodNet("own0", "10.5.0.1/24", "fd10:5::1/64")
	a, b := net.Pod("a", "10.5.0.11/24", "fd10:5::11/64", "10.2.0.5/24", "fd10:2::5/64"), net.Pod("b", "10.5.0.12/24", "fd10:5::12/64", "10.2.0.6/24", "fd10:2::6/64")
	require.NoError(t, a.Settle(t.Context()))
	require.NoError(t, b.Settle(t.Context()))
	w.apply(netns.Shields{})
	for _, to := range []string{"10.2.0.6", "fd10:2::6"} {
		a.Sh("ping -nc3 -i0.1 -W5 " + to)
	}
	require.Zero(t, w.drops()["closed"])

	// Routed, by a rule of somebody else's.
	w.node.Sh("ip -4 route add 10.2.0.0/24 dev own0 table 100; ip -6 route add fd10:2::/64 dev own0 table 100; ip -4 rule add pref 100 lookup 100; ip -6 rule add pref 100 lookup 100; sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.own0.send_redirects=0")
	a.Sh("ip -4 route add 10.2.0.6/32 via 10.5.0.1; ip -6 route add fd10:2::6/128 via fd10:5::1")
	capture, err := b.Capture("eth0", "icmp6[0] == 128 or icmp[0] == 8")
	require.NoError(t, err)
	for _, to := range []string{"-I 10.5.0.11 10.2.0.6", "-I fd10:5::11 fd10:2::6"} {
		a.Sh("! ping -nc3 -i0.1 -W1 " + to)
	}
	require.NoError(t, capture.Stop())
	require.EqualValues(t, 6, w.drops()["closed"])
	require.Empty(t, w.node.Sh("tcpdump -nr "+capture.File+" 2>/dev/null"))
	w.node.Sh("ip -4 rule del pref 100; ip -6 rule del pref 100")
	a.Sh("ip -4 route del 10.2.0.6/32; ip -6 route del fd10:2::6/128")

	// Without the exception frames of a bridge are dropped: the test sees what it is about.
	c := w.plan.Config
	c.Bridged = nil
	require.NoError(t, w.node.Do(func() error { return w.h.Apply(context.Background(), plan(t, c)) }))
	a.Sh("! ping -nc1 -W1 10.2.0.6; ! ping -nc1 -W1 fd10:2::6")
	require.NotZero(t, w.drops()["closed"])
}
