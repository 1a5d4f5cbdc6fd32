package netns

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/netns/internal/kernel"
)

func prefixes(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

func testConfig() Config {
	return Config{
		Interface: DefaultInterface,
		MTU:       1380,
		Mark:      DefaultMark,
		Table:     DefaultTable,
		Overlay:   []netip.Addr{netip.MustParseAddr("fd63:7761:7900::2"), netip.MustParseAddr("198.18.0.2")},
		Names:     netip.MustParseAddr("169.254.53.53"),
		Routes:    prefixes("10.0.0.0/8", "198.18.0.0/15", "fd63:7761:7900::/96", "fd10:2::/64", "10.2.3.4/16", "10.2.0.0/16"),
		Local:     prefixes("10.1.0.0/16", "fd10:1::/64"),
		Wall: Wall{UID: 998, Hubs: []netip.Addr{netip.MustParseAddr("fd63:7761:7900::1"), netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.1")},
			Overlay: prefixes("fd63:7761:7900::/96", "198.18.0.0/15")},
		Uses: Uses{Forward4: []string{"pods"}, Forward6: true, Bridges: []string{"pods"}, Bridged: []Bridge{{"pods", "02:00:00:00:00:07"}}},
	}
}

const goldenLines = `ip link set cw0 up
ip -4 addr add 169.254.53.53/32 dev cw0 scope host
ip -4 addr add 198.18.0.2/32 dev cw0
ip -6 addr add fd63:7761:7900::2/128 dev cw0 nodad
ip -4 route add 10.0.0.0/8 dev cw0 proto 202 src 198.18.0.2 mtu 1380 table 51806
ip -4 route add throw 10.1.0.0/16 proto 202 table 51806
ip -4 route add 10.2.0.0/16 dev cw0 proto 202 src 198.18.0.2 mtu 1380 table 51806
ip -4 route add 198.18.0.0/15 dev cw0 proto 202 src 198.18.0.2 mtu 1380 table 51806
ip -6 route add throw fd10:1::/64 proto 202 table 51806
ip -6 route add fd10:2::/64 dev cw0 proto 202 src fd63:7761:7900::2 mtu 1380 table 51806
ip -6 route add fd63:7761:7900::/96 dev cw0 proto 202 src fd63:7761:7900::2 mtu 1380 table 51806
ip -4 rule add not fwmark 0xca5e lookup 51806 pref 5206 protocol 202
ip -6 rule add not fwmark 0xca5e lookup 51806 pref 5206 protocol 202
sysctl -w net.ipv4.conf.cw0.forwarding=1
sysctl -w net.ipv4.conf.cw0.rp_filter=2
sysctl -w net.ipv4.conf.cw0.ignore_routes_with_linkdown=0
sysctl -w net.ipv6.conf.cw0.disable_ipv6=0
sysctl -w net.ipv6.conf.cw0.addr_gen_mode=1
sysctl -w net.ipv6.conf.cw0.ignore_routes_with_linkdown=0
sysctl -w net.ipv4.conf.pods.forwarding=51806
sysctl -w net.ipv6.conf.all.forwarding=51806
nft 'add table inet causeway'
nft 'add set inet causeway closed4 { type ipv4_addr; flags interval; }'
nft 'add element inet causeway closed4 { 10.0.0.0/16 }'
nft 'add element inet causeway closed4 { 10.2.0.0-10.255.255.255 }'
nft 'add element inet causeway closed4 { 198.18.0.0/15 }'
nft 'add set inet causeway closed6 { type ipv6_addr; flags interval; }'
nft 'add element inet causeway closed6 { fd10:2::/64 }'
nft 'add element inet causeway closed6 { fd63:7761:7900::/96 }'
nft 'add chain inet causeway forward { type filter hook forward priority -150; policy accept; }'
nft 'add rule inet causeway forward oifname "cw0" tcp flags syn tcp option maxseg size set rt mtu'
nft 'add rule inet causeway forward iifname "cw0" tcp flags syn tcp option maxseg size set rt mtu'
nft 'add chain inet causeway identity { type nat hook postrouting priority 90; policy accept; }'
nft 'add rule inet causeway identity oifname "cw0" ip saddr 10.1.0.0/16 snat ip to ip saddr'
nft 'add rule inet causeway identity oifname "cw0" ip6 saddr fd10:1::/64 snat ip6 to ip6 saddr'
nft 'add chain inet causeway mark-out { type filter hook postrouting priority -150; policy accept; }'
nft 'add rule inet causeway mark-out meta mark 0x0000ca5e ct mark set meta mark'
nft 'add chain inet causeway mark-in { type filter hook prerouting priority -150; policy accept; }'
nft 'add rule inet causeway mark-in ct mark 0x0000ca5e meta mark set ct mark'
nft 'add chain inet causeway closed-bridged { type filter hook forward priority 10; policy accept; }'
nft 'add rule inet causeway closed-bridged ip daddr @closed4 iifname "pods" oifname "pods" ether daddr != 02:00:00:00:00:07 meta mark set 0x0000ca5f'
nft 'add rule inet causeway closed-bridged ip6 daddr @closed6 iifname "pods" oifname "pods" ether daddr != 02:00:00:00:00:07 meta mark set 0x0000ca5f'
nft 'add chain inet causeway closed { type filter hook postrouting priority -160; policy accept; }'
nft 'add rule inet causeway closed oifname "cw0" accept'
nft 'add rule inet causeway closed oifname "lo" accept'
nft 'add rule inet causeway closed meta mark 0x0000ca5e accept'
nft 'add rule inet causeway closed meta mark 0x0000ca5f accept'
nft 'add rule inet causeway closed ip daddr @closed4 counter drop'
nft 'add rule inet causeway closed ip6 daddr @closed6 counter drop'
nft 'add chain inet causeway bound { type filter hook forward priority -150; policy accept; }'
nft 'add rule inet causeway bound iifname "cw0" accept'
nft 'add rule inet causeway bound oifname "cw0" accept'
nft 'add rule inet causeway bound iifname "pods" oifname "pods" accept'
nft 'add rule inet causeway bound meta nfproto ipv4 iifname "pods" counter drop'
nft 'add rule inet causeway bound meta nfproto ipv6 counter drop'
` + goldenWall + `
nft 'add chain inet causeway access-destination { type filter hook prerouting priority -300; policy accept; }'
nft 'add rule inet causeway access-destination iifname != "cw0" accept'
nft 'add rule inet causeway access-destination ip daddr 10.1.0.0/16 accept'
nft 'add rule inet causeway access-destination ip6 daddr fd10:1::/64 accept'
nft 'add rule inet causeway access-destination ip daddr 198.18.0.2 accept'
nft 'add rule inet causeway access-destination ip6 daddr fd63:7761:7900::2 accept'
nft 'add rule inet causeway access-destination counter drop'
nft 'add chain inet causeway access-interface { type filter hook prerouting priority -50; policy accept; }'
nft 'add rule inet causeway access-interface iifname "lo" accept'
nft 'add rule inet causeway access-interface ip saddr 10.1.0.0/16 fib saddr . iif oif missing fib daddr oifname "cw0" counter drop'
nft 'add rule inet causeway access-interface ip6 saddr fd10:1::/64 fib saddr . iif oif missing fib daddr oifname "cw0" counter drop'
nft 'add rule inet causeway access-interface ip saddr 198.18.0.2 fib saddr . iif oif missing fib daddr oifname "cw0" counter drop'
nft 'add rule inet causeway access-interface ip6 saddr fd63:7761:7900::2 fib saddr . iif oif missing fib daddr oifname "cw0" counter drop'
nft 'add chain inet causeway access-source { type filter hook postrouting priority 200; policy accept; }'
nft 'add rule inet causeway access-source oifname != "cw0" accept'
nft 'add rule inet causeway access-source ip saddr 10.1.0.0/16 accept'
nft 'add rule inet causeway access-source ip6 saddr fd10:1::/64 accept'
nft 'add rule inet causeway access-source ip saddr 198.18.0.2 accept'
nft 'add rule inet causeway access-source ip6 saddr fd63:7761:7900::2 accept'
nft 'add rule inet causeway access-source ip daddr 224.0.0.0/4 drop'
nft 'add rule inet causeway access-source ip6 daddr ff00::/8 drop'
nft 'add rule inet causeway access-source counter drop'`

func TestPlanLines(t *testing.T) {
	p, err := NewPlan(testConfig())
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(strings.Split(goldenLines, "\n"), p.Lines()))
}

func TestPlanMTUs(t *testing.T) {
	c := testConfig()
	c.MTUs = map[netip.Prefix]int{
		netip.MustParsePrefix("10.2.0.0/16"):  8928,
		netip.MustParsePrefix("10.0.0.0/8"):   1216,
		netip.MustParsePrefix("fd10:2::/64"):  1200,
		netip.MustParsePrefix("10.77.0.0/16"): 1300, // no route of ours
	}
	p, err := NewPlan(c)
	require.NoError(t, err)
	var changed []string
	for _, l := range p.Lines() {
		if !strings.Contains(goldenLines+"\n", l+"\n") {
			changed = append(changed, l)
		}
	}
	require.Empty(t, cmp.Diff([]string{
		"ip -4 route add 10.0.0.0/8 dev cw0 proto 202 src 198.18.0.2 mtu 1216 table 51806",
		"ip -4 route add 10.2.0.0/16 dev cw0 proto 202 src 198.18.0.2 mtu 8928 table 51806",
		"ip -6 route add fd10:2::/64 dev cw0 proto 202 src fd63:7761:7900::2 mtu 1280 table 51806",
		`nft 'add rule inet causeway forward oifname "cw0" ip6 daddr fd10:2::/64 tcp flags syn tcp option maxseg size set 1140'`,
		`nft 'add rule inet causeway forward iifname "cw0" ip6 saddr fd10:2::/64 tcp flags syn tcp option maxseg size set 1140'`,
	}, changed))
	c.MTUs[netip.MustParsePrefix("10.2.0.0/16")] = 100
	_, err = NewPlan(c)
	require.ErrorContains(t, err, "route 10.2.0.0/16: mtu 100 is not between")
}

func TestPlanIsIndependentOfOrder(t *testing.T) {
	c := testConfig()
	want, err := NewPlan(c)
	require.NoError(t, err)
	rapid.Check(t, func(t *rapid.T) {
		d := c
		d.Routes = rapid.Permutation(c.Routes).Draw(t, "routes")
		d.Local = rapid.Permutation(c.Local).Draw(t, "local")
		d.Overlay = rapid.Permutation(c.Overlay).Draw(t, "overlay")
		p, err := NewPlan(d)
		if err != nil || cmp.Diff(want.Lines(), p.Lines()) != "" {
			t.Fatalf("another plan: %v", err)
		}
	})
}

func TestPlanWithoutIPv6(t *testing.T) {
	p, err := NewPlan(testConfig())
	require.NoError(t, err)
	for _, l := range p.Without6().Lines() {
		require.NotContains(t, l, "ip -6")
		require.NotContains(t, l, "ipv6")
		require.NotContains(t, l, "fd10")
	}
}

// A prefix that the node announces itself stays with it when another node
// of the same group carries it.
func TestPlanLocalWins(t *testing.T) {
	c := testConfig()
	c.Routes = append(c.Routes, c.Local...)
	p, err := NewPlan(c)
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(strings.Split(goldenLines, "\n"), p.Lines()))
}

func TestNewPlanRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		`interface name "": want`:                              func(c *Config) { c.Interface = "" },
		`interface name "a b"`:                                 func(c *Config) { c.Interface = "a b" },
		`interface name "lo"`:                                  func(c *Config) { c.Interface = "lo" },
		`interface name "abcdefghijklmnop"`:                    func(c *Config) { c.Interface = "abcdefghijklmnop" },
		"route mtu 1279":                                       func(c *Config) { c.MTU = 1279 },
		"mark must not be zero":                                func(c *Config) { c.Mark = 0 },
		"routing table 254":                                    func(c *Config) { c.Table = 254 },
		"routing table 0":                                      func(c *Config) { c.Table = 0 },
		"no overlay address":                                   func(c *Config) { c.Overlay = nil },
		"overlay address 127.0.0.1":                            func(c *Config) { c.Overlay = []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
		"overlay address invalid IP":                           func(c *Config) { c.Overlay = []netip.Addr{{}} },
		"route 0.0.0.0/0 is a default route":                   func(c *Config) { c.Routes = prefixes("0.0.0.0/0") },
		"route ::/0 is a default route":                        func(c *Config) { c.Routes = prefixes("::/0") },
		"route 128.0.0.0/1 is nearly":                          func(c *Config) { c.Routes = prefixes("128.0.0.0/1") },
		"route 127.1.0.0/16 overlaps 127.0.0.0/8":              func(c *Config) { c.Routes = prefixes("127.1.0.0/16") },
		"route 169.254.1.1/32 overlaps 169.254.0.0/16":         func(c *Config) { c.Routes = prefixes("169.254.1.1/32") },
		"route 224.0.0.0/4 overlaps":                           func(c *Config) { c.Routes = prefixes("224.0.0.0/4") },
		"route fe80::/64 overlaps":                             func(c *Config) { c.Routes = prefixes("fe80::/64") },
		"route ff02::1/128 overlaps":                           func(c *Config) { c.Routes = prefixes("ff02::1/128") },
		"route ::1/128 overlaps":                               func(c *Config) { c.Routes = prefixes("::1/128") },
		"route ::ffff:10.0.0.0/104 overlaps ::ffff:0.0.0.0/96": func(c *Config) { c.Routes = prefixes("::ffff:10.0.0.0/104") },
		"route invalid Prefix is no prefix":                    func(c *Config) { c.Routes = []netip.Prefix{{}} },
		"local prefix 0.0.0.0/0 is a default route":            func(c *Config) { c.Local = prefixes("0.0.0.0/0") },
		"local prefix 255.255.255.255/32 overlaps":             func(c *Config) { c.Local = prefixes("255.255.255.255/32") },
		"local prefix 96.0.0.0/3 overlaps 127.0.0.0/8":         func(c *Config) { c.Local = prefixes("96.0.0.0/3") },
		`interface name "a:b": want 1 to 15 characters`:        func(c *Config) { c.Interface = "a:b" },
	} {
		c := testConfig()
		change(&c)
		_, err := NewPlan(c)
		require.ErrorContains(t, err, name)
	}
}

func TestSysctlPath(t *testing.T) {
	require.Equal(t, "/proc/sys/net/ipv4/ip_forward", kernel.SysctlPath("net.ipv4.ip_forward"))
	require.Equal(t, "/proc/sys/net/ipv4/conf/eth0.5/rp_filter", kernel.SysctlPath("net.ipv4.conf.eth0.5.rp_filter"))
	require.Equal(t, "/proc/sys/net/ipv4/conf/eth0.5/rp_filter", kernel.SysctlPath("net/ipv4/conf/eth0.5/rp_filter"))
	require.Equal(t, "/proc/sys/net/ipv6/conf/all/forwarding", kernel.SysctlPath("net.ipv6.conf.all.forwarding"))
}
