package state

import (
	"fmt"
	"net/netip"
	"time"

	"causeway/protocol"
)

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
		if err := s.checkClaim(claimant{site: c.Site, labels: c.Labels}, p); err != nil {
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
