package netns

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

const goldenWall = `nft 'add chain inet causeway wall-out { type filter hook output priority 10; policy accept; }'
nft 'add rule inet causeway wall-out meta skuid 998 accept'
nft 'add rule inet causeway wall-out ip daddr 198.18.0.1 meta l4proto != 1 meta skuid != 998 counter drop'
nft 'add rule inet causeway wall-out ip daddr 198.18.0.1 meta l4proto != 1 ct state new,untracked counter drop'
nft 'add rule inet causeway wall-out ip6 daddr fd63:7761:7900::1 meta l4proto != 58 meta skuid != 998 counter drop'
nft 'add rule inet causeway wall-out ip6 daddr fd63:7761:7900::1 meta l4proto != 58 ct state new,untracked counter drop'
nft 'add rule inet causeway wall-out ip daddr 198.18.0.0/15 meta skuid != 998 tcp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-out ip daddr 198.18.0.0/15 meta skuid != 998 udp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-out ip6 daddr fd63:7761:7900::/96 meta skuid != 998 tcp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-out ip6 daddr fd63:7761:7900::/96 meta skuid != 998 udp dport 4710-4719 counter drop'
nft 'add chain inet causeway wall-forward { type filter hook forward priority 10; policy accept; }'
nft 'add rule inet causeway wall-forward ip daddr 198.18.0.1 meta l4proto != 1 counter drop'
nft 'add rule inet causeway wall-forward ip6 daddr fd63:7761:7900::1 meta l4proto != 58 counter drop'
nft 'add rule inet causeway wall-forward ip daddr 198.18.0.0/15 tcp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-forward ip daddr 198.18.0.0/15 udp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-forward ip6 daddr fd63:7761:7900::/96 tcp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-forward ip6 daddr fd63:7761:7900::/96 udp dport 4710-4719 counter drop'
nft 'add chain inet causeway wall-in { type filter hook input priority 10; policy accept; }'
nft 'add rule inet causeway wall-in iifname != "cw0" ip daddr 198.18.0.2 tcp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-in iifname != "cw0" ip daddr 198.18.0.2 udp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-in iifname "cw0" ip daddr 198.18.0.2 ip saddr != 198.18.0.0/15 tcp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-in iifname "cw0" ip daddr 198.18.0.2 ip saddr != 198.18.0.0/15 udp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-in iifname != "cw0" ip6 daddr fd63:7761:7900::2 tcp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-in iifname != "cw0" ip6 daddr fd63:7761:7900::2 udp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-in iifname "cw0" ip6 daddr fd63:7761:7900::2 ip6 saddr != fd63:7761:7900::/96 tcp dport 4710-4719 counter drop'
nft 'add rule inet causeway wall-in iifname "cw0" ip6 daddr fd63:7761:7900::2 ip6 saddr != fd63:7761:7900::/96 udp dport 4710-4719 counter drop'`

// Without a hub there is nothing to wall off, and one family's wall needs nothing of the other's.
func TestPlanWall(t *testing.T) {
	c := testConfig()
	p, err := NewPlan(c)
	require.NoError(t, err)
	for _, l := range p.Without6().Lines() {
		require.False(t, strings.Contains(l, "wall") && strings.Contains(l, "ip6"), l)
	}
	c.Wall.Hubs = nil
	without, err := NewPlan(c)
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(strings.Split(strings.Replace(goldenLines, "\n"+goldenWall, "", 1), "\n"), without.Lines()))
	for _, wrong := range []Wall{{Hubs: []netip.Addr{{}}}, {Hubs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, {Hubs: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}},
		{Hubs: c.Overlay, Overlay: []netip.Prefix{{}}}} {
		c.Wall = wrong
		_, err := NewPlan(c)
		require.ErrorContains(t, err, "overlay")
	}
}
