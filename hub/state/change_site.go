package state

import (
	"fmt"
	"net/netip"
	"time"
)

// Changes of sites that logs of before have. Sites are declared objects by now: see sites in site.go.

// SiteCreated is a new site.
type SiteCreated struct {
	Name   string         `json:"name"`
	Ranges []netip.Prefix `json:"ranges,omitempty"`
}

func (c SiteCreated) apply(s *State, t time.Time) error {
	if err := checkName(KindSite, c.Name); err != nil {
		return err
	}
	if s.Sites.Has(c.Name) {
		return Errorf(Conflict, "site %s exists already", c.Name)
	}
	if err := s.checkRanges(c.Name, c.Ranges); err != nil {
		return err
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

// SiteRanges replaces a site's ranges.
type SiteRanges struct {
	Name   string         `json:"name"`
	Ranges []netip.Prefix `json:"ranges"`
}

func (c SiteRanges) apply(s *State, _ time.Time) error {
	site, err := s.FindSite(c.Name)
	if err == nil {
		err = s.checkRanges(c.Name, c.Ranges)
	}
	if err != nil {
		return err
	}
	site.Ranges = c.Ranges
	s.Sites.Set(c.Name, site)
	return nil
}

// Describe returns one line.
func (c SiteRanges) Describe() string {
	if len(c.Ranges) == 0 {
		return "site " + c.Name + " has no ranges"
	}
	return fmt.Sprintf("site %s has the ranges %s", c.Name, join(c.Ranges))
}

// SiteMaxAge says how long the agents of a site go on without any hub.
type SiteMaxAge struct {
	Name   string        `json:"name"`
	MaxAge time.Duration `json:"max_age_ns"` // 0: for ever
}

func (c SiteMaxAge) apply(s *State, _ time.Time) error {
	return setTerm(s, c.Name, "max_age", c.MaxAge, func(x *Site) { x.MaxAge = c.MaxAge })
}

// Describe returns one line.
func (c SiteMaxAge) Describe() string {
	if c.MaxAge == 0 {
		return "site " + c.Name + ": agents go on without a hub for ever"
	}
	return fmt.Sprintf("site %s: agents go on without a hub for %s", c.Name, c.MaxAge)
}

// SiteRotateKeys says at which age the nodes of a site make new WireGuard keys.
type SiteRotateKeys struct {
	Name  string        `json:"name"`
	Every time.Duration `json:"every_ns"` // 0: never
}

func (c SiteRotateKeys) apply(s *State, _ time.Time) error {
	return setTerm(s, c.Name, "rotate_keys", c.Every, func(x *Site) { x.RotateKeys = c.Every })
}

// Describe returns one line.
func (c SiteRotateKeys) Describe() string {
	if c.Every == 0 {
		return "site " + c.Name + ": keys are rotated by command alone"
	}
	return fmt.Sprintf("site %s: keys are rotated every %s", c.Name, c.Every)
}

func setTerm(s *State, name, field string, d time.Duration, set func(*Site)) error {
	site, err := s.FindSite(name)
	if err != nil {
		return err
	}
	if d < 0 {
		return Errorf(Invalid, "%s %s is less than nothing", field, d)
	}
	set(&site)
	s.Sites.Set(name, site)
	return nil
}

// SiteDeleted removes a site without live nodes and revokes its open tokens.
type SiteDeleted struct {
	Name string `json:"name"`
}

func (c SiteDeleted) apply(s *State, t time.Time) error { return sites{}.drop(s, c.Name, t) }

// Describe returns one line.
func (c SiteDeleted) Describe() string { return "site " + c.Name + " deleted" }
