// Package netmapcheck decides what an agent takes of a netmap. The hub's word
// is not enough: a prefix has to lie inside what this host accepts, a key has
// to be signed by the identity that was pinned for its node. It is pure: what
// it needs to know of the host is passed in.
package netmapcheck

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"causeway/agent/held"
	"causeway/agent/identity"
	"causeway/netns"
	"causeway/protocol"
)

// Input is a full netmap and what it is held against.
type Input struct {
	Netmap   protocol.Netmap
	Self     protocol.NodeNumber
	SelfKeys []protocol.WireGuardPublicKey // several while one is rotated
	Hubs     protocol.HubList
	Accept   []netip.Prefix  // ranges that the hub may route into the tunnel
	Named    []netip.Prefix  // of these the ones that an operator wrote: they may lie in Foreign ones
	Foreign  []netns.Foreign // the host's own non-default routes, sorted
	// Announced and Granted are what this node may have as its own, by its config and
	// by the token of its join: the hub's word adds nothing to them.
	Announced, Granted []netip.Prefix
	// Kept are addresses that stay outside the tunnel, with what they are.
	Kept []held.Exception
	// Ways are the host's gateways, and of Kept the hubs: they stay outside even of what is Named.
	Ways []netip.Addr
	// Bound is what may be routed besides what was before; nil: anything.
	Bound *Bound
	Pins  map[protocol.NodeNumber]identity.Pin
	Gone  map[protocol.NodeNumber]bool // nodes that left or were revoked
	// Last are peers of an earlier Result: a statement that is the same as theirs
	// needs no second look at its signature.
	Last []protocol.Peer
	// Features are what this agent has of what a netmap may require; its Hello tells the hub of the same.
	Features []string
}

// Bound bounds how much a hub may have routed.
type Bound struct {
	Routed *held.Cover // was before
	Room   int         // how many more
}

// maxInside bounds how many of the host's own routes may lie in one range: each
// becomes an exception.
const maxInside = 1024

// maxRefused bounds the parts that are told to be refused: each is a line of the log and a
// part of the answer, which a hub that says much nonsense would have grow beyond what an answer may
// be. A hub keeps no more of them.
const maxRefused = 256

// Result is what may be applied.
type Result struct {
	Peers  []protocol.Peer // with the prefixes that are accepted, sorted by number
	Routes []netip.Prefix  // of all Peers, without overlay addresses, sorted
	Local  []netip.Prefix  // the node's own approved routes, sorted
	Bare   []netip.Prefix  // of Local those that the host has no route of its own to
	// Refused are the first that were; the last of many says how many more there are.
	Refused []protocol.RefusedPart
	// Pins are Input.Pins and what was learned.
	Pins map[protocol.NodeNumber]identity.Pin
}

// Check applies the rules. Peers are taken in the order of their numbers, so
// that the outcome does not depend on the order in which they were sent.
func Check(in Input) Result {
	c := checker{Input: in, prefixes: map[netip.Prefix]protocol.NodeNumber{}, keys: map[protocol.WireGuardPublicKey]protocol.NodeNumber{}}
	for _, k := range in.SelfKeys {
		c.keys[k] = in.Self
	}
	c.Result.Pins = maps.Clone(in.Pins)
	if c.Result.Pins == nil {
		c.Result.Pins = map[protocol.NodeNumber]identity.Pin{}
	}
	if missing := missingFeatures(in); missing != "" {
		// Closed: what this agent does not understand may be what forbids the rest.
		c.refuse(0, "", "this agent lacks "+missing+", which the netmap requires; install a newer version")
		return c.Result
	}
	c.foreign, c.own = foreignPrefixes(in.Foreign), NewOwned(in.Foreign, in.Kept, in.Ways)
	if in.Bound != nil {
		c.room = in.Bound.Room
	}
	c.signed = make(map[protocol.NodeNumber]*protocol.SignedNodeStatement, len(in.Last))
	for i := range in.Last {
		c.signed[in.Last[i].Number()] = &in.Last[i].Statement
	}
	for _, h := range in.Hubs.Hubs {
		c.keys[h.WireGuardKey] = h.Number
	}
	peers := slices.Clone(in.Netmap.Peers)
	slices.SortStableFunc(peers, func(a, b protocol.Peer) int { return int(a.Number()) - int(b.Number()) })
	for _, p := range peers {
		c.peer(p)
	}
	c.sources()
	c.local()
	slices.SortFunc(c.Result.Routes, netipx.ComparePrefix)
	slices.SortFunc(c.Result.Local, netipx.ComparePrefix)
	if c.untold > 0 {
		c.Refused = append(c.Refused, protocol.RefusedPart{Reason: fmt.Sprintf("and %d more parts of the netmap", c.untold)})
	}
	return c.Result
}

func missingFeatures(in Input) string {
	var missing []string
	for _, f := range in.Netmap.Requires {
		if !slices.Contains(in.Features, f) {
			missing = append(missing, fmt.Sprintf("%.40q", f))
		}
	}
	if len(missing) > 5 {
		missing = append(missing[:5], "…")
	}
	return strings.Join(missing, ", ")
}

type checker struct {
	Input
	Result
	foreign  []netip.Prefix
	own      *Owned
	room     int
	untold   int // refused beyond maxRefused
	prefixes map[netip.Prefix]protocol.NodeNumber
	keys     map[protocol.WireGuardPublicKey]protocol.NodeNumber
	signed   map[protocol.NodeNumber]*protocol.SignedNodeStatement // valid
	last     protocol.NodeNumber
}

// valid reports whether s is signed. Most of a netmap is as it was before, and
// a thousand signatures take a tenth of a second.
func (c *checker) valid(s *protocol.SignedNodeStatement) bool {
	o := c.signed[s.Number]
	if o != nil && o.NodeStatement == s.NodeStatement && o.IdentityKey == s.IdentityKey && bytes.Equal(o.Signature, s.Signature) {
		return true
	}
	return s.Valid()
}

func (c *checker) refuse(n protocol.NodeNumber, prefix, reason string) {
	if len(c.Refused) == maxRefused-1 {
		c.untold++
		return
	}
	c.Refused = append(c.Refused, protocol.RefusedPart{Peer: n, Prefix: prefix, Reason: reason})
}

func (c *checker) peer(p protocol.Peer) {
	n := p.Number()
	if why := c.identity(p.Statement); why != "" {
		c.refuse(n, "", why)
		return
	}
	c.last = n
	c.keys[p.Statement.WireGuardKey] = n
	c.Result.Pins[n] = identity.Pin{IdentityKey: p.Statement.IdentityKey, WireGuardKey: p.Statement.WireGuardKey, Epoch: p.Statement.Epoch}

	overlay := make([]netip.Addr, 0, len(p.Overlay))
	for _, a := range p.Overlay {
		x := netip.PrefixFrom(a, a.BitLen())
		if !c.isOverlayOf(n, a) {
			c.refuse(n, x.String(), "it is not the overlay address of node number "+fmt.Sprint(n))
			continue
		}
		if c.prefixes[x] != 0 {
			c.refuse(n, x.String(), "it is there twice")
			continue
		}
		c.prefixes[x] = n
		overlay = append(overlay, a)
	}
	routes := make([]netip.Prefix, 0, len(p.Routes))
	for _, r := range p.Routes {
		if why := c.route(r); why != "" {
			c.refuse(n, r.String(), why)
			continue
		}
		c.prefixes[r] = n
		routes = append(routes, r)
	}
	p.Overlay, p.Routes = overlay, routes
	c.Result.Peers = append(c.Result.Peers, p)
	c.Result.Routes = append(c.Result.Routes, routes...)
}

// identity says why a peer is not who the netmap says; "" if it is.
func (c *checker) identity(s protocol.SignedNodeStatement) string {
	switch {
	case !s.Number.Valid():
		return fmt.Sprintf("%d is no node number", s.Number)
	case s.Number == c.Self:
		return "it is this node's own number"
	case s.Number == c.last:
		return "its number is there twice"
	case c.Gone[s.Number]:
		return "it left or was revoked, as a list says that the cluster key signed"
	case slices.ContainsFunc(c.Hubs.Hubs, func(h protocol.Hub) bool { return h.Number == s.Number }):
		return "it is a hub's number"
	case s.WireGuardKey.IsZero():
		return "it has no key"
	case !c.valid(&s):
		return "its identity key did not sign its WireGuard key"
	}
	if n, ok := c.keys[s.WireGuardKey]; ok {
		return fmt.Sprintf("its WireGuard key is that of node %d", n)
	}
	pin, ok := c.Input.Pins[s.Number]
	switch {
	case !ok:
		return ""
	case pin.IdentityKey != s.IdentityKey:
		return "its identity key is not the one that was seen first for this node"
	case s.Epoch < pin.Epoch:
		return fmt.Sprintf("its key epoch %d is lower than %d, which was seen before", s.Epoch, pin.Epoch)
	case s.Epoch == pin.Epoch && s.WireGuardKey != pin.WireGuardKey:
		return "its WireGuard key changed without a higher epoch"
	}
	return ""
}

func (c *checker) isOverlayOf(n protocol.NodeNumber, a netip.Addr) bool {
	return slices.ContainsFunc(c.Hubs.Overlay, func(p netip.Prefix) bool {
		want, err := n.Overlay(p)
		return err == nil && want == a
	})
}

// shape says what is wrong with a prefix by itself.
func (c *checker) shape(r netip.Prefix) string {
	if err := protocol.CheckPrefix(r); err != nil {
		return "it " + err.Error()
	}
	for _, o := range c.Hubs.Overlay {
		if o.Overlaps(r) {
			return fmt.Sprintf("it overlaps the overlay range %s, which nobody may claim", o)
		}
	}
	return ""
}

// route says why a prefix is not routed into the tunnel; "" if it is.
func (c *checker) route(r netip.Prefix) string {
	if why := c.shape(r); why != "" {
		return why
	}
	if n := c.prefixes[r]; n != 0 {
		return fmt.Sprintf("node %d has it already", n)
	}
	if !slices.ContainsFunc(c.Accept, func(a netip.Prefix) bool { return a.Bits() <= r.Bits() && a.Contains(r.Addr()) }) {
		return "it is outside this host's accept ranges"
	}
	if why := c.ownGround(r); why != "" {
		return why
	}
	if c.Bound != nil && !c.Bound.Routed.Has(r) {
		if c.room <= 0 {
			return "this host keeps as many ranges routed or closed as it can; 'causeway-agent release' lets closed ones go"
		}
		c.room--
	}
	return ""
}

// ownGround says why r is the host's own ground; "" if it is not, or if accept: names
// it exactly and that cuts the host from no gateway and hub. What the host has of its own
// inside r is an exception and no reason.
func (c *checker) ownGround(r netip.Prefix) string {
	if slices.Contains(c.Named, r) && !c.own.Fixed(r) {
		return ""
	}
	advice := func() string { return protocol.AcceptAdvice("this host", r, c.own.Takes(r)) }
	if f, ok := c.own.cover.Of(r); ok {
		return fmt.Sprintf("it overlaps this host's own route %s; %s", f, advice())
	}
	if n := inside(c.foreign, r); n > maxInside {
		return fmt.Sprintf("%d of this host's own routes lie in it; %s", n, advice())
	}
	if r.IsSingleIP() {
		for _, k := range c.Kept {
			if k.Addr == r.Addr() {
				return fmt.Sprintf("it is what this host relies on (%s); %s", k.What, advice())
			}
		}
	}
	return ""
}

// inside counts those of sorted prefixes that lie in r.
func inside(sorted []netip.Prefix, r netip.Prefix) int {
	from, _ := slices.BinarySearchFunc(sorted, r.Addr(), func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	to, _ := slices.BinarySearchFunc(sorted, netipx.PrefixLastIP(r).Next(), func(p netip.Prefix, a netip.Addr) int {
		if !a.IsValid() {
			return -1 // r ends where its family does
		}
		return p.Addr().Compare(a)
	})
	return max(0, to-from)
}

// maxSources bounds the work that all Sources of a netmap may make.
const maxSources = 4096

// sources keeps of each peer's Sources what another peer of its site owns, as was
// accepted above, and what holds no longer prefix of a third one.
func (c *checker) sources() {
	sites := make(map[protocol.NodeNumber]string, len(c.Result.Peers))
	for _, p := range c.Result.Peers {
		sites[p.Number()] = p.Site
	}
	left := maxSources
	for i := range c.Result.Peers {
		p := &c.Result.Peers[i]
		if len(p.Sources) == 0 {
			continue
		}
		var kept []netip.Prefix
		for _, s := range p.Sources {
			if left--; left < 0 {
				break
			}
			owner := c.prefixes[s]
			if owner == 0 || sites[owner] != p.Site || slices.ContainsFunc(c.Result.Routes, func(r netip.Prefix) bool {
				return r.Bits() > s.Bits() && s.Overlaps(r) && c.prefixes[r] != owner && c.prefixes[r] != p.Number()
			}) {
				continue
			}
			kept = append(kept, s)
		}
		p.Sources = kept
	}
}

// local takes the node's own approved routes.
func (c *checker) local() {
	for _, r := range c.Netmap.Self.Routes {
		if r.State != protocol.RouteApproved || slices.Contains(c.Local, r.Prefix) {
			continue
		}
		if why := c.shape(r.Prefix); why != "" {
			c.refuse(c.Self, r.Prefix.String(), why)
			continue
		}
		if !slices.Contains(c.Announced, r.Prefix) && !slices.Contains(c.Granted, r.Prefix) {
			c.refuse(c.Self, r.Prefix.String(), "this node neither announces it nor was given it by its token")
			continue
		}
		c.Local = append(c.Local, r.Prefix)
		if _, ok := c.own.cover.Of(r.Prefix); ok {
			continue
		}
		c.Bare = append(c.Bare, r.Prefix)
		if i := slices.IndexFunc(c.Result.Routes, r.Prefix.Overlaps); i >= 0 {
			c.refuse(c.Self, r.Prefix.String(), fmt.Sprintf("this node announces it, but has no route of its own to it, only its default route: packets go to %s of node %d; add a route to it on this host, or take it out of routes:",
				c.Result.Routes[i], c.prefixes[c.Result.Routes[i]]))
		}
	}
}

// Newer says why next must not replace held; "" if it may. The same version
// may come again: it says the same.
func Newer(held, next protocol.NetmapVersion) string {
	if next.Less(held) {
		return fmt.Sprintf("netmap %s is older than %s, which this agent holds", next, held)
	}
	return ""
}
