package state

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"causeway/protocol"
)

// Draft is a decision in the making: a state, already with the changes added
// so far. A decide function may run several times, on newer and newer states.
type Draft struct {
	*State
	Now     time.Time // the transaction's time
	changes []Change
	dry     bool   // its State is shared: whatever would change it is an error
	count   bool   // with dry: changes are counted and not made
	noted   bool   // the log says it, though nothing changes
	base    *State // before the first change

	announced map[protocol.NodeNumber][]netip.Prefix // beyond what is state
}

var errChange = errors.New("the state would change")

// Note has the log say who did what, though nothing of the state changes.
func (d *Draft) Note() { d.noted = true }

// Add applies c. If an invariant forbids it, the whole draft is void.
func (d *Draft) Add(c Change) error {
	if d.dry && d.count {
		d.changes = append(d.changes, c)
		return nil
	}
	if d.dry {
		return errChange
	}
	if d.base == nil {
		d.base = d.State.clone()
	}
	err := c.apply(d.State, d.Now)
	if errors.Is(err, errApart) { // the first of its kind
		if err := d.Add(ClaimsBySegment{}); err != nil {
			return err
		}
		err = c.apply(d.State, d.Now)
	}
	if err != nil {
		return err
	}
	d.changes = append(d.changes, c)
	return nil
}

func noSite(s *State, name string) error {
	if s.Sites.Len() == 0 {
		return Errorf(NotFound, "there is no site %.80q, nor any other; make one with 'causeway site create NAME'", name)
	}
	return Errorf(NotFound, "there is no site %.80q; there are %s", name, strings.Join(slices.Sorted(s.Sites.Keys()), ", "))
}

func noNode(s *State, name string) error {
	return Errorf(NotFound, "there is no node %.80q; see 'causeway node list'", name)
}

// FindNode returns the live node of that name, or an error for a person.
func (s *State) FindNode(name string) (Node, error) {
	n, ok := s.names.Find(name)
	if ok {
		return s.Nodes.Get(n), nil
	}
	if old, ok := s.NodeByName(name); ok {
		return Node{}, Errorf(NotFound, "node %s %s at %s", name, map[Gone]string{GoneLeft: "left", GoneRevoked: "was revoked"}[old.Gone], old.GoneTime.UTC().Format(time.RFC3339))
	}
	return Node{}, noNode(s, name)
}

// FindSite returns the site of that name, or an error for a person.
func (s *State) FindSite(name string) (Site, error) {
	if site, ok := s.Sites.Find(name); ok {
		return site, nil
	}
	return Site{}, noSite(s, name)
}

// RedeemRequest is a node's wish to join.
type RedeemRequest struct {
	Token        protocol.TokenID
	Secret       protocol.TokenSecret
	WireGuardKey protocol.WireGuardPublicKey // proven by the Noise handshake
	IdentityKey  protocol.IdentityPublicKey
	Name         string
	Replace      bool
	Proves       bool // the agent proves its identity key in control sessions
}

// Refusal is why Redeem refuses. It is for the operator; the joining host is told too if it may:
// all others are told the same whatever the reason.
type Refusal struct {
	Reason string
	Shown  bool // the host showed the token's secret
	Told   bool // and the token is open: by another request it could join
}

// Error returns the reason.
func (r *Refusal) Error() string { return r.Reason }

func refuse(format string, args ...any) error {
	return &Refusal{Reason: fmt.Sprintf(format, args...), Shown: true}
}

// tell is refuse for what the host with an open token may be told.
func tell(format string, args ...any) error {
	return &Refusal{Reason: fmt.Sprintf(format, args...), Shown: true, Told: true}
}

// shownToken returns the token whose secret r shows.
func (s *State) shownToken(r RedeemRequest) (Token, error) {
	tok, ok := s.Tokens.Find(r.Token)
	hash := sha256.Sum256(r.Secret[:])
	if match := subtle.ConstantTimeCompare(hash[:], tok.Hash[:]) == 1; !ok || !match {
		if ok {
			return Token{}, &Refusal{Reason: "wrong secret"}
		}
		return Token{}, &Refusal{Reason: "unknown token"}
	}
	return tok, nil
}

// ShowsTicket reports whether t is the ticket of a token that is open at now, or of one that was
// used and would be open else: whose answer was lost asks again. It takes as long for an unknown token.
func (s *State) ShowsTicket(t protocol.Ticket, now time.Time) bool {
	tok, ok := s.Tokens.Find(t.ID)
	shows := t.Shows(tok.Hash)
	return ok && shows && !tok.Revoked && now.Before(tok.Expires)
}

// ShowsOpenToken reports whether r has the secret of a token that is open at now.
func (s *State) ShowsOpenToken(r RedeemRequest, now time.Time) bool {
	tok, err := s.shownToken(r)
	return err == nil && tok.State(now) == TokenOpen
}

// Redeem decides a join. The same key's retry adds nothing and so finds the
// node that the first attempt made. Everything is checked before the token is
// consumed, so that a refusal leaves it open.
func Redeem(d *Draft, r RedeemRequest) error {
	tok, err := d.shownToken(r)
	if err != nil {
		return err
	}
	switch tok.State(d.Now) {
	case TokenUsed:
		n := d.Nodes.Get(tok.UsedBy)
		if n.WireGuardKey == r.WireGuardKey && n.IdentityKey == r.IdentityKey && n.Live() {
			return nil
		}
		return refuse("used already by node %s", n.Name)
	case TokenRevoked:
		return refuse("revoked")
	case TokenExpired:
		return refuse("expired at %s", tok.Expires.UTC().Format(time.RFC3339))
	}
	if !protocol.ValidName(r.Name) {
		return tell("%.80q is no node name", r.Name)
	}
	owner, used := d.keys.Find(r.WireGuardKey)
	if !used {
		owner, used = d.identities.Find(r.IdentityKey)
	}
	if used {
		return tell("the host's keys belong to node %s", d.Nodes.Get(owner).Name)
	}
	if old, ok := d.names.Find(r.Name); ok {
		site, name := d.Nodes.Get(old).Site, r.Name
		switch {
		case tok.Replace != name:
			return tell("the name %s is taken by node %d of site %s; join with another --name, or, if this host takes that node's place, with --replace and a token of 'causeway token create --site %s --replace %s'", name, old, site, site, name)
		case !r.Replace:
			return tell("the name %s is taken by node %d of site %s; join with --replace to take its place, as this token permits, or with another --name", name, old, site)
		case site != tok.Site: // the name went to another site since the token was made
			return tell("the name %s is taken by node %d of site %s, and the token is for site %s; join with another --name, or with a token of 'causeway token create --site %s --replace %s'", name, old, site, tok.Site, site, name)
		}
		if err := d.Add(NodeGone{old, GoneRevoked}); err != nil {
			return err
		}
	}
	number, err := NextFree(d)
	if err != nil {
		return err
	}
	if _, err := d.OverlayOf(number); err != nil {
		return tell("the overlay range is used up: %v; start the hub with a wider --overlay, one that begins at the same address", err)
	}
	if err := d.Add(TokenRedeemed{r.Token, number}); err != nil {
		return err
	}
	if err := d.Add(NodeJoined{number, r.Name, tok.Site, r.WireGuardKey, r.IdentityKey, tok.Labels, r.Token, r.Proves}); err != nil {
		return err
	}
	claims := NewClaims(d.State)
	for _, p := range tok.Routes {
		c := RouteAnnounced{number, p, protocol.RouteApproved, ByToken, true}
		// Claimed by another site, or by a neighbour, since the token was made.
		if d.refuses(claimant{site: tok.Site, labels: tok.Labels}, p) != nil || !tok.granted(claims, number, p) {
			c.State, c.By = protocol.RoutePending, ""
		}
		if err := d.Add(c); err != nil {
			return err
		}
	}
	return nil
}

// Announce records a node's statement and the routes of its configuration, as
// its Hello says. What is recorded already adds nothing.
func Announce(d *Draft, n protocol.NodeNumber, st protocol.SignedNodeStatement, routes []netip.Prefix) error {
	node, err := d.live(n)
	if err != nil {
		return err
	}
	if st.Number != n {
		return Errorf(Refused, "the statement of node %s is about number %d, not %d", node.Name, st.Number, n)
	}
	if st.WireGuardKey != node.WireGuardKey && st.WireGuardKey.LowOrder() {
		return Errorf(Refused, "the new WireGuard key of node %s is a low-order point", node.Name)
	}
	if node.Statement == nil || node.Statement.NodeStatement != st.NodeStatement || node.Statement.IdentityKey != st.IdentityKey {
		if err := d.Add(NodeStated{Statement: st}); err != nil {
			return err
		}
	} else if !st.Valid() {
		return Errorf(Refused, "the statement of node %s is not signed by its identity key", node.Name)
	}
	return AnnounceRoutes(d, n, routes)
}

// Proved records that control sessions of node n prove the node's identity key: none is taken
// without from now on. Its hello was recorded before.
func Proved(d *Draft, n protocol.NodeNumber) error {
	node, err := d.live(n)
	if err != nil || !node.Proven.IsZero() {
		return err
	}
	if node.Statement == nil {
		return Errorf(Invalid, "node %s has not stated its key yet", node.Name)
	}
	return d.Add(NodeStated{*node.Statement, true})
}

// AnnounceRoutes records the whole list of routes that a node's configuration
// announces.
func AnnounceRoutes(d *Draft, n protocol.NodeNumber, routes []netip.Prefix) error {
	node, err := d.live(n)
	if err != nil {
		return err
	}
	if len(routes) > protocol.MaxNodeRoutes {
		return Errorf(Refused, "node %s announces %d routes; at most %d", node.Name, len(routes), protocol.MaxNodeRoutes)
	}
	now := make(map[netip.Prefix]bool, len(routes))
	for _, p := range routes {
		if !p.IsValid() {
			return Errorf(Refused, "node %s announces a route that is no CIDR", node.Name)
		}
		now[p] = true
	}
	d.Announced(n, routes)
	for _, r := range d.NodeRoutes(n) {
		if r.Announced && !now[r.Prefix] {
			if err := d.Add(RouteWithdrawn{n, r.Prefix}); err != nil {
				return err
			}
		}
	}
	var claims *Claims
	free := func(p netip.Prefix) bool { // no other node's claim is met: those are an operator's to decide
		if claims == nil {
			claims = NewClaims(d.State)
		}
		return len(claims.Met(n, p)) == 0
	}
	for _, p := range routes {
		if r, ok := d.Routes.Find(RouteKey{n, p}); ok && r.Announced {
			continue
		}
		c := RouteAnnounced{Node: n, Prefix: p, State: protocol.RoutePending}
		switch {
		case CheckPrefix(p, d.Overlay) != nil:
			c.State, c.By = protocol.RouteRejected, ByRule
		case d.inRange(node.Site, p) && d.refuses(node.claimant(), p) == nil && free(p):
			c.State, c.By = protocol.RouteApproved, ByRange
		}
		if _, known := d.Routes.Find(RouteKey{n, p}); !known && c.State != protocol.RouteApproved {
			continue // it waits, see Waiting
		}
		if err := d.Add(c); err != nil {
			return err
		}
	}
	return nil
}

// DecideRoute approves or rejects a route that a node announces, by the state or by what the draft was
// told (Draft.Announced). A decision that holds already adds nothing.
func DecideRoute(d *Draft, name string, p netip.Prefix, approve bool, who string) error {
	n, err := d.FindNode(name)
	if err != nil {
		return err
	}
	if err := d.waiting(n, p, approve); err != nil {
		return err
	}
	r, ok := d.Routes.Find(RouteKey{n.Number, p})
	if !ok {
		var has []netip.Prefix
		for _, r := range d.NodeRoutes(n.Number) {
			has = append(has, r.Prefix)
		}
		for _, r := range d.Waiting(n.Number, d.announced[n.Number]) {
			has = append(has, r.Prefix)
		}
		if len(has) == 0 {
			return Errorf(NotFound, "node %s announces no route; routes: in its agent.yaml or 'token create --route' do that", name)
		}
		return Errorf(NotFound, "node %s does not announce %s; it announces %s", name, p, join(has))
	}
	want := protocol.RouteRejected
	if approve {
		want = protocol.RouteApproved
	}
	if r.State == want && (r.By != ByRange || !approve) { // approved by a range and by name is more
		return nil
	}
	return d.Add(RouteDecided{n.Number, p, want, who})
}

// Label sets and, where the value is empty, removes labels of a node.
func Label(d *Draft, name string, patch map[string]string) error {
	n, err := d.FindNode(name)
	if err != nil {
		return err
	}
	l := maps.Clone(n.Labels)
	if l == nil {
		l = map[string]string{}
	}
	for k, v := range patch {
		if v == "" {
			delete(l, k)
		} else {
			l[k] = v
		}
	}
	if maps.Equal(l, n.Labels) {
		return nil
	}
	return d.Add(NodeLabelled{n.Number, l})
}

// Remove takes a live node out.
func Remove(d *Draft, n protocol.NodeNumber, how Gone) error {
	if node, ok := d.Nodes.Find(n); ok && !node.Live() {
		return nil
	}
	return d.Add(NodeGone{n, how})
}
