package state

import (
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

// checkClaim says why prefix p cannot be a range of a site, or approved for a node: within a realm no claims of two sites
// overlap. Within a site the same prefix from several nodes is one HA group, and a longer prefix inside another is
// allowed. What is right in its realm alone, before ClaimsBySegment, is errApart.
func (s *State) checkClaim(c claimant, p netip.Prefix) error {
	if err := s.checkPrefix(p); err != nil {
		return err
	}
	apart := false
	for o := range s.overlapping(p) {
		switch {
		case o.site == c.site && (c.ranges || o.ranges || s.folding):
		case o.site == c.site:
			apart = apart || !s.meet(c, o.claimant)
		case !s.meet(c, o.claimant):
			apart = true
		case o.ranges:
			return Errorf(Conflict, "%s overlaps %s%s", p, s.textOf(o), s.together(c, o.claimant))
		default:
			return Errorf(Conflict, "%s overlaps %s%s; reject that one first", p, s.textOf(o), s.together(c, o.claimant))
		}
	}
	if apart && !s.BySegment && !s.folding {
		return errApart
	}
	return nil
}

// ClaimConflict says what keeps a prefix from being approved for a node; nil: nothing.
func (s *State) ClaimConflict(n Node, p netip.Prefix) error { return s.refuses(n.claimant(), p) }

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
