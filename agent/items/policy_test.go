package items

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/netns/policy"
	"causeway/protocol"
)

// What a netmap says of who may talk is one table on the host. What is wrong in it opens nothing.
func TestPolicyTable(t *testing.T) {
	pfx := netip.MustParsePrefix
	v := View{Interface: "cw0", Own: []netip.Addr{netip.MustParseAddr("198.18.0.2")}, Overlay: []netip.Prefix{pfx("198.18.0.0/15")}, Hubs: []netip.Addr{netip.MustParseAddr("198.18.0.1")},
		Classes: []protocol.AddressClass{{Prefix: pfx("10.1.0.0/16"), Class: 1}, {Prefix: pfx("198.18.0.2/32"), Class: 1}, {Prefix: pfx("127.0.0.0/8"), Class: 1}, {Prefix: pfx("10.9.0.0/16"), Class: 0}},
		Peers: []protocol.Peer{
			{Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.3")}, Routes: []netip.Prefix{pfx("10.2.0.0/16")},
				Classes: []protocol.AddressClass{{Prefix: pfx("198.18.0.3/32"), Class: 2}, {Prefix: pfx("10.2.0.0/16"), Class: 2}, {Prefix: pfx("10.2.0.7/32"), Class: 3}, {Prefix: pfx("10.3.0.0/16"), Class: 2}}},
			{Sources: []netip.Prefix{pfx("10.2.0.0/16"), pfx("10.4.0.0/16")}, Classes: []protocol.AddressClass{{Prefix: pfx("10.4.0.0/16"), Class: 4}, {Prefix: pfx("10.2.0.7/32"), Class: 4}}},
		}}
	part := func() *policy.Part {
		x, err := policies{}.Part(v, nil)
		require.NoError(t, err)
		if x == nil {
			return nil
		}
		return x.(*policy.Part)
	}
	require.Nil(t, part(), "nothing is declared, and all is open")
	v.Items = []protocol.Item{
		item("policy", "main", `{"rules":[{"rule":"web","from":[2],"to":[1],"allow":["tcp/80-90","icmp"]},{"rule":"late","from":[1],"to":[1,2],"allow":["udp/53"],"arrives":true}]}`),
		item("policy", "bad", `{"rules":[{"rule":"x","from":[2],"to":[1],"allow":["gre"]}]}`),
		item("policy", "worse", `[]`),
		item("segment", "prod", `{"rules":[{"rule":"inside","from":[3],"to":[1],"allow":["any","tcp"]}]}`),
	}
	open := func(from, to string, proto policy.Proto, port uint16) string {
		rule, ok := part().Opens(netip.MustParseAddr(from), netip.MustParseAddr(to), proto, port)
		require.Equal(t, ok, rule != "")
		return rule
	}
	require.Equal(t, "main.web", open("10.2.0.1", "10.1.0.1", policy.TCP, 85))
	require.Equal(t, "main.web", open("198.18.0.3", "198.18.0.2", policy.ICMP, 0))
	require.Empty(t, open("10.2.0.1", "10.1.0.1", policy.TCP, 91))
	require.Empty(t, open("10.1.0.1", "10.2.0.1", policy.TCP, 85), "the other direction")
	require.Empty(t, open("10.1.0.1", "10.2.0.1", policy.UDP, 53), "what arrives alone")
	v.Peers[0].Classes[1].Class = 1
	require.Equal(t, "main.late", open("10.2.0.1", "10.1.0.1", policy.UDP, 53))
	v.Peers[0].Classes[1].Class = 2
	require.Empty(t, open("10.3.0.1", "10.1.0.1", policy.TCP, 85), "the peer has no such prefix")
	require.Empty(t, open("10.2.0.7", "10.1.0.1", policy.TCP, 85), "said to be of two classes")
	require.Len(t, part().Config().Local, 3)
	require.Len(t, Take(v, nil).Refused, 2)
	v.Interface = ""
	_, err := policies{}.Part(v, nil)
	require.Error(t, err)
}

// No segment and no policy, whatever is in it, takes away what none of them closes: the node's way to its hubs, and Causeway's own
// ports and echo inside the overlay, which the table opens by these three lists alone.
func TestNobodyIsLockedOut(t *testing.T) {
	pfx, addr := netip.MustParsePrefix, netip.MustParseAddr
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.SampledFrom([]netip.Prefix{pfx("10.1.0.0/16"), pfx("198.18.0.2/32"), pfx("198.18.0.0/15"), pfx("198.18.0.1/32"), pfx("0.0.0.0/0"), pfx("fd63::/16"), pfx("127.0.0.0/8")})
		class := rapid.Custom(func(t *rapid.T) protocol.AddressClass {
			return protocol.AddressClass{Prefix: prefix.Draw(t, "prefix"), Class: rapid.Uint32().Draw(t, "class")}
		})
		classes := rapid.SliceOfN(class, 0, 5)
		v := View{Interface: "cw0", Own: []netip.Addr{addr("198.18.0.2"), addr("fd63::2")}, Hubs: []netip.Addr{addr("198.18.0.1")}, Overlay: []netip.Prefix{pfx("198.18.0.0/15"), pfx("fd63::/64")},
			Classes: classes.Draw(t, "own"),
			Peers:   []protocol.Peer{{Overlay: []netip.Addr{addr("198.18.0.3")}, Routes: []netip.Prefix{prefix.Draw(t, "route")}, Classes: classes.Draw(t, "peer's")}}}
		body := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{`{}`, `[]`, `{"rules":[{"rule":"x","from":[1],"to":[2],"allow":["any"]}]}`, `{"rules":[{"rule":"x","from":[0],"to":[2147483647],"allow":["tcp/0"],"arrives":true}]}`}))
		for range rapid.IntRange(1, 4).Draw(t, "items") {
			v.Items = append(v.Items, item(rapid.SampledFrom([]string{"segment", "policy"}).Draw(t, "kind"), rapid.StringMatching(`[a-z]{1,8}`).Draw(t, "name"), body.Draw(t, "body")))
		}
		x, err := policies{}.Part(v, nil)
		require.NoError(t, err)
		c := x.(*policy.Part).Config()
		require.Equal(t, v.Own, c.Own)
		require.Equal(t, v.Hubs, c.Hubs)
		require.Equal(t, v.Overlay, c.Overlay)
	})
}
