package debug

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"causeway/protocol"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
)

// The kernel's own table: a connection through a NAT is found by each of its addresses and
// by its port, with both directions.
func TestReadFlows(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root: makes a network namespace")
		}
		t.Skip("needs root: makes a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	ns, err := netns.New()
	require.NoError(t, err)
	t.Cleanup(func() { ns.Close() })
	out, err := exec.Command("sh", "-ec", `ip link set lo up; ip addr add 192.0.2.1/32 dev lo; ip addr add 192.0.2.2/32 dev lo; ip addr add fd00::1/128 dev lo nodad; ip route add 192.0.2.9/32 dev lo
		nft add table ip t; nft 'add chain ip t out { type nat hook output priority -100; }'; nft add rule ip t out ip daddr 192.0.2.9 dnat to 192.0.2.2
		nft add table ip6 t; nft 'add chain ip6 t in { type filter hook input priority 0; }'; nft add rule ip6 t in ct state new counter accept`).CombinedOutput()
	require.NoError(t, err, "%s", out)
	l, err := net.Listen("tcp", "192.0.2.2:7000")
	require.NoError(t, err)
	defer l.Close()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("192.0.2.1")}, Timeout: 10 * time.Second}).Dial("tcp", "192.0.2.9:7000")
	require.NoError(t, err)
	defer c.Close()
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	require.NoError(t, err)
	for _, q := range []FlowQuery{
		{A: netip.MustParseAddr("192.0.2.1")}, {A: netip.MustParseAddr("192.0.2.9")}, {A: netip.MustParseAddr("192.0.2.2"), B: netip.MustParseAddr("192.0.2.1")},
		{A: netip.MustParseAddr("192.0.2.1"), Port: 7000}, {A: netip.MustParseAddr("192.0.2.1"), Port: local.Port()},
	} {
		flows, err := ReadFlows(t.Context(), q)
		require.NoError(t, err)
		require.Len(t, flows, 1, "%+v", q)
		f := flows[0]
		require.Equal(t, "tcp", f.Proto)
		require.Equal(t, [2]string{local.String(), "192.0.2.9:7000"}, f.Orig)
		require.Equal(t, [2]string{"192.0.2.2:7000", local.String()}, f.Reply)
		require.True(t, f.NAT)
		require.Positive(t, f.Timeout)
	}
	none, err := ReadFlows(t.Context(), FlowQuery{A: netip.MustParseAddr("192.0.2.1"), Port: 7001})
	require.NoError(t, err)
	require.Empty(t, none)
	u, err := net.Dial("udp", "[fd00::1]:7000")
	require.NoError(t, err)
	defer u.Close()
	_, err = u.Write([]byte("x"))
	require.NoError(t, err)
	flows, err := ReadFlows(t.Context(), FlowQuery{A: netip.MustParseAddr("fd00::1")})
	require.NoError(t, err)
	require.Len(t, flows, 1)
	require.Equal(t, "udp", flows[0].Proto)
	require.False(t, flows[0].NAT)
}

// What crosses the tunnel is told as the tunnel sees it: who began, and the server's port, whatever the host translates.
func TestReadCrossing(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root: makes a network namespace")
		}
		t.Skip("needs root: makes a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	ns, err := netns.New()
	require.NoError(t, err)
	t.Cleanup(func() { ns.Close() })
	// A pod of this node, 10.1.0.1, that is masqueraded as the node 192.0.2.1, speaks to 192.0.2.2 behind the tunnel.
	out, err := exec.Command("sh", "-ec", `ip link set lo up; for a in 10.1.0.1 192.0.2.1 192.0.2.2; do ip addr add $a/32 dev lo; done
		nft add table ip t; nft 'add chain ip t out { type nat hook postrouting priority 100; }'; nft add rule ip t out ip saddr 10.1.0.1 snat to 192.0.2.1`).CombinedOutput()
	require.NoError(t, err, "%s", out)
	l, err := net.Listen("tcp", "192.0.2.2:7000")
	require.NoError(t, err)
	defer l.Close()
	for range 3 {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("10.1.0.1")}, Timeout: 10 * time.Second}).Dial("tcp", "192.0.2.2:7000")
		require.NoError(t, err)
		defer c.Close()
	}
	ended, err := net.Dial("tcp", "192.0.2.2:7000") // from 192.0.2.2 itself: it crosses nothing
	require.NoError(t, err)
	defer ended.Close()
	server := netip.MustParseAddr("192.0.2.2")
	got, err := ReadCrossing(t.Context(), func(a netip.Addr) bool { return a == server }, 10)
	require.NoError(t, err)
	require.NoError(t, got.Check())
	i := slices.IndexFunc(got.Flows, func(c protocol.Connection) bool { return c.From.Addr() == netip.MustParseAddr("192.0.2.1") })
	require.GreaterOrEqual(t, i, 0, got)
	f := got.Flows[i]
	require.Equal(t, netip.MustParseAddrPort("192.0.2.2:7000"), f.To)
	require.Equal(t, 3, f.Count)
	require.Equal(t, protocol.ProtoTCP, f.Proto)

	// The same from the other side: the client is behind the tunnel.
	client := netip.MustParseAddr("10.1.0.1")
	got, err = ReadCrossing(t.Context(), func(a netip.Addr) bool { return a == client }, 10)
	require.NoError(t, err)
	require.Len(t, got.Flows, 1)
	require.Equal(t, client, got.Flows[0].From.Addr())
	require.Equal(t, uint16(7000), got.Flows[0].To.Port())
	got, err = ReadCrossing(t.Context(), func(netip.Addr) bool { return true }, 1)
	require.NoError(t, err)
	require.Len(t, got.Flows, 1)
	require.Positive(t, got.More)
	got, err = ReadCrossing(t.Context(), func(netip.Addr) bool { return false }, 1)
	require.NoError(t, err)
	require.Empty(t, got.Flows)
}
