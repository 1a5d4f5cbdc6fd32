package policy

import (
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// What is tried as closed is closed, what is tried as open is open, and no pair of which something is closed is left out.
func TestTries(t *testing.T) {
	in := bank()
	in.Policies[0].Rules = append(in.Policies[0].Rules, api.PolicyRule{Name: "all", From: api.PolicyEndpoint{Site: "eu"}, To: api.PolicyEndpoint{Site: "eu"}, Allow: []string{"any"}},
		api.PolicyRule{Name: "most", From: api.PolicyEndpoint{Site: "eu"}, To: api.PolicyEndpoint{Site: "sh"}, Allow: []string{"tcp/1-21", "tcp/22-65534", "udp"}})
	c := compile(t, in, nil)
	closed, open, left := c.Tries(1 << 20)
	require.Zero(t, left)
	has := func(x Try) bool {
		for _, a := range c.Allows(x.Pair) {
			if a.Has(x.Port) {
				return true
			}
		}
		return false
	}
	tried := map[Pair]map[protocol.Proto]bool{}
	for _, x := range closed {
		require.False(t, has(x) || x.Open, "%v", x)
		require.Equal(t, x.Port.First, x.Port.Last)
		require.False(t, x.Port.First >= protocol.OverlayPortFirst && x.Port.First <= protocol.OverlayPortLast)
		if tried[x.Pair] == nil {
			tried[x.Pair] = map[protocol.Proto]bool{}
		}
		tried[x.Pair][x.Port.Proto] = true
	}
	for _, x := range open {
		require.True(t, has(x) && x.Open && x.Rule != "", "%v", x)
	}
	for _, a := range c.Classes {
		for _, b := range c.Classes {
			for _, proto := range []protocol.Proto{protocol.ProtoTCP, protocol.ProtoUDP, protocol.ProtoICMP} {
				shut := false
				for n := range uint16(65535) {
					p := protocol.Ports{Proto: proto, First: n + 1, Last: n + 1}
					if proto == protocol.ProtoICMP {
						p = protocol.Ports{Proto: proto}
					}
					shut = shut || !has(Try{Pair: Pair{a.ID, b.ID}, Port: p})
				}
				require.Equal(t, shut, tried[Pair{a.ID, b.ID}][proto], "%v %v %v", a.Sides, b.Sides, proto)
			}
		}
	}
	some, _, left := c.Tries(5)
	require.Len(t, some, 5)
	require.Equal(t, len(closed)-5, left)

	// The ports that are served to others come first.
	web, err := c.classOf(Met{Addr: addr("10.1.2.2")})
	require.NoError(t, err)
	db, err := c.classOf(Met{Addr: addr("10.2.1.2")})
	require.NoError(t, err)
	for _, x := range closed {
		if x.Pair == (Pair{web.ID, db.ID}) && x.Port.Proto == protocol.ProtoTCP {
			require.Equal(t, ports("tcp/5432"), x.Port)
		}
	}
}
