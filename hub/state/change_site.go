package state

import (
	"fmt"
	"net/netip"
	"time"

	"causeway/protocol"
)

// SiteCreated is a new site.
type SiteCreated struct {
	Name   string         `json:"name"`
	Ranges []netip.Prefix `json:"ranges,omitempty"`
}

func (c SiteCreated) apply(s *State, t time.Time) error {
	if !protocol.ValidName(c.Name) {
		return Errorf(Invalid, "site name %.80q: use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'", c.Name)
	}
	if _, ok := s.Sites.Find(c.Name); ok {
		return Errorf(Conflict, "site %s exists already", c.Name)
	}
	if len(c.Ranges) > protocol.MaxNodeRoutes {
		return Errorf(Invalid, "%d ranges; at most %d", len(c.Ranges), protocol.MaxNodeRoutes)
	}
	for _, p := range c.Ranges {
		if err := s.checkRange(c.Name, p); err != nil {
			return err
		}
	}
	s.Sites.Set(c.Name, Site{Name: c.Name, Ranges: c.Ranges, Created: t, MaxAge: DefaultMaxAge})
	return nil
}

// Describe returns one line.
func (c SiteCreated) Describe() string {
	if len(c.Ranges) == 0 {
		return "site " + c.Name + " created"
	}
	return fmt.Sprintf("site %s created, ranges %s", c.Name, join(c.Ranges))
}

// DefaultMaxAge is how long the agents of a site go on without any hub when nobody
// said otherwise.
const DefaultMaxAge = 7 * 24 * time.Hour

// Bounds of a max_age that is not for ever. Agents write down now and then that they
// heard a hub: one that is too short would end at a reboot.
const (
	minMaxAge = time.Hour
	maxMaxAge = 10 * 366 * 24 * time.Hour
)

// SiteMaxAge says how long the agents of a site go on without any hub.
type SiteMaxAge struct {
	Name   string        `json:"name"`
	MaxAge time.Duration `json:"max_age_ns"` // 0: for ever
}

func (c SiteMaxAge) apply(s *State, _ time.Time) error {
	site, ok := s.Sites.Find(c.Name)
	if !ok {
		return noSite(s, c.Name)
	}
	if c.MaxAge < 0 {
		return Errorf(Invalid, "max_age %s is less than nothing", c.MaxAge)
	}
	site.MaxAge = c.MaxAge
	s.Sites.Set(c.Name, site)
	return nil
}

// Describe returns one line.
func (c SiteMaxAge) Describe() string {
	if c.MaxAge == 0 {
		return "site " + c.Name + ": agents go on without a hub for ever"
	}
	return fmt.Sprintf("site %s: agents go on without a hub for %s", c.Name, c.MaxAge)
}

// SetMaxAge changes how long the agents of a site go on without any hub; 0 is for ever.
func SetMaxAge(d *Draft, site string, age time.Duration) error {
	if age != 0 && (age < minMaxAge || age > maxMaxAge) {
		return Errorf(Invalid, "max_age %s: use %s to %s, or forever", age, minMaxAge, maxMaxAge)
	}
	return d.Add(SiteMaxAge{site, age})
}

// SiteRanges replaces a site's ranges.
type SiteRanges struct {
	Name   string         `json:"name"`
	Ranges []netip.Prefix `json:"ranges"`
}

func (c SiteRanges) apply(s *State, _ time.Time) error {
	site, ok := s.Sites.Find(c.Name)
	if !ok {
		return noSite(s, c.Name)
	}
	if len(c.Ranges) > protocol.MaxNodeRoutes {
		return Errorf(Invalid, "%d ranges; at most %d", len(c.Ranges), protocol.MaxNodeRoutes)
	}
	for _, p := range c.Ranges {
		if err := s.checkRange(c.Name, p); err != nil {
			return err
		}
	}
	if err := s.checkNeeded(c.Name, c.Ranges); err != nil {
		return err
	}
	site.Ranges = c.Ranges
	s.Sites.Set(c.Name, site)
	return nil
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

// Describe returns one line.
func (c SiteRanges) Describe() string {
	if len(c.Ranges) == 0 {
		return "site " + c.Name + " has no ranges"
	}
	return fmt.Sprintf("site %s has the ranges %s", c.Name, join(c.Ranges))
}

// SetRanges replaces a site's ranges. Routes that wait for a decision, lie in them and meet no
// other node's claim are approved.
func SetRanges(d *Draft, site string, ranges []netip.Prefix) error {
	if err := d.Add(SiteRanges{site, ranges}); err != nil {
		return err
	}
	claims := NewClaims(d.WithWaiting(d.announced))
	for _, number := range d.LiveNodesOf(site) {
		n := d.Nodes.Get(number)
		for _, r := range append(d.NodeRoutes(n.Number), d.Waiting(n.Number, d.announced[n.Number])...) {
			if len(claims.Met(n.Number, r.Prefix)) > 0 {
				continue // as for AnnounceRoutes
			}
			if r.State != protocol.RoutePending || !d.inRange(site, r.Prefix) || d.checkClaim(site, r.Prefix) != nil {
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

// SiteDeleted removes a site without live nodes and revokes its open tokens.
type SiteDeleted struct {
	Name string `json:"name"`
}

func (c SiteDeleted) apply(s *State, t time.Time) error {
	if _, ok := s.Sites.Find(c.Name); !ok {
		return noSite(s, c.Name)
	}
	if of := s.LiveNodesOf(c.Name); len(of) > 0 {
		return Errorf(Conflict, "site %s still has node %s; let its nodes leave or revoke them first", c.Name, s.Nodes.Get(of[0]).Name)
	}
	if err := s.named(ObjectKey{KindSite, c.Name}); err != nil {
		return err
	}
	for id, tok := range s.Tokens.All() {
		if tok.Site == c.Name && tok.State(t) == TokenOpen {
			tok.Revoked = true
			s.Tokens.Set(id, tok)
		}
	}
	s.Sites.Delete(c.Name)
	return nil
}

// Describe returns one line.
func (c SiteDeleted) Describe() string { return "site " + c.Name + " deleted" }

// TokenCreated is a new join token.
type TokenCreated struct {
	ID      protocol.TokenID  `json:"id"`
	Hash    []byte            `json:"secret_sha256"`
	Site    string            `json:"site"`
	Expires time.Time         `json:"expires"`
	Routes  []netip.Prefix    `json:"routes,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Replace string            `json:"replace,omitempty"`
	// Over are the claims of other nodes that Routes meet, of which the operator was told.
	Over []RouteKey `json:"over,omitempty"`
}

func (c TokenCreated) apply(s *State, t time.Time) error {
	if _, ok := s.Tokens.Find(c.ID); ok || len(c.Hash) != 32 {
		return Errorf(Conflict, "token %s exists already or has no hash", c.ID)
	}
	if _, ok := s.Sites.Find(c.Site); !ok {
		return noSite(s, c.Site)
	}
	if !c.Expires.After(t) {
		return Errorf(Invalid, "the token would expire at once")
	}
	if len(c.Routes) > protocol.MaxNodeRoutes {
		return Errorf(Invalid, "%d routes; at most %d", len(c.Routes), protocol.MaxNodeRoutes)
	}
	for _, p := range c.Routes {
		if err := s.checkClaim(c.Site, p); err != nil {
			return err
		}
	}
	if err := s.checkLabels(c.Labels); err != nil {
		return err
	}
	if c.Replace != "" {
		n, ok := s.names.Find(c.Replace)
		if !ok {
			return noNode(s, c.Replace)
		}
		if site := s.Nodes.Get(n).Site; site != c.Site {
			return Errorf(Conflict, "node %s belongs to site %s, not %s", c.Replace, site, c.Site)
		}
	}
	s.Tokens.Set(c.ID, Token{ID: c.ID, Hash: [32]byte(c.Hash), Site: c.Site, Routes: c.Routes, Labels: c.Labels,
		Replace: c.Replace, Created: t, Expires: c.Expires, Over: c.Over})
	return nil
}

// Describe returns one line.
func (c TokenCreated) Describe() string {
	d := fmt.Sprintf("token %s created for site %s, expires %s", c.ID, c.Site, c.Expires.UTC().Format(time.RFC3339))
	if len(c.Routes) > 0 {
		d += ", routes " + join(c.Routes)
	}
	if c.Replace != "" {
		d += ", replaces node " + c.Replace
	}
	return d
}

// TokenState is where a token is in its life.
type TokenState string

// Token states.
const (
	TokenOpen    TokenState = "open"
	TokenUsed    TokenState = "used"
	TokenExpired TokenState = "expired"
	TokenRevoked TokenState = "revoked"
)

// State returns the token's state at time t.
func (k Token) State(t time.Time) TokenState {
	switch {
	case k.UsedBy != 0:
		return TokenUsed
	case k.Revoked:
		return TokenRevoked
	case !t.Before(k.Expires):
		return TokenExpired
	}
	return TokenOpen
}

// TokenCancelled revokes an open token.
type TokenCancelled struct {
	ID protocol.TokenID `json:"id"`
}

func (c TokenCancelled) apply(s *State, t time.Time) error {
	k, ok := s.Tokens.Find(c.ID)
	if !ok {
		return Errorf(NotFound, "there is no token %s; see 'causeway token list'", c.ID)
	}
	if st := k.State(t); st != TokenOpen {
		return Errorf(Conflict, "token %s is %s already", c.ID, st)
	}
	k.Revoked = true
	s.Tokens.Set(c.ID, k)
	return nil
}

// Describe returns one line.
func (c TokenCancelled) Describe() string { return "token " + c.ID.String() + " revoked" }

// TokenRedeemed marks a token as used by the node that joins in the same transaction.
type TokenRedeemed struct {
	ID   protocol.TokenID    `json:"id"`
	Node protocol.NodeNumber `json:"node"`
}

func (c TokenRedeemed) apply(s *State, t time.Time) error {
	k, ok := s.Tokens.Find(c.ID)
	if !ok || k.State(t) != TokenOpen {
		return Errorf(Refused, "token %s is not open", c.ID)
	}
	if c.Node != s.NextNumber {
		return Errorf(Conflict, "number %d is not the next one, %d", c.Node, s.NextNumber)
	}
	k.UsedBy = c.Node
	s.Tokens.Set(c.ID, k)
	return nil
}

// Describe returns one line.
func (c TokenRedeemed) Describe() string {
	return fmt.Sprintf("token %s used by node %d", c.ID, c.Node)
}

// JoinRefused tells the audit of joins that were refused; it changes nothing.
type JoinRefused struct {
	From   string           `json:"from"` // address and port
	Token  protocol.TokenID `json:"token"`
	Name   string           `json:"name"` // wanted
	Reason string           `json:"reason"`
	// Missed counts the joins refused since the last entry that have none of their own.
	Missed int `json:"missed,omitempty"`
}

func (c JoinRefused) apply(*State, time.Time) error { return nil }

// Describe returns one line.
func (c JoinRefused) Describe() string {
	d := fmt.Sprintf("join refused: %s (from %s, token %s, wanted name %q)", c.Reason, c.From, c.Token, c.Name)
	if c.Missed > 0 {
		d += fmt.Sprintf("; %d more since the last such entry", c.Missed)
	}
	return d
}
