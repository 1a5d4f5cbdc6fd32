package netmapcheck

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOverlay(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("198.18.0.9"), netip.MustParseAddr("fd63:7761:7900::9")}
	for _, c := range []struct {
		ranges []string
		why    string
	}{
		{[]string{"198.18.0.0/15", "fd63:7761:7900::/96"}, ""},
		{[]string{"198.18.0.0/16", "fd63:7761:7900::/96"}, ""},
		{nil, "no overlay range"},
		{[]string{"198.18.0.0/15"}, "fd63:7761:7900::9 is outside"},
		{[]string{"198.18.0.0/15", "fd63:7761:7900::/96", "10.0.0.0/8"}, "second one"},
		{[]string{"10.0.0.0/8", "fd63:7761:7900::/96"}, "not that of this node's own address"},
		{[]string{"198.0.0.0/8", "fd63:7761:7900::/96"}, "not that of this node's own address"},
		{[]string{"0.0.0.0/0", "fd63:7761:7900::/96"}, "default route"},
		{[]string{"198.18.0.9/15", "fd63:7761:7900::/96"}, "host bits"},
		{[]string{"198.18.0.0/15", "fe80::/64"}, "link-local"},
	} {
		why := Overlay(pfx(c.ranges...), 9, own)
		if c.why == "" {
			require.Empty(t, why, c.ranges)
		} else {
			require.Contains(t, why, c.why, c.ranges)
		}
	}
}
