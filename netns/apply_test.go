package netns

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/internal/durable"
	"causeway/internal/durable/durabletest"
	"causeway/netns/netnstest"
)

var sh = netnstest.Sh

// host is a namespace with an underlay link and the tunnel's device.
func host(t *testing.T) *Host {
	t.Helper()
	netnstest.Host(t)
	return NewHost(t.TempDir(), zerolog.New(zerolog.NewTestWriter(t)))
}

func tun(t *testing.T) { t.Helper(); sh(t, "ip tuntap add cw0 mode tun") }

func plan(t *testing.T, c Config) Plan {
	t.Helper()
	p, err := NewPlan(c)
	require.NoError(t, err)
	return p
}

// used is p with what the host's settings are now.
func used(t *testing.T, h *Host, p Plan) Plan {
	t.Helper()
	var err error
	p.Uses, err = h.Uses(context.Background(), p.Config)
	require.NoError(t, err)
	return p
}

func requireFound(t *testing.T, h *Host, p Plan) {
	t.Helper()
	found, err := h.Found(context.Background(), p.Config)
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(p.Lines(), found))
}

// dump is all that other tools see of the host's network.
func dump(t *testing.T) string {
	t.Helper()
	// Counters and ages of what is not ours change by themselves.
	return sh(t, `ip -d link | sed "s, [a-z_]*_timer *[0-9.]*,,g"; ip -d addr | sed 's/valid_lft.*//' | sed "s, [a-z_]*_timer *[0-9.]*,,g"; ip -d -4 route show table all; ip -d -6 route show table all; ip -4 rule; ip -6 rule
		nft -s list ruleset; sysctl -a 2>/dev/null | grep '^net\.' | grep -v -e nf_conntrack_count -e nf_conntrack_max -e stable_secret`)
}

func TestApplyMakesThePlan(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	before := dump(t)
	for range 3 {
		require.NoError(t, h.Apply(ctx, p))
	}
	require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Apply(ctx, p), "after a restart")
	require.Empty(t, cmp.Diff(before, dump(t)))
}

// What a host without IPv6 is spared counts as nothing that others took away.
func TestApplyWithoutIPv6(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
	ctx := context.Background()
	for range 3 {
		require.NoError(t, h.Apply(ctx, p))
		requireFound(t, h, p.Without6())
		require.Empty(t, h.PutRight())
	}
	sh(t, "nft flush chain inet causeway wall-out")
	require.NoError(t, h.Apply(ctx, p))
	require.Len(t, h.PutRight(), 1)
	sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=0")
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	require.Empty(t, h.PutRight())
}

// A host that has IPv6 disabled for all links and enabled for one has it: its ranges are routed
// and closed.
func TestApplyWithIPv6OfOneLink(t *testing.T) {
	h, p := host(t), plan(t, closedConfig())
	sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=0")
	require.False(t, HasIPv6(), "for links to come alone")
	sh(t, `sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0; ip -6 addr add fd99::2/64 dev eth0 nodad; ip -6 route add default via fd99::1
		ip link add docker9 type bridge; ip link set docker9 up; ip addr add 10.2.5.1/24 dev docker9; ip addr add 10.77.0.1/16 dev docker9; ip -6 addr add fd10:2::5:1/112 dev docker9 nodad`)
	require.NoError(t, h.Apply(context.Background(), p))
	requireFound(t, h, p)
	require.Contains(t, way("fd10:2::9"), "dev cw0")
}

func TestLinesAreCommands(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	sh(t, strings.Join(p.Lines(), "\n"))
	requireFound(t, h, p)
}

func TestApplyMakesChanges(t *testing.T) {
	h := host(t)
	ctx := context.Background()
	c := testConfig()
	require.NoError(t, h.Apply(ctx, plan(t, c)))
	// What a crash or a meddler may have left.
	sh(t, `ip route add 10.9.0.0/16 dev cw0 table 51806 proto 202
		ip route add throw 10.8.0.0/16 table 51806 proto 202
		ip route replace 10.2.0.0/16 dev eth0 table 51806 proto 202
		ip -6 route add fd10:9::/64 dev cw0 table 51806 proto 202
		ip -6 route add fd10:2::/64 dev eth0 table 51806 proto 202 metric 5
		ip rule add pref 77 fwmark 1 lookup 51806
		ip rule add not fwmark 0xca5e lookup 51806 pref 5205
		ip addr add 198.18.7.7/32 dev cw0
		ip link set cw0 down; ip link set cw0 up
		nft add rule inet causeway forward counter drop
		sysctl -qw net.ipv4.conf.pods.forwarding=0`)
	c.Routes = prefixes("10.0.0.0/8", "10.3.0.0/16", "198.18.0.0/15", "fd63:7761:7900::/96", "10.1.0.0/17")
	c.Overlay = []netip.Addr{netip.MustParseAddr("198.18.0.3"), netip.MustParseAddr("fd63:7761:7900::3")}
	c.Local = prefixes("10.2.0.0/16", "fd10:1::/64", "10.1.0.1/32")
	c.MTU = 1300
	p := plan(t, c)
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)

	// Other MTUs, in place: no moment without a route.
	monitor := filepath.Join(t.TempDir(), "monitor")
	sh(t, "ip -6 monitor route >"+monitor+" 2>&1 & echo $! >"+monitor+".pid")
	t.Cleanup(func() { sh(t, "kill $(cat "+monitor+".pid) 2>/dev/null || :") })
	x := netip.MustParsePrefix("fd63:7761:7900::/96")
	for _, mtu := range []int{8928, 1200, 1400} {
		c.MTUs = map[netip.Prefix]int{x: mtu, netip.MustParsePrefix("10.3.0.0/16"): mtu}
		p = plan(t, c)
		require.NoError(t, h.Apply(ctx, p))
		requireFound(t, h, p)
		mtus, err := h.RouteMTUs(ctx, c)
		require.NoError(t, err)
		require.Equal(t, mtu, mtus[netip.MustParsePrefix("10.3.0.0/16")])
		require.Equal(t, 1300, mtus[netip.MustParsePrefix("10.0.0.0/8")])
		require.NotContains(t, mtus, netip.MustParsePrefix("10.2.0.0/16"), "a throw route")
	}
	require.Eventually(t, func() bool {
		b, _ := os.ReadFile(monitor)
		return strings.Contains(string(b), "mtu 1400")
	}, 5*time.Second, 20*time.Millisecond)
	b, err := os.ReadFile(monitor)
	require.NoError(t, err)
	require.NotContains(t, string(b), "Deleted")

	// Another interface and table: nothing of the first stays.
	sh(t, "ip tuntap add cw1 mode tun")
	c.Interface, c.Table = "cw1", 777
	p = plan(t, c)
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	require.Empty(t, sh(t, "ip route show table 51806; ip -6 route show table 51806; ip rule | grep 51806 || :"))
}

// Only what carries our protocol number in our table is ours.
func TestApplyLeavesOthersAlone(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	sh(t, `ip route add 10.77.0.0/16 dev eth0 table 51806; ip route add 10.78.0.0/16 dev eth0 proto 202
		ip rule add pref 5206 fwmark 9 lookup 99; nft add table inet other`)
	require.NoError(t, h.Apply(context.Background(), p))
	require.NoError(t, h.Remove(context.Background(), p.Config))
	require.Contains(t, sh(t, "ip route show table 51806"), "10.77.0.0/16")
	require.Contains(t, sh(t, "ip route"), "10.78.0.0/16")
	require.Contains(t, sh(t, "ip rule"), "fwmark 0x9 lookup 99")
	require.Contains(t, sh(t, "nft list tables"), "inet other")
}

func TestRemoveRestores(t *testing.T) {
	for name, prepare := range map[string]string{
		"plain":    "true",
		"hardened": "sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.eth0.rp_filter=1 net.ipv4.conf.all.rp_filter=1 net.ipv6.conf.pods.forwarding=1 net.ipv6.conf.eth0.accept_ra=0 net.ipv4.conf.pods.forwarding=1",
		"router":   "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.src_valid_mark=1",
		"no ipv6":  "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
		"docker":   "iptables-nft -N DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN; iptables-nft -P FORWARD DROP; sysctl -qw net.ipv4.ip_forward=1",
	} {
		t.Run(name, func(t *testing.T) {
			h := host(t)
			sh(t, "ip link del cw0; "+prepare)
			ctx, p := context.Background(), plan(t, testConfig())
			before := dump(t)
			require.NoError(t, h.Remove(ctx, p.Config), "nothing there")
			require.Empty(t, cmp.Diff(before, dump(t)))
			tun(t)
			require.NoError(t, h.Apply(ctx, used(t, h, p)))
			require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Apply(ctx, used(t, h, p)), "after a crash")
			for range 2 {
				require.NoError(t, NewHost(h.stateDir, zerolog.Nop()).Remove(ctx, p.Config))
				require.Empty(t, cmp.Diff(before, dump(t)))
			}
			require.NoFileExists(t, filepath.Join(h.stateDir, recordName))
		})
	}
}

// A setting that someone changed after us is theirs.
func TestRemoveLeavesNewerSysctl(t *testing.T) {
	h := host(t)
	c := testConfig()
	c.Strict = []string{"eth0"}
	p := plan(t, c)
	require.NoError(t, h.Apply(context.Background(), p))
	sh(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.eth0.src_valid_mark=0")
	require.NoError(t, h.Remove(context.Background(), p.Config))
	require.Equal(t, "1\n1\n1\n0\n", sh(t, "sysctl -n net.ipv4.ip_forward net.ipv4.conf.pods.forwarding net.ipv6.conf.all.forwarding net.ipv4.conf.eth0.src_valid_mark"))
}

// The record is on disk before the setting changes: a crash between the two
// still restores.
func TestRecordComesFirst(t *testing.T) {
	h := host(t)
	c := testConfig()
	c.Strict = []string{"eth0"}
	require.NoError(t, os.Chmod(h.stateDir, 0o700))
	h.stateDir = filepath.Join(h.stateDir, "missing")
	err := h.Apply(context.Background(), plan(t, c))
	require.ErrorContains(t, err, "write host record")
	require.NotContains(t, err.Error(), "\n")
	require.Equal(t, "0\n0\n", sh(t, "sysctl -n net.ipv4.conf.eth0.src_valid_mark net.ipv6.conf.all.forwarding"))
}

// The record is needed by leave alone: a damaged one stops no apply. From its copy everything
// is put back; without one, what was found as the agent wants it is left, and named.
func TestDamagedRecord(t *testing.T) {
	for damage, do := range durabletest.Damages {
		for _, both := range []bool{false, true} {
			t.Run(damage, func(t *testing.T) {
				h := host(t)
				c := testConfig()
				c.Strict = []string{"eth0"}
				p := plan(t, c)
				ctx := context.Background()
				before := dump(t)
				require.NoError(t, h.Apply(ctx, p))
				do(t, h.file().Path)
				if both {
					do(t, durable.Copy(h.file().Path))
				}
				h = NewHost(h.stateDir, zerolog.New(zerolog.NewTestWriter(t)))
				require.NoError(t, h.Apply(ctx, p))
				requireFound(t, h, p)
				require.FileExists(t, h.file().Path)
				h = NewHost(h.stateDir, zerolog.Nop())
				require.NoError(t, h.Remove(ctx, p.Config))
				sh(t, "ip tuntap add cw0 mode tun")
				if !both {
					require.Empty(t, h.Left())
					require.Empty(t, cmp.Diff(links(before), links(dump(t))))
				} else {
					require.Equal(t, []string{"net.ipv4.conf.eth0.src_valid_mark=1"}, h.Left())
				}
				left, err := os.ReadDir(h.stateDir)
				require.NoError(t, err)
				require.Empty(t, left)
			})
		}
	}
}

// links is a dump without the numbers of links.
func links(s string) string { return regexp.MustCompile(`(?m)^\d+: cw0`).ReplaceAllString(s, "N: cw0") }

// The kernel agrees with what the plan is for.
func TestRouting(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	require.NoError(t, h.Apply(context.Background(), p))
	for dst, want := range map[string]string{
		"10.2.0.9":                "dev cw0 table 51806 src 198.18.0.2",
		"10.9.0.9":                "dev cw0 table 51806 src 198.18.0.2",
		"10.1.0.9":                "dev pods src 10.1.0.1", // behind ourselves, although 10/8 is not
		"10.2.0.9 mark 0xca5e":    "via 192.0.2.1 dev eth0",
		"192.0.2.9":               "dev eth0 src 192.0.2.2",
		"fd10:2::9":               "dev cw0 table 51806 proto 202 src fd63:7761:7900::2",
		"fd10:1::9":               "dev pods",
		"198.18.0.2":              "local 198.18.0.2 dev lo",
		"203.0.113.7 mark 0xca5e": "via 192.0.2.1 dev eth0",
	} {
		require.Contains(t, sh(t, "ip route get "+dst), want)
	}
}

// Without an agent the device has no carrier; a host that passes over such
// routes must not send what is meant for other sites along its default route.
func TestRoutingFailsClosed(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	sh(t, "ip link del cw0; sysctl -qw net.ipv4.conf.default.ignore_routes_with_linkdown=1 net.ipv6.conf.default.ignore_routes_with_linkdown=1")
	tun(t)
	require.NoError(t, h.Apply(context.Background(), p))
	require.Contains(t, sh(t, "ip link show cw0"), "NO-CARRIER")
	require.Contains(t, sh(t, "ip route get 10.2.0.9"), "dev cw0")
	require.Contains(t, sh(t, "ip route get fd10:2::9"), "dev cw0")
}

func TestForeignRoutes(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	sh(t, "ip route add 0.0.0.0/1 dev eth0; ip route add 128.0.0.0/1 via 192.0.2.7; ip route add 172.20.0.0/16 via 192.0.2.9; ip route add 172.21.0.0/16 dev eth0 table 40; ip route add 10.44.0.0/16 dev cw0 || ip link set cw0 up; ip route add 10.44.0.0/16 dev cw0")
	require.NoError(t, h.Apply(context.Background(), p))
	got, err := h.ForeignRoutes(context.Background(), p.Config)
	require.NoError(t, err)
	addr := netip.MustParseAddr
	require.Equal(t, []Foreign{
		{Prefix: netip.MustParsePrefix("10.1.0.0/16"), Link: "pods", Src: addr("10.1.0.1"), Direct: true},
		{Prefix: netip.MustParsePrefix("172.20.0.0/16"), Link: "eth0", Via: addr("192.0.2.9")},
		{Prefix: netip.MustParsePrefix("172.21.0.0/16")}, // another table's
		{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Link: "eth0", Src: addr("192.0.2.2"), Direct: true},
		{Prefix: netip.MustParsePrefix("fd10:1::/64"), Link: "pods", Direct: true},
	}, got)
	ways, err := h.Gateways(context.Background(), p.Config)
	require.NoError(t, err)
	require.Contains(t, ways, addr("192.0.2.7"), "of half a default route")
	require.NotContains(t, ways, addr("192.0.2.9"))
}

// What others do to the plan's things is told, found by subject, and mended, and nothing
// else is touched.
func TestWatchDriftMend(t *testing.T) {
	c := testConfig()
	c.Strict = []string{"eth0"}
	h, p := host(t), plan(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	none, err := h.Drift(ctx, Kinds...)
	require.NoError(t, err)
	require.Empty(t, none, "nothing was applied yet")
	require.NoError(t, h.Apply(ctx, p))
	w, err := h.Watch(ctx)
	require.NoError(t, err)
	for _, c := range []struct {
		meddle  string
		kind    Kind
		subject string
		by      string
		untold  bool // no event tells of it
	}{
		{"nft flush ruleset", Nftables, "nftables", "nft (process ", false},
		{"nft add rule inet causeway forward counter drop", Nftables, "nftables", "nft (process ", false},
		{"ip route flush table 51806", Routes, "routes", "(process ", false},
		{"ip route del 10.2.0.0/16 table 51806", Routes, "routes", "(process ", false},
		{"ip rule del pref 5206", Rules, "rules", "(process ", false},
		{"ip -6 rule del pref 5206", Rules, "rules", "(process ", false},
		{"ip addr del 198.18.0.2/32 dev cw0", Addresses, "addresses", "", false},
		{"ip link set cw0 down", Link, "link", "", false},
		{"sysctl -qw net.ipv4.conf.pods.forwarding=0", Sysctls, "net.ipv4.conf.pods.forwarding", "", false},
		{"sysctl -qw net.ipv4.conf.cw0.rp_filter=1", Sysctls, "net.ipv4.conf.cw0.rp_filter", "", false},
		{"sysctl -qw net.ipv6.conf.all.forwarding=0", Sysctls, "net.ipv6.conf.all.forwarding", "", false},
		{"sysctl -qw net.ipv4.conf.eth0.src_valid_mark=0", Sysctls, "net.ipv4.conf.eth0.src_valid_mark", "", true},
		{"ip link del cw0", Link, "link", "", false},
	} {
		start := time.Now()
		sh(t, c.meddle)
		limit := time.After(10 * time.Second)
		by := ""
		for found := c.untold; !found; {
			select {
			case l := <-w:
				for _, x := range l {
					require.WithinDuration(t, start, x.At, 10*time.Second)
					if x.Kind == c.kind {
						found, by = true, x.By+by
					}
				}
			case <-limit:
				t.Fatalf("%s was not told of", c.meddle)
			}
			found = found && strings.Contains(by, c.by)
		}
		drifts, err := h.Drift(ctx, c.kind)
		require.NoError(t, err)
		require.NotEmpty(t, drifts, c.meddle)
		require.Equal(t, c.subject, drifts[0].Subject, c.meddle)
		require.NotEmpty(t, append(drifts[0].Missing, drifts[0].Extra...))
		if c.meddle == "ip link del cw0" {
			require.ErrorIs(t, h.Mend(ctx, drifts), ErrNoInterface)
			tun(t)
		}
		require.NoError(t, h.Mend(ctx, drifts), c.meddle)
		requireFound(t, h, p)
	}

	// Each subject alone.
	sh(t, "nft flush ruleset; ip rule del pref 5206; sysctl -qw net.ipv4.conf.pods.forwarding=0")
	drifts, err := h.Drift(ctx, Rules)
	require.NoError(t, err)
	require.Len(t, drifts, 1)
	require.NoError(t, h.Mend(ctx, drifts))
	drifts, err = h.Drift(ctx, Kinds...)
	require.NoError(t, err)
	require.Len(t, drifts, 2)
	require.Equal(t, "net.ipv4.conf.pods.forwarding", drifts[0].Subject)
	require.Equal(t, Nftables, drifts[1].Kind)
	cancel()
	for range w { // ends when it is closed
	}
}

func TestApplySaysWhatIsMissing(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	ctx := context.Background()
	t.Setenv("PATH", "/nowhere")
	_, err := nftPath()
	require.NoError(t, err, "found without PATH")
	t.Setenv("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")

	sh(t, "ip link del cw0")
	require.ErrorIs(t, h.Apply(ctx, p), ErrNoInterface)

	// Removal must not take away what is not a TUN device.
	sh(t, "ip link add cw0 type bridge")
	require.ErrorContains(t, h.Remove(ctx, p.Config), "left alone")

	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	require.NoError(t, unix.Capset(&hdr, &none[0])) // of this thread, which ends with the test
	require.ErrorIs(t, h.Apply(ctx, p), ErrPrivilege)
	require.ErrorIs(t, h.Remove(ctx, p.Config), ErrPrivilege)
}
