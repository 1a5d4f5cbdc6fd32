package netmapcheck

import (
	"fmt"
	"net/netip"
	"slices"

	"causeway/protocol"
)

// Overlay says why the overlay ranges of a hub list are not taken; "" if they
// are. These ranges are routed into the tunnel without being in accept:, so a
// list may not bring in others by them: there is at most one of each family,
// it has the shape of a route, and this node's number has one of its own
// addresses there, which fixes where the range begins.
func Overlay(ranges []netip.Prefix, n protocol.NodeNumber, own []netip.Addr) string {
	if len(ranges) == 0 {
		return "it has no overlay range"
	}
	var c checker
	seen := map[bool]bool{}
	var mapped []netip.Addr
	for _, r := range ranges {
		if why := c.shape(r); why != "" {
			return fmt.Sprintf("overlay range %s: %s", r, why)
		}
		if seen[r.Addr().Is4()] {
			return fmt.Sprintf("overlay range %s is the second one of its address family", r)
		}
		seen[r.Addr().Is4()] = true
		if a, err := n.Overlay(r); err != nil || !slices.Contains(own, a) {
			return fmt.Sprintf("overlay range %s is not that of this node's own address", r)
		} else {
			mapped = append(mapped, a)
		}
	}
	for _, a := range own {
		if !slices.Contains(mapped, a) {
			return fmt.Sprintf("this node's overlay address %s is outside its overlay ranges", a)
		}
	}
	return ""
}
