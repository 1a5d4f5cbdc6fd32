package netmapcheck

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/agent/held"
	"causeway/netns"
	"causeway/protocol"
)

// yard is a host on a LAN with a gateway, with containers, a VPN by a point-to-point link, a VPN
// with a table of its own, and a route to other LANs of its site.
var yard = struct {
	foreign []netns.Foreign
	kept    []held.Exception
	ways    []netip.Addr
}{
	foreign: []netns.Foreign{
		{Prefix: netip.MustParsePrefix("10.0.0.0/9"), Link: "eth0", Via: netip.MustParseAddr("192.168.7.254")},
		{Prefix: netip.MustParsePrefix("10.2.240.0/24"), Link: "docker0", Direct: true},
		{Prefix: netip.MustParsePrefix("10.8.0.1/32"), Link: "tun0", Direct: true},
		{Prefix: netip.MustParsePrefix("100.64.0.0/10")},
		{Prefix: netip.MustParsePrefix("192.168.0.0/16"), Link: "eth0", Direct: true},
		{Prefix: netip.MustParsePrefix("fd00:9::/64"), Link: "eth0", Direct: true},
	},
	kept: []held.Exception{
		{Addr: netip.MustParseAddr("192.168.7.1"), What: "default gateway"},
		{Addr: netip.MustParseAddr("10.5.5.5"), What: "address of a hub"},
		{Addr: netip.MustParseAddr("10.6.0.53"), What: "resolver of /etc/resolv.conf"},
		{Addr: netip.MustParseAddr("172.20.0.3"), What: "time server of /etc/ntp.conf"},
		{Addr: netip.MustParseAddr("192.168.9.9"), What: "proxy of the agent"},
	},
	ways: []netip.Addr{netip.MustParseAddr("192.168.7.1"), netip.MustParseAddr("10.5.5.5")},
}

// What naming a range in accept: would take from the host, and what is said of it: nobody is told
// to name what would cut the host from a network of its own, or from what it relies on.
func TestTakes(t *testing.T) {
	o := NewOwned(yard.foreign, yard.kept, yard.ways)
	for _, c := range []struct {
		what, named string
		takes       string // as a line has it; empty: nothing
		fixed       bool
		advised     bool // accept: is
	}{
		{"nobody's", "172.31.0.0/16", "", false, true},
		{"around a container network", "10.2.0.0/16", "10.2.0.0/16, a part of 10.0.0.0/9 by gateway 192.168.7.254", false, true},
		{"a container network", "10.2.240.0/24", "10.2.240.0/24 of docker0", false, false},
		{"a part of one", "10.2.240.128/25", "10.2.240.128/25, a part of 10.2.240.0/24 of docker0", false, false},
		{"the LAN of the gateway", "192.168.0.0/16", "192.168.0.0/16 of eth0 (with default gateway 192.168.7.1, proxy of the agent 192.168.9.9)", true, false},
		{"a part of it that has the gateway", "192.168.7.0/24", "192.168.7.0/24, a part of 192.168.0.0/16 of eth0 (with default gateway 192.168.7.1)", true, false},
		{"the gateway alone", "192.168.7.1/32", "192.168.7.1/32, a part of 192.168.0.0/16 of eth0 (with default gateway 192.168.7.1)", true, false},
		{"a part without it", "192.168.200.0/24", "192.168.200.0/24, a part of 192.168.0.0/16 of eth0", false, false},
		{"around the LAN", "192.0.0.0/8", "", false, true},
		{"a point-to-point link", "10.8.0.1/32", "10.8.0.1/32 of tun0", false, false},
		{"a VPN's own table", "100.100.0.0/16", "100.100.0.0/16, a part of 100.64.0.0/10", false, false},
		{"other LANs by a gateway", "10.7.0.0/16", "10.7.0.0/16, a part of 10.0.0.0/9 by gateway 192.168.7.254", false, true},
		{"with the hub in it, which stays", "10.5.0.0/16", "10.5.0.0/16, a part of 10.0.0.0/9 by gateway 192.168.7.254", false, true},
		{"with the resolver in it", "10.6.0.0/16", "10.6.0.0/16, a part of 10.0.0.0/9 by gateway 192.168.7.254 and 10.6.0.53 (resolver of /etc/resolv.conf)", false, false},
		{"a time server", "172.20.0.0/16", "172.20.0.3 (time server of /etc/ntp.conf)", false, false},
		{"IPv6", "fd00:9::/64", "fd00:9::/64 of eth0", false, false},
	} {
		r := netip.MustParsePrefix(c.named)
		l := o.Takes(r)
		require.Equal(t, c.takes, protocol.OwnList(l), c.what)
		require.Equal(t, c.fixed, o.Fixed(r), c.what)
		advice := protocol.AcceptAdvice("n1", r, l)
		if c.advised {
			require.Regexp(t, "^name "+r.String()+" exactly in accept: of n1", advice, c.what)
		} else {
			require.Regexp(t, "^give one of the two sites another range; ", advice, c.what)
		}
		require.Contains(t, advice, c.takes, c.what)
	}
}

// What an operator names all the same goes into the tunnel, but for the network of the gateway: that
// is refused, stays open where it was routed before, and the gateway and hub stay outside alone.
func TestNamedAllTheSame(t *testing.T) {
	in := input(peer(3, "192.168.0.0/16"), peer(4, "10.2.240.0/24"), peer(5, "10.5.0.0/16"), peer(6, "10.6.0.0/16"))
	in.Accept = pfx("10.0.0.0/8", "192.168.0.0/16")
	in.Named = pfx("192.168.0.0/16", "10.2.240.0/24", "10.5.0.0/16", "10.6.0.0/16")
	in.Foreign, in.Kept, in.Ways = yard.foreign, yard.kept, yard.ways
	res := Check(in)
	require.Equal(t, pfx("10.5.0.0/16", "10.6.0.0/16", "10.2.240.0/24"), res.Routes)
	require.Len(t, res.Refused, 1)
	require.Contains(t, res.Refused[0].Reason, "accept: of this host cannot take 192.168.0.0/16 of eth0 (with default gateway 192.168.7.1")
	g := Ground{Ranges: append(pfx("192.168.0.0/16"), res.Routes...), Routes: res.Routes, Named: in.Named, Foreign: in.Foreign, Kept: in.Kept, Ways: in.Ways}
	all, apart := Exceptions(g)
	var got []string
	for _, x := range all {
		got = append(got, x.Prefix.String()+" "+x.Link)
	}
	require.Equal(t, []string{"192.168.0.0/16 eth0", "10.5.5.5/32 "}, got, "of the LAN, which was routed before, nothing is closed")
	require.Equal(t, yard.kept[1:2], apart)
	// One of the LAN's that is longer than the range that has it stays, named or not.
	g.Ranges, g.Routes, g.Named = pfx("192.0.0.0/8"), pfx("192.0.0.0/8"), pfx("192.0.0.0/8", "192.168.0.0/16")
	all, _ = Exceptions(g)
	require.Len(t, all, 1)
	require.Equal(t, "192.168.0.0/16", all[0].Prefix.String())
}
