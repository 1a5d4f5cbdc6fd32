package protocol

import (
	"fmt"
	"net/netip"
)

// NodeNumber is the 24-bit number of a node or hub. Numbers are given by the
// hub's state and never used again. Zero is no node: on the wire it means
// 'the hub that I am talking to'.
type NodeNumber uint32

// MaxNodeNumber is the largest number that fits the three reserved bytes of a
// WireGuard message.
const MaxNodeNumber NodeNumber = 1<<24 - 1

// Valid reports whether n names a node: not zero and within 24 bits.
func (n NodeNumber) Valid() bool { return n > 0 && n <= MaxNodeNumber }

// Overlay returns the address of node n in the overlay range p: base + number.
// It fails if n is not valid or the sum leaves the range.
func (n NodeNumber) Overlay(p netip.Prefix) (netip.Addr, error) {
	if !n.Valid() {
		return netip.Addr{}, fmt.Errorf("node number %d is not between 1 and %d", n, MaxNodeNumber)
	}
	p = p.Masked()
	b := p.Addr().AsSlice()
	carry := uint32(n)
	for i := len(b) - 1; i >= 0 && carry > 0; i-- {
		carry += uint32(b[i])
		b[i] = byte(carry)
		carry >>= 8
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok || carry > 0 || !p.Contains(a) {
		return netip.Addr{}, fmt.Errorf("overlay range %s has no address for node number %d", p, n)
	}
	return a, nil
}

// Default overlay ranges. 100.64.0.0/10 is avoided because clouds use it.
var (
	DefaultOverlay4 = netip.MustParsePrefix("198.18.0.0/15")
	DefaultOverlay6 = netip.MustParsePrefix("fd63:7761:7900::/96")
)
