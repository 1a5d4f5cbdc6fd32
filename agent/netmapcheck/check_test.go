package netmapcheck

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/agent/held"
	"causeway/agent/identity"
	"causeway/netns"
	"causeway/protocol"
)

var hubKey = protocol.WireGuardPublicKey{0xee}

func hubs() protocol.HubList {
	return protocol.HubList{Overlay: []netip.Prefix{protocol.DefaultOverlay4, protocol.DefaultOverlay6},
		Hubs: []protocol.Hub{{Number: 1, WireGuardKey: hubKey}}}
}

func pfx(ss ...string) (out []netip.Prefix) {
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func idKey(n byte) protocol.IdentityPrivateKey { return protocol.IdentityPrivateKey{1, n} }

func peer(n protocol.NodeNumber, routes ...string) protocol.Peer {
	a4, _ := n.Overlay(protocol.DefaultOverlay4)
	s := protocol.NodeStatement{Number: n, WireGuardKey: protocol.WireGuardPublicKey{byte(n), 7}, Epoch: 1}
	return protocol.Peer{Statement: s.Sign(idKey(byte(n))), Name: "n", Site: "s", Overlay: []netip.Addr{a4}, Routes: pfx(routes...)}
}

func input(peers ...protocol.Peer) Input {
	return Input{Netmap: protocol.Netmap{Peers: peers}, Self: 2, SelfKeys: []protocol.WireGuardPublicKey{{2, 7}}, Hubs: hubs(),
		Accept: pfx("10.0.0.0/8", "192.168.0.0/16", "fc00::/7"), Named: pfx("192.168.0.0/16"), Foreign: lans("10.99.0.0/16", "192.168.1.0/24")}
}

// lans are networks of a link of the host's own.
func lans(l ...string) (out []netns.Foreign) {
	for _, p := range pfx(l...) {
		out = append(out, netns.Foreign{Prefix: p, Link: "eth0", Direct: true})
	}
	return out
}

func resign(p protocol.Peer, k protocol.IdentityPrivateKey, f func(*protocol.NodeStatement)) protocol.Peer {
	s := p.Statement.NodeStatement
	f(&s)
	p.Statement = s.Sign(k)
	return p
}

func TestRoutes(t *testing.T) {
	for _, c := range []struct{ route, why string }{
		{"10.1.0.0/24", ""},
		{"10.0.0.0/8", ""}, // 10.99.0.0/16 inside stays the host's own
		{"10.99.0.0/16", "it overlaps this host's own route 10.99.0.0/16; give one of the two sites another range; 10.99.0.0/16 in accept: would take 10.99.0.0/16 of eth0 from this host"},
		{"10.99.128.0/17", "would take 10.99.128.0/17, a part of 10.99.0.0/16 of eth0 from this host"},
		{"4000::/2", "nearly a default route"},
		{"fd00:1::/64", ""},
		{"0.0.0.0/0", "default route"},
		{"::/0", "default route"},
		{"127.0.0.0/8", "loopback"},
		{"127.1.2.0/24", "loopback"},
		{"0.0.0.0/1", "nearly a default route"},
		{"169.254.0.0/16", "link-local"},
		{"169.254.169.254/32", "link-local"},
		{"fe80::/64", "link-local"},
		{"::1/128", "loopback"},
		{"224.0.0.0/8", "multicast"},
		{"ff02::/16", "multicast"},
		{"::ffff:10.1.0.0/112", "IPv4 addresses in IPv6 form"},
		{"198.18.0.0/24", "overlay range"},
		{"198.0.0.0/8", "overlay range"},
		{"fd63:7761:7900::7/128", "overlay range"},
		{"11.0.0.0/24", "outside this host's accept"},
		{"10.0.0.0/7", "outside this host's accept"},
		{"192.168.1.0/24", "own route 192.168.1.0/24"},
		{"192.168.1.7/32", "own route 192.168.1.0/24"},
		{"192.168.0.0/16", ""}, // accept names it exactly
		{"10.1.2.3/8", "host bits"},
	} {
		t.Run(c.route, func(t *testing.T) {
			p := peer(3)
			p.Routes = []netip.Prefix{netip.MustParsePrefix(c.route)}
			r := Check(input(p))
			require.Len(t, r.Peers, 1)
			if c.why == "" {
				require.Empty(t, r.Refused)
				require.Equal(t, p.Routes, r.Routes)
				require.Equal(t, p.Routes, r.Peers[0].Routes)
				return
			}
			require.Len(t, r.Refused, 1)
			require.Contains(t, r.Refused[0].Reason, c.why)
			require.Equal(t, c.route, r.Refused[0].Prefix)
			require.Equal(t, protocol.NodeNumber(3), r.Refused[0].Peer)
			require.Empty(t, r.Routes)
			require.Empty(t, r.Peers[0].Routes)
		})
	}
}

func TestZeroPrefix(t *testing.T) {
	p := peer(3)
	p.Routes = []netip.Prefix{{}}
	require.Len(t, Check(input(p)).Refused, 1)
}

// Sources are taken only as far as another node of the site owns them.
func TestSources(t *testing.T) {
	a, b, c := peer(3, "10.1.0.0/24"), peer(4, "10.2.0.0/24"), peer(5, "10.1.0.128/25", "10.2.0.0/28")
	other := peer(6, "10.3.0.0/24")
	other.Site = "elsewhere"
	b.Sources = pfx("10.1.0.0/24", "10.3.0.0/24", "10.0.0.0/8", "10.9.0.0/24", "0.0.0.0/0")
	r := Check(input(a, b, other))
	require.Equal(t, pfx("10.1.0.0/24"), r.Peers[1].Sources)
	require.Empty(t, r.Refused)
	require.Empty(t, Check(input(a, b, c)).Peers[1].Sources, "a third node has a part of it")
	c.Sources = pfx("10.1.0.0/24")
	require.Equal(t, c.Sources, Check(input(a, peer(4), c)).Peers[2].Sources, "the part is its own")
}

func TestNoPrefixTwice(t *testing.T) {
	a, b := peer(3, "10.1.0.0/24", "10.1.0.0/24"), peer(4, "10.1.0.0/24", "10.1.0.0/25")
	r := Check(input(b, a))
	require.Equal(t, pfx("10.1.0.0/24"), r.Peers[0].Routes)
	require.Equal(t, pfx("10.1.0.0/25"), r.Peers[1].Routes, "a longer prefix inside another is another prefix")
	require.Len(t, r.Refused, 2)
	require.Contains(t, r.Refused[1].Reason, "node 3 has it already")
}

func TestOverlayAddresses(t *testing.T) {
	p := peer(3)
	p.Overlay = append(p.Overlay, p.Overlay[0], netip.MustParseAddr("198.18.0.4"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd63:7761:7900::3"), netip.Addr{})
	r := Check(input(p))
	require.Equal(t, []netip.Addr{netip.MustParseAddr("198.18.0.3"), netip.MustParseAddr("fd63:7761:7900::3")}, r.Peers[0].Overlay)
	require.Len(t, r.Refused, 4)
}

func TestIdentity(t *testing.T) {
	good := peer(3)
	pin := identity.Pin{IdentityKey: idKey(3).Public(), WireGuardKey: good.Statement.WireGuardKey, Epoch: 1}
	newKey := func(s *protocol.NodeStatement) { s.WireGuardKey = protocol.WireGuardPublicKey{0x55} }
	for _, c := range []struct {
		name string
		p    protocol.Peer
		pin  *identity.Pin
		why  string
	}{
		{"first use", good, nil, ""},
		{"same as pinned", good, &pin, ""},
		{"rotated and signed", resign(good, idKey(3), func(s *protocol.NodeStatement) { newKey(s); s.Epoch = 2 }), &pin, ""},
		{"other identity", resign(good, idKey(9), func(s *protocol.NodeStatement) { s.Epoch = 5 }), &pin, "not the one that was seen first"},
		{"lower epoch", resign(good, idKey(3), func(s *protocol.NodeStatement) { s.Epoch = 0 }), &pin, "lower than 1"},
		{"changed in one epoch", resign(good, idKey(3), newKey), &pin, "without a higher epoch"},
		{"unsigned", func() protocol.Peer { p := good; p.Statement.WireGuardKey[5] ^= 1; return p }(), nil, "did not sign"},
		{"no signature", func() protocol.Peer { p := good; p.Statement.Signature = nil; return p }(), nil, "did not sign"},
		{"own number", peer(2), nil, "own number"},
		{"hub's number", peer(1), nil, "a hub's number"},
		{"number zero", peer(0), nil, "no node number"},
		{"number too large", peer(1 << 24), nil, "no node number"},
		{"own key", resign(good, idKey(3), func(s *protocol.NodeStatement) { s.WireGuardKey = protocol.WireGuardPublicKey{2, 7} }), nil, "key is that of node 2"},
		{"hub's key", resign(good, idKey(3), func(s *protocol.NodeStatement) { s.WireGuardKey = hubKey }), nil, "key is that of node 1"},
		{"no key", resign(good, idKey(3), func(s *protocol.NodeStatement) { s.WireGuardKey = protocol.WireGuardPublicKey{} }), nil, "no key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := input(c.p)
			if c.pin != nil {
				in.Pins = map[protocol.NodeNumber]identity.Pin{3: *c.pin}
			}
			r := Check(in)
			in.Last = []protocol.Peer{good}
			require.Equal(t, r, Check(in), "what was taken before vouches for nothing else")
			if c.why == "" {
				require.Empty(t, r.Refused)
				require.Equal(t, c.p.Statement.WireGuardKey, r.Pins[3].WireGuardKey)
				require.Equal(t, c.p.Statement.Epoch, r.Pins[3].Epoch)
				return
			}
			require.Empty(t, r.Peers)
			require.Len(t, r.Refused, 1)
			require.Contains(t, r.Refused[0].Reason, c.why)
			if c.pin != nil {
				require.Equal(t, in.Pins, r.Pins, "a refused statement changes no pin")
			} else {
				require.Empty(t, r.Pins)
			}
		})
	}
}

// What is as it was before is not verified again.
func TestSameStatementAgain(t *testing.T) {
	p := peer(3)
	p.Statement.Signature = []byte("no signature")
	in := input(p)
	require.NotEmpty(t, Check(in).Refused)
	in.Last = []protocol.Peer{p}
	require.Empty(t, Check(in).Refused)
	in.Last[0].Statement.Signature = []byte("another one")
	require.NotEmpty(t, Check(in).Refused)
}

func TestTwicePeers(t *testing.T) {
	a := peer(3, "10.1.0.0/24")
	r := Check(input(a, a))
	require.Len(t, r.Peers, 1)
	require.Contains(t, r.Refused[0].Reason, "twice")
	b := resign(peer(4), idKey(4), func(s *protocol.NodeStatement) { s.WireGuardKey = a.Statement.WireGuardKey })
	r = Check(input(a, b))
	require.Len(t, r.Peers, 1)
	require.Contains(t, r.Refused[0].Reason, "key is that of node 3")
}

func TestRequiresIsClosed(t *testing.T) {
	in := input(peer(3, "10.1.0.0/24"))
	in.Netmap.Requires = []string{"segments"}
	r := Check(in)
	require.Empty(t, r.Peers)
	require.Contains(t, r.Refused[0].Reason, `"segments"`)
	in.Features = []string{"segments"}
	require.Len(t, Check(in).Peers, 1)
}

func TestLocal(t *testing.T) {
	in := input()
	in.Netmap.Self.Routes = []protocol.AnnouncedRoute{
		{Prefix: netip.MustParsePrefix("10.2.0.0/24"), State: protocol.RouteApproved},
		{Prefix: netip.MustParsePrefix("10.1.0.0/24"), State: protocol.RouteApproved},
		{Prefix: netip.MustParsePrefix("10.3.0.0/24"), State: protocol.RoutePending},
		{Prefix: netip.MustParsePrefix("10.4.0.0/24"), State: protocol.RouteRejected},
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), State: protocol.RouteApproved},
		{Prefix: netip.MustParsePrefix("198.18.0.0/24"), State: protocol.RouteApproved},
		{Prefix: netip.MustParsePrefix("10.5.0.0/24"), State: protocol.RouteApproved}, // the hub's word alone
	}
	in.Announced, in.Granted = pfx("10.2.0.0/24", "10.3.0.0/24", "10.4.0.0/24"), pfx("10.1.0.0/24")
	in.Foreign = lans("10.1.0.0/16")
	r := Check(in)
	require.Equal(t, pfx("10.1.0.0/24", "10.2.0.0/24"), r.Local)
	require.Equal(t, pfx("10.2.0.0/24"), r.Bare, "the host has no route of its own to it")
	require.Len(t, r.Refused, 3)
	require.Contains(t, r.Refused[2].Reason, "neither announces it nor was given it")

	// What another node has is not this one's by announcing it.
	in.Netmap.Peers = []protocol.Peer{peer(3, "10.2.0.0/16")}
	r = Check(in)
	require.Equal(t, pfx("10.2.0.0/24"), r.Bare)
	require.Len(t, r.Refused, 4)
	require.Contains(t, r.Refused[0].Reason, "only its default route: packets go to 10.2.0.0/16 of node 3")
}

// A hub can have only so much routed; what was before stays.
func TestBound(t *testing.T) {
	in := input(peer(3, "10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"))
	in.Bound = &Bound{Routed: held.NewCover(pfx("10.3.0.0/24")), Room: 1}
	r := Check(in)
	require.Equal(t, pfx("10.1.0.0/24", "10.3.0.0/24"), r.Routes)
	require.Len(t, r.Refused, 1)
	require.Contains(t, r.Refused[0].Reason, "as many ranges routed or closed as it can")
}

// A range with very many of the host's own routes inside is refused, as each would
// be an exception.
func TestManyInside(t *testing.T) {
	in := input(peer(3, "10.0.0.0/8"), peer(4, "10.128.0.0/9"), peer(5, "fc00::/8"))
	in.Foreign = nil
	for i := range maxInside + 1 {
		in.Foreign = append(in.Foreign, netns.Foreign{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32), Link: "eth0", Direct: true})
	}
	r := Check(in)
	require.Equal(t, pfx("10.128.0.0/9", "fc00::/8"), r.Routes)
	require.Contains(t, r.Refused[0].Reason, "1025 of this host's own routes lie in it")
	in.Foreign = in.Foreign[1:]
	require.Equal(t, pfx("10.0.0.0/8", "10.128.0.0/9", "fc00::/8"), Check(in).Routes)
	require.Equal(t, 1, inside(pfx("ffff:ffff::/32"), netip.MustParsePrefix("fc00::/6")), "to the end of the family")
}

func TestExceptions(t *testing.T) {
	foreign := func(direct bool, l ...string) (out []netns.Foreign) {
		for _, p := range pfx(l...) {
			f := netns.Foreign{Prefix: p, Link: "br0", Direct: direct}
			if !direct {
				f.Link, f.Via = "eth0", netip.MustParseAddr("192.0.2.1")
			}
			out = append(out, f)
		}
		return out
	}
	keep := func(l ...string) (out []held.Exception) {
		for _, a := range l {
			out = append(out, held.Exception{Addr: netip.MustParseAddr(a), What: "resolver"})
		}
		return out
	}
	for name, c := range map[string]struct {
		g    Ground
		want []string
	}{
		"inside":                {Ground{Ranges: pfx("10.2.0.0/16"), Routes: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.2.5.0/24", "10.3.0.0/24")}, []string{"10.2.5.0/24 br0"}},
		"inside, by a gateway":  {Ground{Ranges: pfx("10.2.0.0/16"), Routes: pfx("10.2.0.0/16"), Foreign: foreign(false, "10.2.5.0/24")}, []string{"10.2.5.0/24 eth0"}},
		"inside what is closed": {Ground{Ranges: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.2.5.0/24")}, []string{"10.2.5.0/24 br0"}},
		"inside, named itself":  {Ground{Ranges: pfx("10.2.0.0/16"), Routes: pfx("10.2.0.0/16"), Named: pfx("10.2.5.0/24"), Foreign: foreign(true, "10.2.5.0/24")}, nil},
		"inside what is named":  {Ground{Ranges: pfx("10.2.0.0/16"), Routes: pfx("10.2.0.0/16"), Named: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.2.5.0/24")}, []string{"10.2.5.0/24 br0"}},
		"the node's own, longer": {Ground{Ranges: pfx("10.0.0.0/8"), Routes: pfx("10.0.0.0/8"), Own: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.2.0.0/16", "10.2.5.0/24"),
			Kept: keep("10.2.9.9")}, nil},
		"a peer's inside the node's own": {Ground{Ranges: pfx("10.2.4.0/22"), Routes: pfx("10.2.4.0/22"), Own: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.2.0.0/16", "10.2.5.0/24")}, []string{"10.2.5.0/24 br0"}},
		"as large, live by its name":     {Ground{Ranges: pfx("10.2.0.0/16"), Routes: pfx("10.2.0.0/16"), Named: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.2.0.0/16")}, nil},
		"as large, closed by its name":   {Ground{Ranges: pfx("10.2.0.0/16"), Named: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.2.0.0/16", "10.0.0.0/8")}, nil},
		"as large, it came later":        {Ground{Ranges: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.2.0.0/16")}, []string{"10.2.0.0/16 br0"}},
		"larger, it came later":          {Ground{Ranges: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.0.0.0/8")}, []string{"10.2.0.0/16 br0"}},
		"as large, by a gateway":         {Ground{Ranges: pfx("10.2.0.0/16"), Foreign: foreign(false, "10.2.0.0/16", "10.0.0.0/8")}, nil},
		"kept":                           {Ground{Ranges: pfx("10.2.0.0/16"), Routes: pfx("10.2.0.0/16"), Kept: keep("10.2.0.53", "10.9.0.1")}, []string{"10.2.0.53/32 "}},
		"kept, the range is named":       {Ground{Ranges: pfx("10.2.0.0/16"), Routes: pfx("10.2.0.0/16"), Named: pfx("10.2.0.0/16"), Kept: keep("10.2.0.53")}, nil},
		"kept, inside a local network":   {Ground{Ranges: pfx("10.2.0.0/16"), Routes: pfx("10.2.0.0/16"), Foreign: foreign(true, "10.2.5.0/24"), Kept: keep("10.2.5.1")}, []string{"10.2.5.0/24 br0"}},
		"nothing":                        {Ground{Foreign: foreign(true, "10.2.5.0/24"), Kept: keep("10.2.5.1")}, nil},
	} {
		all, apart := Exceptions(c.g)
		var got []string
		for _, x := range all {
			got = append(got, x.Prefix.String()+" "+x.Link)
		}
		require.Equal(t, c.want, got, name)
		require.Equal(t, name == "kept", len(apart) > 0, name)
	}
}

func TestNewer(t *testing.T) {
	v := func(e, s, m uint64) protocol.NetmapVersion {
		return protocol.NetmapVersion{Epoch: e, Version: s, Minor: m}
	}
	require.Empty(t, Newer(v(0, 0, 0), v(1, 1, 0)))
	require.Empty(t, Newer(v(1, 5, 0), v(1, 5, 0)))
	require.Empty(t, Newer(v(1, 5, 0), v(2, 1, 0)))
	require.NotEmpty(t, Newer(v(1, 5, 0), v(1, 4, 9)))
	require.NotEmpty(t, Newer(v(2, 5, 0), v(1, 9, 0)))
}

// Whatever a hub sends, what comes out keeps the rules.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			b := rapid.SampledFrom([]netip.Addr{netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.99.1.0"), netip.MustParseAddr("192.168.1.0"),
				netip.MustParseAddr("198.18.0.3"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("fd00::"), netip.MustParseAddr("fe80::1"), {}}).Draw(t, "addr")
			bits := rapid.IntRange(0, 32).Draw(t, "bits")
			if rapid.Bool().Draw(t, "mask") {
				return netip.PrefixFrom(b, bits).Masked()
			}
			return netip.PrefixFrom(b, bits)
		})
		var peers []protocol.Peer
		for range rapid.IntRange(0, 6).Draw(t, "peers") {
			p := peer(protocol.NodeNumber(rapid.IntRange(0, 5).Draw(t, "number")))
			p.Routes = rapid.SliceOfN(prefix, 0, 4).Draw(t, "routes")
			if rapid.IntRange(0, 3).Draw(t, "forge") == 0 {
				p.Statement.Epoch++
			}
			peers = append(peers, p)
		}
		in := input(peers...)
		r := Check(in)
		if why := violation(in, r); why != "" {
			t.Fatal(why)
		}
		slices.Reverse(in.Netmap.Peers)
		if len(Check(in).Peers) != len(r.Peers) {
			t.Fatal("the outcome depends on the order")
		}
	})
}

// violation says which rule what came out of in breaks; "" for none.
func violation(in Input, r Result) string {
	seen := map[netip.Prefix]bool{}
	total := 0
	for _, p := range r.Peers {
		if !p.Statement.Valid() || p.Number() == in.Self || p.Number() == 1 || !p.Number().Valid() {
			return fmt.Sprintf("took peer %v", p)
		}
		for _, x := range p.Prefixes() {
			if seen[x] {
				return fmt.Sprintf("%s is there twice", x)
			}
			seen[x] = true
		}
		for _, a := range p.Overlay {
			if !slices.ContainsFunc(in.Hubs.Overlay, func(o netip.Prefix) bool { return o.Contains(a) }) {
				return fmt.Sprintf("%s is no overlay address", a)
			}
		}
		for _, x := range p.Routes {
			total++
			if x.Bits() == 0 || x != x.Masked() || x.Addr().IsLoopback() || x.Addr().IsLinkLocalUnicast() || x.Addr().Is4In6() {
				return fmt.Sprintf("took %s", x)
			}
			if slices.ContainsFunc(in.Hubs.Overlay, x.Overlaps) {
				return fmt.Sprintf("took %s of the overlay", x)
			}
			if !slices.ContainsFunc(in.Accept, func(a netip.Prefix) bool { return a.Overlaps(x) && a.Bits() <= x.Bits() }) {
				return fmt.Sprintf("%s is outside accept", x)
			}
			for _, f := range in.Foreign {
				if f.Prefix.Overlaps(x) && f.Prefix.Bits() <= x.Bits() && !slices.Contains(in.Named, x) {
					return fmt.Sprintf("%s takes over %s", x, f.Prefix)
				}
			}
		}
	}
	if total != len(r.Routes) {
		return fmt.Sprintf("%d routes of peers, %d in all", total, len(r.Routes))
	}
	for _, x := range r.Local {
		if x.Bits() == 0 || x != x.Masked() || slices.ContainsFunc(in.Hubs.Overlay, x.Overlaps) {
			return fmt.Sprintf("took %s as its own", x)
		}
		if !slices.Contains(in.Announced, x) && !slices.Contains(in.Granted, x) {
			return fmt.Sprintf("took %s as its own by the hub's word alone", x)
		}
	}
	return ""
}
