// Package hijack generates claims on what is not the claimant's, for the tests of
// every door through which a claim may come.
package hijack

import (
	"math/rand/v2"
	"net/netip"

	"causeway/protocol"
)

// Claims generates n different claims, each with its kind, by the same sequence every
// time. Every one overlaps one of victims or a range that nobody may claim.
func Claims(n int, victims ...netip.Prefix) map[netip.Prefix]string {
	r := rand.New(rand.NewPCG(7, 11))
	prefix := netip.MustParsePrefix
	reserved := []struct {
		kind   string
		prefix netip.Prefix
	}{
		{"loopback", prefix("127.0.0.0/8")}, {"loopback", prefix("::1/128")},
		{"link-local", prefix("169.254.0.0/16")}, {"link-local", prefix("fe80::/10")},
		{"multicast", prefix("224.0.0.0/4")}, {"multicast", prefix("ff00::/8")},
		{"overlay", protocol.DefaultOverlay4}, {"overlay", protocol.DefaultOverlay6},
		{"mapped", prefix("::ffff:0:0/96")}, {"this network", prefix("0.0.0.0/8")},
	}
	out := map[netip.Prefix]string{prefix("0.0.0.0/0"): "default", prefix("::/0"): "default", prefix("198.18.0.1/32"): "the hub's overlay address",
		prefix("198.18.0.2/32"): "a node's overlay address", prefix("fd63:7761:7900::1/128"): "the hub's overlay address",
		prefix("::ffff:10.1.1.0/120"): "mapped, a victim's"}
	for len(out) < n {
		v, kind := victims[r.IntN(len(victims))], "contained"
		if r.IntN(4) == 0 {
			x := reserved[r.IntN(len(reserved))]
			v, kind = x.prefix, x.kind
		}
		a := v.Addr().AsSlice()
		bits := r.IntN(v.Addr().BitLen() + 1)
		if bits >= v.Bits() {
			for i := v.Bits(); i < len(a)*8; i++ { // an address inside v
				if r.IntN(2) == 1 {
					a[i/8] |= 0x80 >> (i % 8)
				}
			}
		} else {
			kind = "containing"
		}
		addr, _ := netip.AddrFromSlice(a)
		p := netip.PrefixFrom(addr, bits)
		if bits == v.Bits() {
			kind = "equal"
		}
		if r.IntN(20) != 0 { // some keep their host bits
			p = p.Masked()
		}
		out[p] = kind
	}
	return out
}
