package onhost

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// A hub names a service of this host itself as a peer's address.
func TestElsewhere(t *testing.T) {
	ap := netip.MustParseAddrPort
	l := []netip.AddrPort{ap("127.0.0.1:53"), ap("192.0.2.1:443"), ap("[::1]:53"), ap("[::ffff:127.0.0.2]:53"), ap("[2001:db8::1]:1")}
	require.Equal(t, []netip.AddrPort{ap("192.0.2.1:443"), ap("[2001:db8::1]:1")}, elsewhere(l))
	require.Len(t, l, 5)
	require.Equal(t, ap("127.0.0.1:53"), l[0], "the netmap is as it was")
	require.Empty(t, elsewhere(nil))
}
