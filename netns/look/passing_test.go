package look

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// Rules before the tunnel's that lead what is closed elsewhere are named, and no others.
func TestPassingRules(t *testing.T) {
	set, h := host(t)
	p := plan(t, testConfig())
	require.NoError(t, set.Apply(context.Background(), p))
	sh(t, `ip -6 route add default dev eth0
		ip route add default via 192.0.2.1 table 100; ip route add 10.2.4.0/24 via 192.0.2.1 table 101; ip route add 10.1.0.0/16 dev pods table 102; ip route add throw 10.2.0.0/16 table 102`)
	for _, c := range []struct{ rule, want string }{
		{"pref 100 lookup main", "rule 'pref 100 lookup main' (ip -4 rule) of 10.0.0.0, certain"},
		{"pref 101 from 10.1.0.0/24 lookup 100", "rule 'pref 101 from 10.1.0.0/24 lookup 100' (ip -4 rule) of 10.0.0.0, certain"},
		{"pref 102 from 192.168.0.0/16 lookup 100", "rule 'pref 102 from 192.168.0.0/16 lookup 100' (ip -4 rule) of 10.0.0.0"},
		{"pref 103 fwmark 0x80/0x80 lookup main", "rule 'pref 103 fwmark 0x80/0x80 lookup main' (ip -4 rule) of 10.0.0.0"},
		{"pref 104 lookup 101", "rule 'pref 104 lookup 101' (ip -4 rule) of 10.2.4.0, certain"},
		{"pref 105 to 10.9.0.0/16 lookup 100", "rule 'pref 105 to 10.9.0.0/16 lookup 100' (ip -4 rule) of 10.9.0.0, certain"},
		{"pref 106 not fwmark 0xca6c lookup 100", "rule 'pref 106 not fwmark 0xca6c lookup 100' (ip -4 rule) of 10.0.0.0, certain"},
		{"pref 107 goto 32766", "rule 'pref 107 goto 32766' (ip -4 rule) of 10.0.0.0, certain"},
		{"pref 108 lookup main suppress_prefixlength 0", ""}, // the host's own networks are none of the tunnel's
		{"pref 109 lookup 102", ""},
		{"pref 110 to 203.0.113.0/24 lookup 100", ""},
		{"pref 111 to 10.2.0.53 lookup main", ""}, // stays outside
		{"pref 112 blackhole", ""},
		{"pref 6000 lookup main", ""},
	} {
		sh(t, "ip rule add "+c.rule)
		l, err := h.Passing()
		require.NoError(t, err)
		got := ""
		for _, x := range l {
			got += x.String() + " of " + x.Of.String()
			if x.Certain {
				got += ", certain"
			}
		}
		require.Equal(t, c.want, got, c.rule)
		sh(t, "ip rule del "+c.rule)
	}
	// As 'causeway diag explain' mends it: past that rule, for the range that it takes.
	sh(t, "ip rule add pref 100 to 10.9.0.0/16 lookup main; ip rule add pref 99 to 10.9.0.0/16 goto 5206")
	l, err := h.Passing()
	require.NoError(t, err)
	require.Empty(t, l)
	sh(t, "ip rule del pref 99; ip rule add pref 99 to 10.9.7.0/24 goto 5206")
	l, err = h.Passing()
	require.NoError(t, err)
	require.Len(t, l, 1, "of a part alone")
	require.Equal(t, "10.9.0.0", l[0].Of.String())
	sh(t, "ip rule del pref 99; ip rule del pref 100; ip -6 rule add pref 100 lookup main")
	l, err = h.Passing()
	require.NoError(t, err)
	require.Len(t, l, 1)
	require.Equal(t, "rule 'pref 100 lookup main' (ip -6 rule)", l[0].String())
	require.True(t, l[0].Certain)
}
