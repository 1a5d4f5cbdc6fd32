package items

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

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
		item("policy", "main", `{"rules":[{"rule":"web","from":[2],"to":[1],"allow":["tcp/80-90","icmp"]}]}`),
		item("policy", "bad", `{"rules":[{"rule":"x","from":[2],"to":[1],"allow":["gre"]}]}`),
		item("policy", "worse", `[]`),
		item("segment", "prod", `{"rules":[{"rule":"inside","from":[3],"to":[1],"allow":["any","tcp"]}]}`),
	}
	open := func(from, to string, proto policy.Proto, port uint16) string {
		rule, ok := part().Config().Opens(netip.MustParseAddr(from), netip.MustParseAddr(to), proto, port)
		require.Equal(t, ok, rule != "")
		return rule
	}
	require.Equal(t, "main.web", open("10.2.0.1", "10.1.0.1", policy.TCP, 85))
	require.Equal(t, "main.web", open("198.18.0.3", "198.18.0.2", policy.ICMP, 0))
	require.Empty(t, open("10.2.0.1", "10.1.0.1", policy.TCP, 91))
	require.Empty(t, open("10.1.0.1", "10.2.0.1", policy.TCP, 85), "the other direction")
	require.Empty(t, open("10.3.0.1", "10.1.0.1", policy.TCP, 85), "the peer has no such prefix")
	require.Empty(t, open("10.2.0.7", "10.1.0.1", policy.TCP, 85), "said to be of two classes")
	require.Len(t, part().Config().Local, 3)
	require.Len(t, Take(v, nil).Refused, 2)
	v.Interface = ""
	_, err := policies{}.Part(v, nil)
	require.Error(t, err)
}
