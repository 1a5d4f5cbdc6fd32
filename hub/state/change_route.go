package state

import (
	"fmt"
	"net/netip"
	"time"

	"causeway/protocol"
)

// RouteAnnounced is a prefix that a node announces, with what becomes of it by
// token, range or rule. For a prefix announced before, the earlier decision holds and
// State and By are not looked at.
type RouteAnnounced struct {
	Node      protocol.NodeNumber `json:"node"`
	Prefix    netip.Prefix        `json:"prefix"`
	State     protocol.RouteState `json:"state"`
	By        string              `json:"by,omitempty"`
	FromToken bool                `json:"from_token,omitempty"`
}

func (c RouteAnnounced) apply(s *State, _ time.Time) error {
	n, err := s.live(c.Node)
	if err != nil {
		return err
	}
	k := RouteKey{c.Node, c.Prefix}
	r, ok := s.Routes.Find(k)
	if !ok {
		if len(s.NodeRoutes(c.Node)) >= 2*protocol.MaxNodeRoutes {
			return Errorf(Full, "node %s announced more than %d routes", n.Name, 2*protocol.MaxNodeRoutes)
		}
		switch c.State {
		case protocol.RouteApproved:
			if err := s.checkClaim(n.claimant(), c.Prefix); err != nil {
				return err
			}
		case protocol.RoutePending, protocol.RouteRejected:
			if !c.Prefix.IsValid() {
				return Errorf(Invalid, "route without prefix")
			}
		default:
			return Errorf(Invalid, "route state %q", c.State)
		}
		r = Route{RouteKey: k, State: c.State, By: c.By}
	}
	if c.FromToken {
		r.FromToken = true
	} else {
		r.Announced = true
	}
	s.Routes.Set(k, r)
	return nil
}

// Describe returns one line.
func (c RouteAnnounced) Describe() string {
	d := fmt.Sprintf("route %s of node %d announced: %s", c.Prefix, c.Node, c.State)
	if c.By != "" {
		d += " by " + c.By
	}
	return d
}

// RouteWithdrawn says that a node no longer announces a prefix. A decision of
// an admin is kept; anything else is forgotten.
type RouteWithdrawn struct {
	Node   protocol.NodeNumber `json:"node"`
	Prefix netip.Prefix        `json:"prefix"`
}

func (c RouteWithdrawn) apply(s *State, _ time.Time) error {
	k := RouteKey(c)
	r, ok := s.Routes.Find(k)
	if !ok || !r.Announced {
		return Errorf(NotFound, "node %d does not announce %s", c.Node, c.Prefix)
	}
	r.Announced = false
	s.Routes.Set(k, r)
	if !r.FromToken && (r.State == protocol.RoutePending || r.By == ByRange || r.By == ByRule) {
		s.Routes.Delete(k)
	}
	return nil
}

// Describe returns one line.
func (c RouteWithdrawn) Describe() string {
	return fmt.Sprintf("route %s of node %d withdrawn", c.Prefix, c.Node)
}

// What decided a route without an admin: values of Route.By.
const (
	ByToken = "token"
	ByRange = "range"
	ByRule  = "rule"
)

// RouteDecided is an admin's decision.
type RouteDecided struct {
	Node   protocol.NodeNumber `json:"node"`
	Prefix netip.Prefix        `json:"prefix"`
	State  protocol.RouteState `json:"state"`
	By     string              `json:"by"`
}

func (c RouteDecided) apply(s *State, _ time.Time) error {
	n, err := s.live(c.Node)
	if err != nil {
		return err
	}
	k := RouteKey{c.Node, c.Prefix}
	r, ok := s.Routes.Find(k)
	if !ok {
		return Errorf(NotFound, "node %s does not announce %s", n.Name, c.Prefix)
	}
	switch c.State {
	case protocol.RouteApproved:
		if err := s.checkClaim(n.claimant(), c.Prefix); err != nil {
			return err
		}
	case protocol.RouteRejected:
	default:
		return Errorf(Invalid, "route decision %q", c.State)
	}
	r.State, r.By = c.State, c.By
	s.Routes.Set(k, r)
	return nil
}

// Describe returns one line.
func (c RouteDecided) Describe() string {
	return fmt.Sprintf("route %s of node %d %s", c.Prefix, c.Node, c.State)
}
