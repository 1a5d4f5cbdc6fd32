package state

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"causeway/protocol"
)

// sites is the kind of sites. It is here and not in hub/object, for the log cannot be folded without it: nodes,
// tokens, routes and other sites' ranges are held against sites.
type sites struct{}

var _ tabled = sites{}

func init() { RegisterKind(sites{}) }

func (sites) Kind() string               { return KindSite }
func (sites) Shape() uint32              { return 1 }
func (sites) Essential() bool            { return true }
func (sites) Check(*State, Object) error { return nil } // see put
func (sites) Names(Object) []ObjectKey   { return nil }

// DefaultMaxAge is how long the agents of a site go on without any hub when nobody
// said otherwise.
const DefaultMaxAge = 7 * 24 * time.Hour

// Bounds of a max_age that is not for ever. Agents write down now and then that they
// heard a hub: one that is too short would end at a reboot.
const (
	minMaxAge = time.Hour
	maxMaxAge = 10 * 366 * 24 * time.Hour
)

// Fields are the site's as operators declare them.
func (s Site) Fields() protocol.SiteFields {
	f := protocol.SiteFields{MaxAge: protocol.MaxAge(s.MaxAge), RotateKeys: protocol.RotateKeys(s.RotateKeys)}
	if f.MaxAge == 0 {
		f.MaxAge = protocol.Forever
	}
	if f.RotateKeys == 0 {
		f.RotateKeys = protocol.Never
	}
	if len(s.Ranges) > 0 {
		f.Ranges = slices.Compact(slices.SortedFunc(slices.Values(s.Ranges), netip.Prefix.Compare))
	}
	return f
}

// with is the site with these fields.
func (s Site) with(f protocol.SiteFields) Site {
	s.Ranges, s.MaxAge, s.RotateKeys = f.Ranges, time.Duration(f.MaxAge), time.Duration(f.RotateKeys)
	if f.MaxAge == protocol.Forever {
		s.MaxAge = 0
	}
	if f.RotateKeys == protocol.Never {
		s.RotateKeys = 0
	}
	return s
}

func (k sites) Canonical(spec json.RawMessage) (json.RawMessage, error) {
	return k.over(New(), "", spec)
}

// over reads a spec: what it leaves out stays as it is.
func (sites) over(s *State, name string, spec json.RawMessage) (json.RawMessage, error) {
	f := Site{MaxAge: DefaultMaxAge}.Fields()
	if old, there := s.Sites.Find(name); there {
		f = old.Fields()
	}
	ranges := f.Ranges
	f.Ranges = nil
	if err := ReadStrictly(spec, &f); err != nil {
		return nil, err
	}
	if f.Ranges == nil {
		f.Ranges = ranges
	}
	for _, p := range f.Ranges {
		if !p.IsValid() {
			return nil, Errorf(Invalid, "ranges: not a CIDR such as 10.1.0.0/16")
		}
		if p != p.Masked() {
			return nil, Errorf(Invalid, "ranges: %s has host bits set, write %s", p, p.Masked())
		}
	}
	return json.Marshal(Site{}.with(f).Fields())
}

// find is the site as an object.
func (k sites) find(s *State, name string) (Object, bool) {
	site, ok := s.Sites.Find(name)
	if !ok {
		return Object{}, false
	}
	return k.object(site), true
}

func (k sites) object(site Site) Object {
	o := Object{Kind: KindSite, Name: site.Name, Shape: k.Shape(), Essential: true, Generation: site.Generation, Created: site.Created, Changed: site.Changed}
	if o.Changed.IsZero() {
		o.Changed = site.Created
	}
	o.Spec, _ = json.Marshal(site.Fields()) // durations and prefixes
	return o
}

func (k sites) all(s *State) (l []Object) {
	for _, site := range s.Sites.All() {
		l = append(l, k.object(site))
	}
	return l
}

// put makes a site of an object. What is as it was is not asked for anew: rules of before may have let it in.
func (sites) put(s *State, o Object) error {
	var f protocol.SiteFields
	if err := ReadStrictly(o.Spec, &f); err != nil {
		return fmt.Errorf("%s: %w", o.Key(), err)
	}
	old, there := s.Sites.Find(o.Name)
	site := Site{Name: o.Name, Created: o.Created, Changed: o.Changed, Generation: o.Generation}.with(f)
	if there {
		site.Created = old.Created
	}
	if site.MaxAge != old.MaxAge && f.MaxAge != protocol.Forever {
		if err := s.checkTerm("max_age", site.MaxAge, minMaxAge, "forever"); err != nil {
			return err
		}
	}
	if site.RotateKeys != old.RotateKeys && f.RotateKeys != protocol.Never {
		if err := s.checkTerm("rotate_keys", site.RotateKeys, protocol.MinRotateKeys, "never"); err != nil {
			return err
		}
	}
	if !there || !slices.Equal(old.Fields().Ranges, site.Ranges) {
		if err := s.checkRanges(o.Name, site.Ranges); err != nil {
			return err
		}
	}
	s.Sites.Set(o.Name, site)
	return nil
}

// checkTerm bounds a length of time where something is decided; what a log holds folds.
func (s *State) checkTerm(field string, d, least time.Duration, none string) error {
	if !s.folding && (d < least || d > maxMaxAge) {
		return Errorf(Invalid, "%s %s: use %s to %s, or %s", field, d, least, maxMaxAge, none)
	}
	return nil
}

// checkRanges says what keeps a site from having these ranges.
func (s *State) checkRanges(site string, ranges []netip.Prefix) error {
	if len(ranges) > protocol.MaxNodeRoutes {
		return Errorf(Invalid, "%d ranges; at most %d", len(ranges), protocol.MaxNodeRoutes)
	}
	for _, p := range ranges {
		if err := s.checkClaim(claimant{site: site, ranges: true}, p); err != nil {
			return err
		}
	}
	return s.checkNeeded(site, ranges)
}

// checkNeeded says which routes of a site would lie in none of its ranges, though
// nothing but a range approved them.
func (s *State) checkNeeded(site string, ranges []netip.Prefix) error {
	var first Route
	more := 0
	for _, n := range s.LiveNodesOf(site) {
		for _, r := range s.NodeRoutes(n) {
			if r.State != protocol.RouteApproved || r.By != ByRange || within(r.Prefix, ranges) {
				continue
			}
			if more++; more == 1 {
				first = r
			}
		}
	}
	if more == 0 {
		return nil
	}
	others := ""
	if more > 1 {
		others = fmt.Sprintf(" and %d more", more-1)
	}
	name := s.Nodes.Get(first.Node).Name
	return Errorf(Conflict, "a range of site %s that would go approved route %s of node %s%s; first reject it, or keep it by 'causeway route approve %s %s'", site, first.Prefix, name, others, name, first.Prefix)
}

// drop takes a site without live nodes away and revokes its open tokens.
func (sites) drop(s *State, name string, t time.Time) error {
	if !s.Sites.Has(name) {
		return noSite(s, name)
	}
	if of := s.LiveNodesOf(name); len(of) > 0 {
		return Errorf(Conflict, "site %s still has node %s; let its nodes leave or revoke them first", name, s.Nodes.Get(of[0]).Name)
	}
	if err := s.named(ObjectKey{KindSite, name}); err != nil {
		return err
	}
	for id, tok := range s.Tokens.All() {
		if tok.Site == name && tok.State(t) == TokenOpen {
			tok.Revoked = true
			s.Tokens.Set(id, tok)
		}
	}
	s.Sites.Delete(name)
	return nil
}

// describe is the spec in words.
func (sites) describe(spec json.RawMessage) string {
	var f protocol.SiteFields
	if json.Unmarshal(spec, &f) != nil {
		return ""
	}
	ranges := "no ranges"
	if len(f.Ranges) > 0 {
		ranges = "ranges " + join(f.Ranges)
	}
	return fmt.Sprintf("%s; max_age %s; rotate_keys %s", ranges, f.MaxAge, f.RotateKeys)
}

// follow approves what a site's ranges approve since they are what they are.
func (sites) follow(d *Draft, name string) error { return ApproveInRanges(d, name) }

// ApproveInRanges approves routes of a site's nodes that wait for a decision, lie in its ranges and meet no other
// node's claim.
func ApproveInRanges(d *Draft, site string) error {
	of := d.LiveNodesOf(site)
	if len(of) == 0 {
		return nil
	}
	claims := NewClaims(d.WithWaiting(d.announced))
	for _, number := range of {
		n := d.Nodes.Get(number)
		for _, r := range append(d.NodeRoutes(n.Number), d.Waiting(n.Number, d.announced[n.Number])...) {
			if len(claims.Met(n.Number, r.Prefix)) > 0 {
				continue // as for AnnounceRoutes
			}
			if r.State != protocol.RoutePending || !d.inRange(site, r.Prefix) || d.refuses(n.claimant(), r.Prefix) != nil {
				continue
			}
			if err := d.waiting(n, r.Prefix, true); err != nil {
				return err
			}
			if err := d.Add(RouteDecided{n.Number, r.Prefix, protocol.RouteApproved, ByRange}); err != nil {
				return err
			}
		}
	}
	return nil
}
