package protocol

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheckPrefix(t *testing.T) {
	for _, s := range []string{"10.0.0.0/8", "192.168.1.1/32", "32.0.0.0/3", "2000::/3", "fd00:1::/64", "100.64.0.0/10", "198.18.0.0/15"} {
		require.NoError(t, CheckPrefix(netip.MustParsePrefix(s)), s)
	}
	for s, want := range map[string]string{
		"0.0.0.0/0": "is a default route", "::/0": "is a default route", "128.0.0.0/1": "is nearly a default route", "4000::/2": "is nearly a default route",
		"10.1.2.3/8": "has host bits set, write 10.0.0.0/8", "0.0.0.0/8": "overlaps 0.0.0.0/8 ('this network')", "127.1.0.0/16": "overlaps 127.0.0.0/8 (loopback)",
		"96.0.0.0/3": "overlaps 127.0.0.0/8", "169.254.169.254/32": "overlaps 169.254.0.0/16", "224.0.0.0/4": "multicast", "240.0.0.0/8": "overlaps 240.0.0.0/4 (reserved addresses)",
		"255.255.255.255/32": "reserved addresses", "::1/128": "loopback", "::/128": "loopback", "::ffff:10.0.0.0/104": "IPv4 addresses in IPv6 form", "fe80::/64": "link-local", "ff02::1/128": "multicast",
	} {
		require.ErrorContains(t, CheckPrefix(netip.MustParsePrefix(s)), want, s)
	}
	require.Error(t, CheckPrefix(netip.Prefix{}))
}

func TestReserved(t *testing.T) {
	for _, s := range []string{"0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.1.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%eth0", "ff02::1", "::ffff:127.0.0.1"} {
		require.True(t, Reserved(netip.MustParseAddr(s)), s)
	}
	require.True(t, Reserved(netip.Addr{}))
	for _, s := range []string{"10.1.1.1", "203.0.113.1", "2001:db8::1", "fd00::1"} {
		require.False(t, Reserved(netip.MustParseAddr(s)), s)
	}
}
