package netns

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// What the wall shuts is what the routes of the plan do not leave to the host's own, by the
// longest prefix, for every address.
func TestClosedIsWhatRoutesSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			// A small space, so that ranges lie in each other and side by side.
			bits := rapid.IntRange(24, 32).Draw(t, "bits")
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, rapid.Byte().Draw(t, "last")}), bits).Masked()
		})
		list := func(what string, most int) []netip.Prefix { return rapid.SliceOfN(prefix, 0, most).Draw(t, what) }
		c := testConfig()
		c.Routes, c.Held, c.Local, c.Bare = list("routes", 6), list("held", 6), list("local", 4), nil
		c.Except = nil
		for _, x := range list("except", 4) {
			e := Exception{Prefix: x}
			if rapid.Bool().Draw(t, "link") {
				e.Link = "docker9"
			}
			c.Except = append(c.Except, e)
		}
		p, err := NewPlan(c)
		require.NoError(t, err)
		routes := p.routes()
		in := map[netip.Addr]bool{}
		last := netip.Addr{}
		for _, r := range p.Closed(false) {
			require.True(t, !last.IsValid() || last.Next().Less(r.From()), "%v", p.Closed(false))
			last = r.To()
			for a := r.From(); a.Compare(r.To()) <= 0; a = a.Next() {
				in[a] = true
			}
		}
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			best := route{metric: -1}
			for _, r := range routes {
				if r.prefix.Contains(a) && (best.metric < 0 || r.prefix.Bits() > best.prefix.Bits() || r.prefix == best.prefix && r.metric < best.metric) {
					best = r
				}
			}
			shut := best.metric >= 0 && (best.closed || best.dev == p.Interface)
			require.Equal(t, shut, in[a], "%s: %+v", a, best)
		}
	})
}

func TestPlanOfTheWall(t *testing.T) {
	p := plan(t, closedConfig())
	var got []string
	for _, l := range p.nftClosedSets() {
		got = append(got, strings.TrimPrefix(l, "element inet causeway "))
	}
	require.Empty(t, cmp.Diff([]string{
		nftSet(setClosed4, "ipv4_addr"),
		"closed4 { 10.0.0.0/16 }", // 10.1.0.0/16 is the node's own
		"closed4 { 10.2.0.0-10.2.0.52 }",
		"closed4 { 10.2.0.54-10.2.4.255 }",
		"closed4 { 10.2.7.0-10.76.255.255 }",
		"closed4 { 10.78.0.0-10.255.255.255 }",
		"closed4 { 198.18.0.0/15 }",
		nftSet(setClosed6, "ipv6_addr"),
		"closed6 { fd10:2::-fd10:2::52 }",
		"closed6 { fd10:2::54-fd10:2::4:ffff }",
		"closed6 { fd10:2::6:0-fd10:2::ffff:ffff:ffff:ffff }",
		"closed6 { fd10:9::/64 }",
		"closed6 { fd63:7761:7900::/96 }",
	}, got))
	c := testConfig()
	c.Routes, c.Held = nil, nil
	for _, l := range plan(t, c).nft() {
		require.NotContains(t, l, "closed")
	}
}

// The wall is part of the plan: what is taken out of a set, or added, is seen and put back, and
// a range more or less changes that alone.
func TestWallIsMended(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, p))
	for _, harm := range []string{
		"nft delete element inet causeway closed4 '{ 10.0.0.0/16 }'",
		"nft add element inet causeway closed4 '{ 203.0.113.0/24 }'",
		"nft flush set inet causeway closed6",
		"nft flush chain inet causeway closed",
		"nft delete chain inet causeway closed",
		"nft add set inet causeway mine '{ type ipv4_addr; }'",
		"nft delete table inet causeway",
	} {
		sh(t, harm)
		d, err := h.Drift(ctx, Nftables)
		require.NoError(t, err)
		require.Len(t, d, 1, harm)
		require.NoError(t, h.Mend(ctx, d))
		requireFound(t, h, p)
	}
	counted := func() uint64 {
		drops, err := h.AccessDrops(ctx)
		require.NoError(t, err)
		return drops["closed"]
	}
	sh(t, "ip rule add pref 100 lookup main; ping -c3 -i0.1 -W1 10.2.0.9 || :; ip rule del pref 100")
	require.EqualValues(t, 3, counted())
	c := testConfig()
	c.Routes = append(c.Routes, netip.MustParsePrefix("203.0.113.0/24"))
	c.Local = append(c.Local, netip.MustParsePrefix("10.2.7.0/24"))
	more := plan(t, c)
	script, ok := nftChange(p.nft(), plan(t, Config{Interface: c.Interface, MTU: c.MTU, Mark: c.Mark, Table: c.Table, Overlay: c.Overlay, Routes: c.Routes, Local: testConfig().Local, Wall: c.Wall, Uses: c.Uses}).nft())
	require.True(t, ok)
	require.Equal(t, "add element inet causeway closed4 { 203.0.113.0/24 }\n", script)
	require.NoError(t, h.Apply(ctx, more))
	requireFound(t, h, more)
	require.NoError(t, h.Apply(ctx, p))
	requireFound(t, h, p)
}

// What a flush of all tables leaves of an address is its name: it is set anew, and routes that
// name it as their source with it.
func TestFlushOfAllTables(t *testing.T) {
	h, p := host(t), plan(t, testConfig())
	ctx := context.Background()
	require.NoError(t, h.Apply(ctx, p))
	for _, flush := range []string{"ip route flush table all", "ip -6 route flush table all", "ip route flush table all; ip -6 route flush table all", "ip route del local 198.18.0.2 table local"} {
		sh(t, flush)
		d, err := h.Drift(ctx, Kinds...)
		require.NoError(t, err)
		require.NotEmpty(t, d)
		require.Equal(t, Addresses, d[0].Kind, flush)
		require.NoError(t, h.Mend(ctx, d))
		requireFound(t, h, p)
		require.Contains(t, sh(t, "ip route get 198.18.0.2; ip route get fd63:7761:7900::2"), "dev lo", "%s", flush)
		d, err = h.Drift(ctx, Kinds...)
		require.NoError(t, err)
		require.Empty(t, d)
	}
}
