package protocol

import (
	"errors"
	"fmt"
	"net/netip"
)

// LeastPrefixBits is how long a prefix has to be to be no part of a default route.
const LeastPrefixBits = 3

// reserved are addresses that no node, pod or LAN has (IANA's registries of special
// addresses, RFC 6890): nothing that overlaps them is ever routed into the tunnel.
var reserved = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "'this network'"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved addresses"},
	{netip.MustParsePrefix("::/127"), "loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4 addresses in IPv6 form"},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// CheckPrefix says why p can never be routed into a tunnel, nil if it can: it is no prefix, a
// default route or nearly one, or overlaps reserved addresses. The error continues "p …".
// Hubs and agents judge by it, so that what a hub approves is no reason for an agent to
// refuse; whether p is somebody's already is for them to see.
func CheckPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid() || p.Addr().Zone() != "":
		return errors.New("is no prefix such as 10.1.0.0/16")
	case p != p.Masked():
		return fmt.Errorf("has host bits set, write %s", p.Masked())
	case p.Bits() == 0:
		return errors.New("is a default route, which the tunnel never takes")
	case p.Bits() < LeastPrefixBits:
		return errors.New("is nearly a default route, which the tunnel never takes")
	}
	for _, r := range reserved {
		if r.prefix.Overlaps(p) {
			return fmt.Errorf("overlaps %s (%s)", r.prefix, r.what)
		}
	}
	return nil
}

// Reserved reports whether a is an address that no host of a network has.
func Reserved(a netip.Addr) bool {
	a = a.WithZone("")
	for _, r := range reserved {
		if r.prefix.Contains(a) {
			return true
		}
	}
	return !a.IsValid()
}
