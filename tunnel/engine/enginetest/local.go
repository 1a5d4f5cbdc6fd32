package enginetest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/engine"
)

// foreignDestinations: a peer's packets go where SetLocal says and nowhere else, though
// their source is the peer's; before SetLocal, nowhere. Each one dropped is counted.
func foreignDestinations(t *testing.T, a, b Factory) {
	net := NewNetwork()
	x := Start(t, net, b, 2, Key(t), 0)
	y := Start(t, net, func(c Config) (engine.Engine, error) { c.AnyDestination = false; return a(c) }, 3, Key(t), 0)
	everything := []string{"10.0.0.0/8", "fd00::/8", "192.168.0.0/16", "203.0.113.0/24", "2001:db8::/32"}
	require.NoError(t, y.Engine.SetPeers([]engine.Peer{x.Peer()}))
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{y.Peer(everything...)}))
	require.False(t, x.Reaches(y, x.Addr4(), y.Addr4(), 500*time.Millisecond), "before it was said")
	first := y.Engine.Drops()[protocol.DropElsewhere]
	require.Positive(t, first)

	own := []netip.Prefix{netip.PrefixFrom(y.Addr4(), 32), netip.PrefixFrom(y.Addr6(), 128)}
	pods := []netip.Prefix{netip.MustParsePrefix("10.3.0.0/24"), netip.MustParsePrefix("10.3.0.128/25"), netip.MustParsePrefix("fd03::/64")}
	y.Engine.SetLocal(append(own, pods...))
	inside := []string{"10.3.0.0", "10.3.0.5", "10.3.0.255", "fd03::", "fd03::ffff:ffff:ffff:ffff", y.Addr4().String(), y.Addr6().String()}
	outside := []string{"10.2.255.255", "10.3.1.0", "192.168.1.50", "203.0.113.9", "fd02:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd03:0:0:1::", "2001:db8::1"}
	source := func(dst netip.Addr) netip.Addr {
		if dst.Is4() {
			return x.Addr4()
		}
		return x.Addr6()
	}
	for _, s := range inside {
		dst := netip.MustParseAddr(s)
		x.Ping(y, source(dst), dst)
	}
	before := y.Engine.Drops()[protocol.DropElsewhere]
	for _, s := range outside {
		dst := netip.MustParseAddr(s)
		x.Send(source(dst), dst, []byte("elsewhere"))
	}
	x.pingBehind(y, x.Addr4(), y.Addr4(), func(p []byte) {
		require.NotEqual(t, "elsewhere", string(Payload(p)))
	})
	require.Equal(t, before+uint64(len(outside)), y.Engine.Drops()[protocol.DropElsewhere])

	y.Engine.SetLocal(own) // a prefix that was withdrawn
	require.False(t, x.Reaches(y, x.Addr4(), netip.MustParseAddr("10.3.0.5"), 300*time.Millisecond))
	x.Ping(y, x.Addr4(), y.Addr4())
}
