package state

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"causeway/protocol"
)

// Realms say where addresses are met: within a realm each at one place, so that no claims of two sites overlap in it. No
// packet leaves it, so that another one may have the same addresses. See hub/policy.
type Realms interface {
	// Segment is the segment of a node with these labels at a site; without labels it is that of the site's ranges.
	Segment(site string, labels map[string]string) string
	// Of is the realm of a segment.
	Of(segment string) string
	// Joined says by which rules two segments are of one realm; empty if they are one segment.
	Joined(a, b string) string
	// Name is a segment as operators write it.
	Name(segment string) string
}

// divider is an ObjectKind whose objects divide nodes into realms.
type divider interface {
	// Realms are those of a state, and after them those that it may go back to by itself; empty: all nodes are in one.
	Realms(*State) []Realms
}

// knownRealms are the realms of a state, worked out when they are wanted.
type knownRealms struct {
	once   sync.Once
	realms []Realms
}

// Realms are those of the state; nil: all nodes are in one.
func (s *State) Realms() Realms {
	if all := s.allRealms(); len(all) > 0 {
		return all[0]
	}
	return nil
}

// allRealms are those of the state, and those that it may go back to.
func (s *State) allRealms() []Realms {
	if s.Objects.Len() == 0 {
		return nil
	}
	work := func() []Realms {
		for _, kind := range ObjectKinds() {
			if k, ok := objectKinds[kind].(divider); ok {
				return k.Realms(s)
			}
		}
		return nil
	}
	if s.realms == nil {
		return work()
	}
	s.realms.once.Do(func() { s.realms.realms = work() })
	return s.realms.realms
}

// divided notes that an object of a kind changed, on which realms may depend. Copies of before keep theirs.
func (s *State) divided(kind string) {
	if _, ok := objectKinds[kind].(divider); ok {
		s.realms = new(knownRealms)
	}
}

// Place is where addresses are met.
type Place struct{ Segment, Realm string }

// PlaceOf is the place of a node.
func (s *State) PlaceOf(n Node) Place { return s.place(n.claimant()) }

func (s *State) place(c claimant) (p Place) {
	if r := s.Realms(); r != nil {
		return placeIn(r, c)
	}
	return p
}

func placeIn(r Realms, c claimant) (p Place) {
	p.Segment = r.Segment(c.site, c.labels)
	p.Realm = r.Of(p.Segment)
	return p
}

// sharing are the realms of which two claimants are in one: those of the state, or those that it may go back to. ok is
// false if they share none.
func (s *State) sharing(a, b claimant) (r Realms, back, ok bool) {
	all := s.allRealms()
	if len(all) == 0 {
		return nil, false, true
	}
	for i, r := range all {
		if placeIn(r, a).Realm == placeIn(r, b).Realm {
			return r, i > 0, true
		}
	}
	return nil, false, false
}

// SegmentName is a segment as operators write it; empty: none is declared.
func (s *State) SegmentName(segment string) string {
	if r := s.Realms(); r != nil {
		return r.Name(segment)
	}
	return ""
}

// claimant is who claims a prefix: a node, or a site by its ranges.
type claimant struct {
	site   string
	labels map[string]string
	ranges bool
}

func (n Node) claimant() claimant { return claimant{site: n.Site, labels: n.Labels} }

// ClaimsBySegment says that from here on claims were held against those of their realm alone. Hubs of before knew none,
// and stop at it: they would carry two claims on one address.
type ClaimsBySegment struct{}

func (ClaimsBySegment) apply(s *State, _ time.Time) error {
	s.BySegment = true
	return nil
}

// Describe returns one line.
func (ClaimsBySegment) Describe() string {
	return "from here on nodes of segments that no rule joins may have the same addresses"
}

// errApart says that a claim is right in its realm alone.
var errApart = errors.New("it overlaps a claim in another segment")

// meet reports whether claims of two sites are held against each other. What a log holds was held against realms when
// it was decided, once ClaimsBySegment stands there.
func (s *State) meet(a, b claimant) bool {
	if s.folding {
		return !s.BySegment
	}
	_, _, ok := s.sharing(a, b)
	return ok
}

// together says in words why two claimants are in one realm, if they are not just in one segment.
func (s *State) together(a, b claimant) (why string) {
	if s.folding {
		return ""
	}
	r, back, _ := s.sharing(a, b)
	if r == nil {
		return ""
	}
	if x, y := placeIn(r, a), placeIn(r, b); x.Segment != y.Segment {
		why = ", and " + r.Joined(x.Segment, y.Segment)
	}
	if back {
		why += ", as it will be if the change that waits for 'causeway policy confirm' goes back"
	}
	return why
}

// refuses is checkClaim for who decides: nil if the claim may be made, with ClaimsBySegment if it has to be.
func (s *State) refuses(c claimant, p netip.Prefix) error {
	if err := s.checkClaim(c, p); !errors.Is(err, errApart) {
		return err
	}
	return nil
}

// claim is a prefix that is approved for a node, or a range of a site.
type claim struct {
	claimant
	node   protocol.NodeNumber // 0: a range
	prefix netip.Prefix
}

func (s *State) textOf(c claim) string {
	if c.node == 0 {
		return fmt.Sprintf("range %s of site %s", c.prefix, c.site)
	}
	return fmt.Sprintf("route %s of node %s (site %s)", c.prefix, s.Nodes.Get(c.node).Name, c.site)
}

// claimsOf yields the claims of a node.
func (s *State) claimsOf(n Node) iter.Seq[claim] {
	return func(yield func(claim) bool) {
		for _, r := range s.NodeRoutes(n.Number) {
			if r.State == protocol.RouteApproved && !yield(claim{n.claimant(), n.Number, r.Prefix}) {
				return
			}
		}
	}
}

// overlapping yields the claims that overlap p.
func (s *State) overlapping(p netip.Prefix) iter.Seq[claim] {
	return func(yield func(claim) bool) {
		for r, site := range s.Sites.Overlapping(p) {
			if !yield(claim{claimant{site: site, ranges: true}, 0, r}) {
				return
			}
		}
		for _, routes := range []iter.Seq[Route]{s.Routes.Over(p), s.Routes.Inside(p)} {
			for r := range routes {
				if r.State == protocol.RouteApproved && !yield(claim{s.Nodes.Get(r.Node).claimant(), r.Node, r.Prefix}) {
					return
				}
			}
		}
	}
}

// checkRealms says which claims a draft brings into one realm that overlap and were in two, and which of those that it
// makes do not hold any more once all of it is done.
func (d *Draft) checkRealms() error {
	if d.base == nil {
		return nil
	}
	divided := d.base.realms != d.State.realms
	var nodes []Node // whose realm may be another
	if divided {
		nodes = d.LiveNodes()
	} else {
		for _, c := range d.changes {
			if c, ok := c.(NodeLabelled); ok && d.Nodes.Get(c.Number).Live() {
				nodes = append(nodes, d.Nodes.Get(c.Number))
			}
		}
	}
	if len(nodes) == 0 && !divided {
		return nil
	}
	for _, n := range nodes {
		if d.stays(claim{n.claimant(), n.Number, netip.Prefix{}}) {
			continue
		}
		for c := range d.claimsOf(n) {
			if err := d.comes(c); err != nil {
				return err
			}
		}
	}
	for _, site := range d.Sites.All() {
		c := claim{claimant: claimant{site: site.Name, ranges: true}}
		if !divided || d.stays(c) {
			continue
		}
		for _, c.prefix = range site.Ranges {
			if err := d.comes(c); err != nil {
				return err
			}
		}
	}
	return d.checkMade()
}

// before is a claimant as it was before the draft.
func (d *Draft) before(c claim) claimant {
	if n, ok := d.base.Nodes.Find(c.node); ok {
		return n.claimant()
	}
	return c.claimant
}

// stays reports whether a claimant's realms are called what they were.
func (d *Draft) stays(c claim) bool {
	was, is := d.base.allRealms(), d.allRealms()
	return len(was) == len(is) && !slices.ContainsFunc(is, func(r Realms) bool {
		return placeIn(r, c.claimant).Realm != placeIn(was[slices.Index(is, r)], d.before(c)).Realm
	})
}

// comes says which claim overlaps c that shared no realm with it before and does now.
func (d *Draft) comes(c claim) error {
	for o := range d.overlapping(c.prefix) {
		if o.node == c.node && o.node != 0 || o.site == c.site && (o.ranges || c.ranges) {
			continue
		}
		_, _, together := d.sharing(c.claimant, o.claimant)
		if _, _, were := d.base.sharing(d.before(c), d.before(o)); !together || were {
			continue
		}
		why := d.together(c.claimant, o.claimant)
		if !strings.Contains(why, "join") { // one segment
			why = ", and both would be in segment " + cmp.Or(d.SegmentName(d.place(c.claimant).Segment), "unassigned") + why
		}
		return Errorf(Conflict, "%s overlaps %s%s; first reject one of them, or keep the segments apart", d.textOf(c), d.textOf(o), why)
	}
	return nil
}

// checkMade holds the claims that a draft makes against all that it does.
func (d *Draft) checkMade() error {
	for _, c := range d.changes {
		var k RouteKey
		switch c := c.(type) {
		case RouteDecided:
			k = RouteKey{c.Node, c.Prefix}
		case RouteAnnounced:
			k = RouteKey{c.Node, c.Prefix}
		case ObjectPut:
			if site, ok := d.Sites.Find(c.Name); ok && c.Kind == KindSite {
				for _, p := range site.Ranges {
					if err := d.refuses(claimant{site: site.Name, ranges: true}, p); err != nil {
						return err
					}
				}
			}
			continue
		default:
			continue
		}
		if d.Routes.Get(k).State == protocol.RouteApproved {
			if err := d.refuses(d.Nodes.Get(k.Node).claimant(), k.Prefix); err != nil {
				return err
			}
		}
	}
	return nil
}
