package state

import (
	"iter"
	"net/netip"

	"causeway/protocol"
)

// CheckPrefix says why nobody may claim p, whatever an admin decides: what no agent
// takes (see protocol.CheckPrefix), and the overlay.
func CheckPrefix(p netip.Prefix, overlay []netip.Prefix) error {
	if err := protocol.CheckPrefix(p); err != nil {
		return Errorf(Invalid, "%s %v", p, err)
	}
	return inOverlay(p, overlay)
}

func inOverlay(p netip.Prefix, overlay []netip.Prefix) error {
	for _, o := range overlay {
		if o.Overlaps(p) {
			return Errorf(Invalid, "%s overlaps the overlay range %s, which nobody may claim", p, o)
		}
	}
	return nil
}

// checkPrefix is CheckPrefix where something is decided. What a log holds folds although
// agents refuse it: the hub that decided it knew an older rule.
func (s *State) checkPrefix(p netip.Prefix) error {
	if !s.folding {
		return CheckPrefix(p, s.Overlay)
	}
	if !p.IsValid() || p != p.Masked() || p.Bits() == 0 {
		return Errorf(Invalid, "%s is no prefix that can be claimed", p)
	}
	return inOverlay(p, s.Overlay)
}

// checkRange checks a site's range against every other site's claims.
func (s *State) checkRange(site string, p netip.Prefix) error {
	if err := s.checkPrefix(p); err != nil {
		return err
	}
	for r, other := range s.Sites.Overlapping(p) {
		if other != site {
			return Errorf(Conflict, "%s overlaps range %s of site %s", p, r, other)
		}
	}
	return s.checkCarried(site, p)
}

// checkCarried checks p, claimed by site, against the routes carried for other sites.
func (s *State) checkCarried(site string, p netip.Prefix) error {
	for _, routes := range []iter.Seq[Route]{s.Routes.Over(p), s.Routes.Inside(p)} {
		for r := range routes {
			if r.State != protocol.RouteApproved {
				continue
			}
			if n := s.Nodes.Get(r.Node); n.Site != site {
				return Errorf(Conflict, "%s overlaps route %s of node %s (site %s); reject that one first", p, r.Prefix, n.Name, n.Site)
			}
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
	return within(p, s.Sites.Get(site).Ranges)
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
