package netns

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// closedConfig has all kinds of routes: a range held closed, one with a network of
// the host's own inside, a host that is thrown back, a range of the node's own that
// the host has no route to.
func closedConfig() Config {
	c := testConfig()
	c.Held = append(prefixes("10.9.0.0/16", "fd10:9::/64", "10.77.0.0/16"), c.Routes...)
	c.Local, c.Bare = append(c.Local, prefixes("10.66.0.0/16")...), prefixes("10.66.0.0/16")
	c.Except = []Exception{
		{Prefix: netip.MustParsePrefix("10.2.5.0/24"), Link: "docker9", Src: netip.MustParseAddr("10.2.5.1")},
		{Prefix: netip.MustParsePrefix("10.2.6.0/24"), Link: "eth0", Via: netip.MustParseAddr("192.0.2.9")},
		{Prefix: netip.MustParsePrefix("10.77.0.0/16"), Link: "docker9", Src: netip.MustParseAddr("10.77.0.1")}, // as large as what is held
		{Prefix: netip.MustParsePrefix("10.2.0.53/32")},
		{Prefix: netip.MustParsePrefix("fd10:2::5:0/112"), Link: "docker9"},
		{Prefix: netip.MustParsePrefix("fd10:2::53/128")},
	}
	return c
}

const closedLines = `ip -4 route add 10.0.0.0/8 dev cw0 proto 202 src 198.18.0.2 mtu 1380 table 51806
ip -4 route add unreachable 10.0.0.0/8 proto 202 metric 9999 table 51806
ip -4 route add throw 10.1.0.0/16 proto 202 table 51806
ip -4 route add 10.2.0.0/16 dev cw0 proto 202 src 198.18.0.2 mtu 1380 table 51806
ip -4 route add unreachable 10.2.0.0/16 proto 202 metric 9999 table 51806
ip -4 route add throw 10.2.0.53/32 proto 202 table 51806
ip -4 route add 10.2.5.0/24 dev docker9 proto 202 src 10.2.5.1 table 51806
ip -4 route add 10.2.6.0/24 via 192.0.2.9 dev eth0 proto 202 onlink table 51806
ip -4 route add unreachable 10.9.0.0/16 proto 202 metric 9999 table 51806
ip -4 route add 10.77.0.0/16 dev docker9 proto 202 src 10.77.0.1 table 51806
ip -4 route add unreachable 10.77.0.0/16 proto 202 metric 9999 table 51806
ip -4 route add 198.18.0.0/15 dev cw0 proto 202 src 198.18.0.2 mtu 1380 table 51806
ip -4 route add unreachable 198.18.0.0/15 proto 202 metric 9999 table 51806
ip -6 route add throw fd10:1::/64 proto 202 table 51806
ip -6 route add fd10:2::/64 dev cw0 proto 202 src fd63:7761:7900::2 mtu 1380 table 51806
ip -6 route add unreachable fd10:2::/64 proto 202 metric 9999 table 51806
ip -6 route add throw fd10:2::53/128 proto 202 table 51806
ip -6 route add fd10:2::5:0/112 dev docker9 proto 202 table 51806
ip -6 route add unreachable fd10:9::/64 proto 202 metric 9999 table 51806
ip -6 route add fd63:7761:7900::/96 dev cw0 proto 202 src fd63:7761:7900::2 mtu 1380 table 51806
ip -6 route add unreachable fd63:7761:7900::/96 proto 202 metric 9999 table 51806`

func TestPlanOfClosedRoutes(t *testing.T) {
	p, err := NewPlan(closedConfig())
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(strings.Split(closedLines, "\n"), p.lines(Routes)))
	for _, l := range p.Without6().Lines() {
		require.NotContains(t, l, "fd10")
	}
	refused := closedConfig()
	refused.Refused = prefixes("10.9.0.0/16", "fd10:9::/64", "10.77.0.0/16")
	r, err := NewPlan(refused)
	require.NoError(t, err)
	// What a part refuses leads into the tunnel, in front of what closes it, but for what is the host's own.
	require.Equal(t, []string{"ip -4 route add 10.9.0.0/16 dev cw0 proto 202 src 198.18.0.2 mtu 1380 table 51806",
		"ip -6 route add fd10:9::/64 dev cw0 proto 202 src fd63:7761:7900::2 mtu 1380 table 51806"}, less(r.lines(Routes), p.lines(Routes)))
	require.Empty(t, less(p.lines(Routes), r.lines(Routes)))
	require.Equal(t, p.Closed(false), r.Closed(false))
	for _, l := range r.Without6().Lines() {
		require.NotContains(t, l, "fd10")
	}
	c := closedConfig()
	c.Held = prefixes("0.0.0.0/1")
	_, err = NewPlan(c)
	require.ErrorContains(t, err, "held prefix 0.0.0.0/1 is nearly a default route")
	c = closedConfig()
	c.Except = []Exception{{Prefix: netip.MustParsePrefix("127.0.0.1/32")}}
	_, err = NewPlan(c)
	require.ErrorContains(t, err, "exception 127.0.0.1/32 overlaps")
}

// way is what the kernel says of a packet to dst, the error too.
func way(dst string) string {
	out, _ := exec.Command("sh", "-c", "ip route get "+dst).CombinedOutput()
	return strings.TrimSpace(string(out))
}

// noWay is what an unreachable route says (EHOSTUNREACH).
const noWay = "RTNETLINK answers: No route to host"

// What is held answers at once that nobody is there, whatever becomes of links,
// device and agent; what is the host's own stays there for as long as it is, and no
// packet of either takes the default route at any moment.
func TestClosedRoutes(t *testing.T) {
	h, p := host(t), plan(t, closedConfig())
	ctx := context.Background()
	const docker = `ip link add docker9 type bridge; ip link set docker9 up; ip addr add 10.2.5.1/24 dev docker9; ip addr add 10.77.0.1/16 dev docker9; ip -6 addr add fd10:2::5:1/112 dev docker9 nodad`
	sh(t, docker+"; ip -6 route add default dev eth0; ip route add 10.2.6.0/24 via 192.0.2.9")
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	require.NoError(t, h.Apply(ctx, p))
	check := func(what string, want map[string]string) {
		t.Helper()
		for dst, w := range want {
			require.Contains(t, way(dst), w, "%s: %s", what, dst)
		}
	}
	usual := map[string]string{
		"10.2.9.9":                "dev cw0",
		"10.2.5.9":                "dev docker9",
		"10.2.6.9":                "via 192.0.2.9 dev eth0",
		"10.77.0.9":               "dev docker9",
		"10.2.0.53":               "via 192.0.2.1 dev eth0",
		"10.9.0.9":                noWay,
		"10.1.0.9":                "dev pods",
		"10.66.0.9":               "dev cw0", // ours, but the host has no route to it
		"fd10:2::9":               "dev cw0",
		"fd10:2::53":              "dev eth0",
		"fd10:2::5:9":             "dev docker9",
		"fd10:9::9":               noWay,
		"10.9.0.9 mark 0xca5e":    "via 192.0.2.1 dev eth0",
		"203.0.113.7 mark 0xca5e": "via 192.0.2.1 dev eth0",
	}
	check("at first", usual)
	ranges, err := h.Ranges(ctx, p.Config)
	require.NoError(t, err)
	require.Equal(t, prefixes("10.0.0.0/8", "10.2.0.0/16", "10.9.0.0/16", "10.77.0.0/16", "198.18.0.0/15", "fd10:2::/64", "fd10:9::/64", "fd63:7761:7900::/96"), ranges)

	gone := map[string]string{"10.2.5.9": "dev cw0", "10.77.0.9": noWay, "fd10:2::5:9": "dev cw0"}
	sh(t, "ip link set docker9 down")
	check("own network down", gone)
	drifts, err := h.Drift(ctx, Routes)
	require.NoError(t, err)
	require.Empty(t, drifts, "nobody's fault")
	sh(t, "ip link del docker9")
	check("own network gone", gone)
	require.NoError(t, h.Apply(ctx, p), "what has just gone is no error")
	sh(t, docker)
	drifts, err = h.Drift(ctx, Routes)
	require.NoError(t, err)
	require.Len(t, drifts, 1)
	require.NoError(t, h.Mend(ctx, drifts))
	check("own network back", usual)

	sh(t, "ip link del cw0")
	check("device gone", map[string]string{"10.2.9.9": noWay, "10.9.0.9": noWay, "fd10:2::9": noWay, "198.18.0.7": noWay, "10.2.5.9": "dev docker9", "10.1.0.9": "dev pods"})
	tun(t)
	require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Apply(ctx, p))
	check("device back", usual)

	apart, err := h.Apart(ctx, p.Config)
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.2.0.53"), netip.MustParseAddr("fd10:2::53")}, apart)

	// A range leaves and comes back, and is closed in between.
	c := closedConfig()
	c.Routes = prefixes("198.18.0.0/15", "fd63:7761:7900::/96")
	require.NoError(t, h.Apply(ctx, plan(t, c)))
	requireFound(t, h, plan(t, c))
	check("withdrawn", map[string]string{"10.2.9.9": noWay, "10.200.0.1": noWay, "fd10:2::9": noWay, "10.2.5.9": "dev docker9", "10.2.0.53": "via 192.0.2.1 dev eth0"})
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	check("back", usual)
	// Let go.
	c.Held = nil
	require.NoError(t, h.Apply(ctx, plan(t, c)))
	requireFound(t, h, plan(t, c))
	check("let go", map[string]string{"10.2.9.9": "via 192.0.2.1 dev eth0", "fd10:2::9": "dev eth0"})
	require.NoError(t, h.Apply(ctx, p))
	require.NoError(t, h.Remove(ctx, p.Config))
	require.Empty(t, sh(t, "ip route show table 51806; ip -6 route show table 51806"))
}

// An older agent in the place of this one takes what is held for a leftover of its
// own, and this one after it puts it back: neither trips over the other's.
func TestRoutesOfAnOlderAgent(t *testing.T) {
	h := host(t)
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, plan(t, testConfig())))
	p := plan(t, closedConfig())
	sh(t, "ip link add docker9 type bridge; ip link set docker9 up; ip addr add 10.2.5.1/24 dev docker9; ip addr add 10.77.0.1/16 dev docker9; ip -6 addr add fd10:2::5:1/112 dev docker9 nodad")
	require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Apply(ctx, p))
	requireFound(t, h, p)
}
