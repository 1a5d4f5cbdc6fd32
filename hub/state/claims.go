package state

import (
	"net/netip"

	"causeway/protocol"
)

// forbidden is never routed into a tunnel, nor is anything that overlaps it.
var forbidden = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::/128"), "the unspecified address"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4 in IPv6"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// CheckPrefix says why nobody may claim p, whatever an admin decides: default
// routes, loopback, link-local, multicast, the overlay.
func CheckPrefix(p netip.Prefix, overlay []netip.Prefix) error {
	if !p.IsValid() {
		return Errorf(Invalid, "not a CIDR")
	}
	if p != p.Masked() {
		return Errorf(Invalid, "%s has host bits set; write %s", p, p.Masked())
	}
	if p.Bits() == 0 {
		return Errorf(Invalid, "%s is a default route; these are never routed into the tunnel", p)
	}
	for _, f := range forbidden {
		if f.prefix.Overlaps(p) {
			return Errorf(Invalid, "%s overlaps %s (%s)", p, f.prefix, f.what)
		}
	}
	for _, o := range overlay {
		if o.Overlaps(p) {
			return Errorf(Invalid, "%s overlaps the overlay range %s, which nobody may claim", p, o)
		}
	}
	return nil
}

// checkRange checks a site's range against every other site's claims.
func (s *State) checkRange(site string, p netip.Prefix) error {
	if err := CheckPrefix(p, s.Overlay); err != nil {
		return err
	}
	for _, o := range s.Sites {
		if o.Name == site {
			continue
		}
		for _, r := range o.Ranges {
			if r.Overlaps(p) {
				return Errorf(Conflict, "%s overlaps range %s of site %s", p, r, o.Name)
			}
		}
	}
	return s.checkCarried(site, p)
}

// checkCarried checks p, claimed by site, against the routes carried for other sites.
func (s *State) checkCarried(site string, p netip.Prefix) error {
	for _, r := range s.Routes {
		if r.State != protocol.RouteApproved || !r.Prefix.Overlaps(p) {
			continue
		}
		if n := s.Nodes[r.Node]; n.Site != site {
			return Errorf(Conflict, "%s overlaps route %s of node %s (site %s); reject that one first", p, r.Prefix, n.Name, n.Site)
		}
	}
	return nil
}

// checkClaim says why prefix p cannot be approved for a node of site: between
// sites no claims overlap. Within a site the same prefix from several nodes is
// one HA group, and a longer prefix inside another is allowed.
func (s *State) checkClaim(site string, p netip.Prefix) error { return s.checkRange(site, p) }

// ClaimConflict says what keeps a prefix from being approved for a node of site; nil: nothing.
func (s *State) ClaimConflict(site string, p netip.Prefix) error { return s.checkClaim(site, p) }

// inRange reports whether p lies inside a range of site.
func (s *State) inRange(site string, p netip.Prefix) bool {
	return within(p, s.Sites[site].Ranges)
}

// within reports whether p lies inside one of the ranges.
func within(p netip.Prefix, ranges []netip.Prefix) bool {
	for _, r := range ranges {
		if r.Contains(p.Addr()) && r.Bits() <= p.Bits() {
			return true
		}
	}
	return false
}

// ValidOverlay checks overlay ranges: at least one, at most one of each
// family, masked, with room for nodes, and none of the forbidden ranges.
func ValidOverlay(ranges []netip.Prefix) error {
	if len(ranges) == 0 {
		return Errorf(Invalid, "no overlay range")
	}
	var four, six int
	for _, p := range ranges {
		if err := CheckPrefix(p, nil); err != nil {
			return err
		}
		if p.Addr().Is4() {
			four++
		} else {
			six++
		}
		if p.Addr().BitLen()-p.Bits() < 2 {
			return Errorf(Invalid, "overlay range %s has no room for nodes", p)
		}
	}
	if four > 1 || six > 1 {
		return Errorf(Invalid, "more than one overlay range of one address family")
	}
	return nil
}
