package netns

import (
	"context"
	"net/netip"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/netns/netnstest"
)

// The address of names is the plan's like any other: missing, of another scope, moved and no more wanted.
func TestAddressOfNames(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, p))
	const line = "ip -4 addr add 169.254.53.53/32 dev cw0 scope host"
	for _, change := range []string{"ip addr del 169.254.53.53/32 dev cw0", "ip addr del 169.254.53.53/32 dev cw0; ip addr add 169.254.53.53/32 dev cw0", "ip route flush table local type local dev cw0"} {
		sh(t, change)
		d, err := h.Drift(ctx, Addresses)
		require.NoError(t, err)
		require.Len(t, d, 1, change)
		require.Contains(t, d[0].Missing, line, change)
		require.NoError(t, h.Mend(ctx, d))
		requireFound(t, h, p)
	}
	p.Names = netip.MustParseAddr("169.254.7.7")
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	require.NotContains(t, sh(t, "ip addr show dev cw0"), "169.254.53.53")
	p.Names = netip.Addr{}
	require.NoError(t, h.Apply(ctx, p))
	require.NotContains(t, sh(t, "ip addr show dev cw0"), "169.254")
	for _, a := range []string{"10.0.0.1", "fe80::1", "198.18.0.2"} {
		c := testConfig()
		c.Names = netip.MustParseAddr(a)
		_, err := NewPlan(c)
		require.ErrorContains(t, err, "no link-local IPv4 address", a)
	}
}

// Behind some interfaces there are this host's containers alone.
func TestInside(t *testing.T) {
	netnstest.Host(t) // eth0 with the default route, bridge pods
	h := NewHost(t.TempDir(), zerolog.New(zerolog.NewTestWriter(t)))
	c := testConfig()
	inside := func() []string {
		t.Helper()
		u, err := h.Uses(context.Background(), c)
		require.NoError(t, err)
		require.False(t, u.Equal(Uses{}))
		return u.Inside
	}
	require.Equal(t, []string{"pods"}, inside())
	netnstest.Sh(t, `ip link add docker0 type bridge; ip link add veth1 type veth peer name inner; ip link set veth1 master docker0
		ip tuntap add tap0 mode tap; ip link set tap0 master docker0
		ip link add cali1 type veth peer name c1; ip link add lan0 type veth peer name l0
		ip link add br0 type bridge; ip link add mv0 link eth0 type macvlan; ip link set mv0 master br0
		ip link add br1 type bridge; ip link add vx0 type vxlan id 1 dstport 4789 remote 192.0.2.9; ip link set vx0 master br1`)
	require.Equal(t, []string{"cali1", "docker0", "pods"}, inside())
	netnstest.Sh(t, "ip link set cali1 up; ip link set c1 up; ip route add default dev cali1 metric 9; ip link set mv0 nomaster")
	require.Equal(t, []string{"br0", "docker0", "pods"}, inside())
	c.Names = netip.Addr{}
	require.Nil(t, inside(), "nobody asks for names")
}
