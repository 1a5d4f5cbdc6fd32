package look

import (
	"net/netip"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/netns"
	"causeway/netns/netnstest"
)

var sh = netnstest.Sh

// host is a namespace with an underlay link and the tunnel's device, and both that apply plans to it and look at it.
func host(t *testing.T) (*netns.Host, *Host) {
	t.Helper()
	netnstest.Host(t)
	h := netns.NewHost(t.TempDir(), zerolog.New(zerolog.NewTestWriter(t)))
	return h, At(h)
}

func plan(t *testing.T, c netns.Config) netns.Plan {
	t.Helper()
	p, err := netns.NewPlan(c)
	require.NoError(t, err)
	return p
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

// testConfig has ranges of other nodes, some held closed, one with a host that is thrown back, and ranges of the node's own.
func testConfig() netns.Config {
	c := netns.Config{
		Interface: netns.DefaultInterface, MTU: 1380, Mark: netns.DefaultMark, Table: netns.DefaultTable,
		Overlay: []netip.Addr{netip.MustParseAddr("fd63:7761:7900::2"), netip.MustParseAddr("198.18.0.2")},
		Routes:  prefixes("10.0.0.0/8", "198.18.0.0/15", "fd63:7761:7900::/96", "fd10:2::/64", "10.2.0.0/16"),
		Local:   prefixes("10.1.0.0/16", "fd10:1::/64"),
		Except:  []netns.Exception{{Prefix: netip.MustParsePrefix("10.2.0.53/32")}},
		Uses:    netns.Uses{Forward4: []string{"pods"}, Forward6: true, Bridges: []string{"pods"}},
	}
	c.Held = append(prefixes("10.9.0.0/16", "fd10:9::/64"), c.Routes...)
	return c
}
