package state

import (
	"fmt"
	"net/netip"
	"slices"

	"causeway/protocol"
)

// Claims are the live claims of all nodes, found by what they overlap in a realm: the approved ones,
// and those that wait for a decision. It is of the state as it was when it was made.
type Claims struct {
	st *State
	at *claimant // who looks; nil: the node that is asked for
}

// NewClaims returns the claims of a state. It costs nothing.
func NewClaims(s *State) *Claims { return &Claims{st: s} }

// At are the claims as a node with these labels at a site would meet them.
func (c *Claims) At(site string, labels map[string]string) *Claims {
	return &Claims{c.st, &claimant{site: site, labels: labels}}
}

// claims reports whether the route is a live claim.
func (r Route) claims() bool {
	return r.State == protocol.RouteApproved || r.State == protocol.RoutePending && (r.Announced || r.FromToken)
}

// Met are the claims of nodes other than n that p equals, lies inside or lies over: equal
// ones first, then the nearest around it, then those inside it, at most a few of these.
func (c *Claims) Met(n protocol.NodeNumber, p netip.Prefix) (out []Route) {
	const most = 16
	p = p.Masked()
	at := c.at
	if at == nil {
		own := c.st.Nodes.Get(n).claimant()
		at = &own
	}
	met := func(r Route) bool {
		return r.Node != n && r.claims() && c.st.meet(*at, c.st.Nodes.Get(r.Node).claimant())
	}
	for r := range c.st.Routes.Over(p) {
		if met(r) {
			out = append(out, r)
		}
	}
	var last netip.Prefix
	for r := range c.st.Routes.Inside(p) {
		if len(out) >= most && r.Prefix != last { // all that claim the same, or none
			break
		}
		if last = r.Prefix; met(r) {
			out = append(out, r)
		}
	}
	return out
}

// Why says in one line which claim of another node p of node n meets, an approved one if
// there is any; empty: none.
func (c *Claims) Why(n protocol.NodeNumber, p netip.Prefix) string {
	met := c.Met(n, p)
	if len(met) == 0 {
		return ""
	}
	r, how := met[max(0, slices.IndexFunc(met, func(r Route) bool { return r.State == protocol.RouteApproved }))], "lies over"
	switch {
	case r.Prefix == p:
		how = "is the same as"
	case r.Prefix.Bits() < p.Bits():
		how = "lies inside"
	}
	more := ""
	if len(met) > 1 {
		more = fmt.Sprintf(", and %d more", len(met)-1)
	}
	return fmt.Sprintf("it %s route %s of node %s, which is %s%s", how, r.Prefix, c.st.Nodes.Get(r.Node).Name, r.State, more)
}

// byOperator reports whether an operator approved the route, and no rule did.
func (r Route) byOperator() bool {
	return r.State == protocol.RouteApproved && r.By != ByRange && r.By != ByRule
}

// granted reports whether a token's grant of p holds beside what other nodes claim now:
// each of these claims was there when the token was made, and so the operator was told of
// it, or it is of the same prefix and an operator approved it too, which makes an HA group.
func (t Token) granted(c *Claims, n protocol.NodeNumber, p netip.Prefix) bool {
	return !slices.ContainsFunc(c.Met(n, p), func(r Route) bool {
		return !(r.Prefix == p && r.byOperator()) && !slices.Contains(t.Over, r.RouteKey)
	})
}

// Over are the claims that the routes of a new token for nodes with these labels at a site meet. Those of the node that
// it may replace do not count.
func (s *State) Over(site string, labels map[string]string, routes []netip.Prefix, replace string) (out []RouteKey) {
	if len(routes) == 0 {
		return nil
	}
	c := NewClaims(s).At(site, labels)
	for _, p := range routes {
		for _, r := range c.Met(s.names.Get(replace), p) {
			if !slices.Contains(out, r.RouteKey) && len(out) < protocol.MaxNodeRoutes {
				out = append(out, r.RouteKey)
			}
		}
	}
	return out
}

// NumberOf is the number of the live node of that name; 0: there is none.
func (s *State) NumberOf(name string) protocol.NodeNumber { return s.names.Get(name) }
