package netns

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

const goldenShields = `nft 'add chain inet causeway shields { type filter hook prerouting priority -140; policy accept; }'
nft 'add rule inet causeway shields iifname != "cw0" accept'
nft 'add rule inet causeway shields fib daddr type unicast accept'
nft 'add rule inet causeway shields fib daddr type unreachable accept'
nft 'add rule inet causeway shields ct state established,related ct direction reply accept'
nft 'add rule inet causeway shields ct state related meta l4proto { 1, 58 } accept'
nft 'add rule inet causeway shields icmp type echo-request accept'
nft 'add rule inet causeway shields icmpv6 type echo-request accept'
nft 'add rule inet causeway shields tcp dport 4713-4716 accept'
nft 'add rule inet causeway shields udp dport 4713-4716 accept'
nft 'add rule inet causeway shields udp dport 4717 accept'
nft 'add rule inet causeway shields tcp dport 22 accept'
nft 'add rule inet causeway shields tcp dport 8000-8010 accept'
nft 'add rule inet causeway shields udp dport 53 accept'
nft 'add rule inet causeway shields counter drop'`

func shielded() Config {
	c := testConfig()
	c.Shields = Shields{Up: true, Allow: []Port{{"udp", 53, 53}, {"tcp", 8000, 8010}, {"tcp", 22, 22}, {"udp", 53, 53}}}
	return c
}

func TestPlanShields(t *testing.T) {
	p := plan(t, shielded())
	require.Empty(t, cmp.Diff(strings.Split(goldenLines+"\n"+goldenShields, "\n"), p.Lines()))
	for _, bad := range []Port{{"icmp", 1, 1}, {"tcp", 0, 5}, {"udp", 7, 6}, {}} {
		c := testConfig()
		c.Shields.Allow = []Port{bad}
		_, err := NewPlan(c)
		require.ErrorContains(t, err, "is no port")
	}
}

func TestApplyMakesShields(t *testing.T) {
	h := host(t)
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, plan(t, testConfig())))
	p := plan(t, shielded())
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
	before := dump(t)
	require.NoError(t, h.Apply(ctx, p))
	require.Empty(t, cmp.Diff(before, dump(t)))
	require.NoError(t, h.Apply(ctx, plan(t, testConfig())))
	requireFound(t, h, plan(t, testConfig()))
	drops, err := h.AccessDrops(ctx)
	require.NoError(t, err)
	require.Equal(t, map[string]uint64{"destination": 0, "interface": 0, "source": 0, "shields": 0, "closed": 0}, drops)
}
