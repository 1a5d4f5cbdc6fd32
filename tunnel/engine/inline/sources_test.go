package inline_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
)

// A peer may send from another's prefix exactly while its Sources say so, and what
// is sent there goes to the owner.
func TestSharedSources(t *testing.T) {
	net := enginetest.NewNetwork()
	x := enginetest.Start(t, net, inlineEngine, 2, enginetest.Key(t), 0)
	y := enginetest.Start(t, net, inlineEngine, 3, enginetest.Key(t), 0)
	z := enginetest.Start(t, net, inlineEngine, 4, enginetest.Key(t), 0)
	for _, lan := range []string{"10.6.0.0/16", "fd06::/64"} {
		at := netip.MustParsePrefix(lan).Addr().Next()
		me := x.Addr4()
		if at.Is6() {
			me = x.Addr6()
		}
		for _, n := range []*enginetest.Node{y, z} {
			require.NoError(t, n.Engine.SetPeers([]engine.Peer{x.Peer()}))
		}
		set := func(sources ...netip.Prefix) {
			p := y.Peer()
			p.Sources = sources
			require.NoError(t, x.Engine.SetPeers([]engine.Peer{p, z.Peer(lan)}))
		}
		set()
		require.False(t, y.Reaches(x, at, me, 300*time.Millisecond))
		set(netip.MustParsePrefix(lan))
		y.Ping(x, at, me)
		z.Ping(x, at, me)
		x.Ping(z, me, at)
		require.False(t, y.Reaches(x, z.Addr4(), x.Addr4(), 300*time.Millisecond), "another address of the owner")
		require.False(t, y.Reaches(x, netip.MustParseAddr("10.7.0.1"), x.Addr4(), 300*time.Millisecond), "nobody's")
		set()
		require.False(t, y.Reaches(x, at, me, 300*time.Millisecond))
	}
}
