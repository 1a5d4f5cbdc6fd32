// Package plan computes what the hub tells each agent, from the state and
// from what is known live of nodes. It is pure: values in, values out.
//
// The rules are those of 'Claims': no prefix is in two peers of one netmap, and
// of nodes of a realm that announce the same prefix exactly one owns it; nothing
// that an agent's own node may announce comes back to it.
package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"causeway/hub/policy"
	"causeway/hub/service"
	"causeway/hub/state"
	"causeway/protocol"
)

// Live is what is known of a node beyond the state.
type Live struct {
	Online     bool             // its control session is up, or ended a moment ago
	Candidates []netip.AddrPort // where it may be reached, bound at the hub or by its own word
}

// Netmaps is the part of all netmaps that is computed once.
type Netmaps struct {
	Version protocol.NetmapVersion // without Minor
	// Owners says which nodes carry a prefix: one of each realm (policy.Realms) that has it, and nobody meets two of
	// them. The next Netmaps are computed from it, so that a prefix stays where it is while its owner is online.
	Owners map[netip.Prefix][]protocol.NodeNumber

	// Talk counts the changes of who may talk that are in it; whoever computed the Netmaps sets it.
	Talk uint64

	// Gone is what all netmaps say of nodes that are gone; whoever computed the
	// Netmaps adds it. May be nil.
	Gone *protocol.SignedGoneList
	// Mark is of the state that the Netmaps were computed from; whoever computed them adds it. It
	// goes out with what else is new, and is no news itself. May be nil.
	Mark *protocol.StateMark

	peers  []*entry                     // every node that peers may know, by number
	rows   map[protocol.NodeNumber]*row // those that each live node may know
	shared map[protocol.PeersSum]*row   // all rows there are

	self map[protocol.NodeNumber]*protocol.NetmapSelf
	ages map[string]time.Duration // max_age of each site
	hubs *protocol.SignedHubList
	own  map[protocol.NodeNumber][]netip.Prefix // prefixes that a node announces, approved, in their order

	who *policy.Enforcement // that they were computed by; nil: everybody may talk to everybody

	items    map[protocol.ItemKey]*item       // all there are, but for those of who may talk and of services
	talk     map[string]*item                 // those, by all that they say
	itemsBy  map[protocol.NodeNumber][]*item  // by kind and name
	services services                         // beside itemsBy
	requires map[protocol.NodeNumber][]string // features without which a node may not go on with its items
}

// Compute makes the netmaps. before is the one before, whose owners go on where they
// can and whose peers are shared where they are the same; or nil. who says which nodes may talk, and what of that
// they are told; nil: all. told is what nodes are told of services; nil: nothing.
func Compute(s *state.State, live map[protocol.NodeNumber]Live, who *policy.Enforcement, told *service.Told, before *Netmaps) *Netmaps {
	if before == nil {
		before = &Netmaps{}
	}
	v := &Netmaps{
		Version: protocol.NetmapVersion{Epoch: s.Epoch, Version: s.Seq},
		Owners:  map[netip.Prefix][]protocol.NodeNumber{},
		who:     who,
		self:    map[protocol.NodeNumber]*protocol.NetmapSelf{},
		ages:    map[string]time.Duration{},
		hubs:    s.HubList,
		own:     map[protocol.NodeNumber][]netip.Prefix{},
	}
	v.allItems(s, who, before)
	v.services = newServices(told, before.services)
	for _, site := range s.Sites.All() {
		v.ages[site.Name] = site.MaxAge
	}
	announced := v.routes(s)
	owned, shared := v.owners(s, live, before)
	var alone []protocol.NodeNumber
	for _, n := range s.LiveNodes() {
		overlay, err := s.OverlayOf(n.Number)
		if err != nil { // joins beyond the range are refused
			continue
		}
		self := &protocol.NetmapSelf{Number: n.Number, Name: n.Name, Site: n.Site, Overlay: overlay, Routes: announced[n.Number],
			RotateKeys: s.Sites.Get(n.Site).RotateKeys, Upgrade: s.Upgrade.Wish(n.Number), Classes: who.ClassesOf(n.Number)}
		if n.KeyWanted > n.KeyEpoch() {
			self.KeyEpoch, self.KeyOverlap = n.KeyWanted, n.KeyOverlap
		}
		v.self[n.Number] = before.sharedSelf(self)
		if n.Quarantine != "" {
			alone = append(alone, n.Number)
		}
		if !talks(n) {
			continue
		}
		e := before.entry(protocol.Peer{
			Statement: *n.Statement, Name: n.Name, Site: n.Site, Overlay: overlay, Routes: owned[n.Number], Sources: shared[n.Number],
			Candidates: Candidates(live[n.Number].Candidates, s.Overlay), Direct: true,
			Classes: who.ClassesOf(n.Number),
		})
		v.peers = append(v.peers, e)
	}
	v.rowsOf(who, before)
	for _, n := range alone {
		v.rows[n] = nobody
	}
	return v
}

// routes notes the prefixes that each node announces, approved, and returns what each node announces.
func (v *Netmaps) routes(s *state.State) (announced map[protocol.NodeNumber][]protocol.AnnouncedRoute) {
	announced = make(map[protocol.NodeNumber][]protocol.AnnouncedRoute, len(v.self))
	for _, r := range s.Routes.All() {
		if !r.Announced && !r.FromToken {
			continue
		}
		announced[r.Node] = append(announced[r.Node], protocol.AnnouncedRoute{Prefix: r.Prefix, State: r.State})
		if r.Carried() { // what it may not carry is not its own: it goes on reaching who has it
			v.own[r.Node] = append(v.own[r.Node], r.Prefix)
		}
	}
	return announced
}

// owners finds who owns each prefix. owned are the prefixes of each node, shared those that it announces and
// another node of its realm owns, both in their order.
func (v *Netmaps) owners(s *state.State, live map[protocol.NodeNumber]Live, before *Netmaps) (owned, shared map[protocol.NodeNumber][]netip.Prefix) {
	owned, shared = map[protocol.NodeNumber][]netip.Prefix{}, map[protocol.NodeNumber][]netip.Prefix{}
	talking := map[protocol.NodeNumber]bool{}
	for _, n := range s.LiveNodes() {
		talking[n.Number] = talks(n)
	}
	var p netip.Prefix
	var nodes []protocol.NodeNumber // who could own p, by realm and number
	settle := func(nodes []protocol.NodeNumber) {
		o := nodes[0]
		if len(nodes) > 1 {
			o = owner(nodes, before.Owners[p], func(n protocol.NodeNumber) int { return fitness(s.Nodes.Get(n), live[n]) })
		}
		v.Owners[p] = append(v.Owners[p], o)
		owned[o] = append(owned[o], p)
		for _, n := range nodes {
			if n != o {
				shared[n] = append(shared[n], p)
			}
		}
	}
	all := func() {
		if len(nodes) == 0 || state.CheckPrefix(p, s.Overlay) != nil {
			return
		}
		slices.SortStableFunc(nodes, func(a, b protocol.NodeNumber) int { return cmp.Compare(v.who.RealmOf(a), v.who.RealmOf(b)) })
		for len(nodes) > 0 {
			realm, n := v.who.RealmOf(nodes[0]), 1
			for n < len(nodes) && v.who.RealmOf(nodes[n]) == realm {
				n++
			}
			settle(nodes[:n])
			nodes = nodes[n:]
		}
	}
	for r := range s.Routes.ByPrefix() {
		if r.Prefix != p {
			all()
			p, nodes = r.Prefix, nodes[:0]
		}
		if r.Carried() && talking[r.Node] {
			nodes = append(nodes, r.Node)
		}
	}
	all()
	return owned, shared
}

// Owner is who carries p where node n is; 0: nobody.
func (v *Netmaps) Owner(n protocol.NodeNumber, p netip.Prefix) protocol.NodeNumber {
	for _, o := range v.Owners[p] {
		if v.Meet(o, n) {
			return o
		}
	}
	return 0
}

// Meet reports whether two nodes are of one realm.
func (v *Netmaps) Meet(a, b protocol.NodeNumber) bool { return v.who.RealmOf(a) == v.who.RealmOf(b) }

// SameRealms reports whether all nodes are in the realms of w, by their names.
func (v *Netmaps) SameRealms(w *Netmaps) bool {
	return v.who == w.who || v.who != nil && w.who != nil && maps.Equal(v.who.Realm, w.who.Realm)
}

// talks reports whether others may know node n: it is neither gone nor in
// quarantine, and they can check its key.
func talks(n state.Node) bool { return n.Live() && n.Quarantine == "" && n.Statement != nil }

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// fitness ranks who may own a prefix. A drained node that is online comes before
// one that is away: nobody else would carry the prefix.
func fitness(n state.Node, l Live) int {
	switch {
	case l.Online && n.Drained.IsZero():
		return 3
	case l.Online:
		return 2
	case n.Drained.IsZero():
		return 1
	}
	return 0
}

// owner chooses the fittest of nodes (by number): of equals one that was owner before, else
// the first.
func owner(nodes, before []protocol.NodeNumber, fit func(protocol.NodeNumber) int) protocol.NodeNumber {
	best := nodes[0]
	for _, n := range nodes[1:] {
		if f := fit(n); f > fit(best) || f == fit(best) && slices.Contains(before, n) && !slices.Contains(before, best) {
			best = n
		}
	}
	return best
}

// Candidates returns addrs without repetition, without what cannot be another
// host's underlay address, sorted and bounded.
func Candidates(addrs []netip.AddrPort, overlay []netip.Prefix) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(addrs))
	for _, a := range addrs {
		ip := a.Addr().Unmap().WithZone("")
		if a.Port() == 0 || protocol.Reserved(ip) || slices.ContainsFunc(overlay, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			continue
		}
		out = append(out, netip.AddrPortFrom(ip, a.Port()))
	}
	if len(out) > protocol.MaxNodeCandidates { // the first ones are the best known
		out = out[:protocol.MaxNodeCandidates]
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// For returns node n's full netmap; ok is false if n is no live node. The
// version has no Minor.
func (v *Netmaps) For(n protocol.NodeNumber) (m protocol.Netmap, ok bool) {
	m, ok = v.frame(n)
	if !ok {
		return m, false
	}
	m.Items = v.itemsOf(n)
	m.Peers = make([]protocol.Peer, 0, len(v.row(n).peers))
	w := v.walk(n)
	for e := w.next(); e != nil; e = w.next() {
		m.Peers = append(m.Peers, e.peer)
	}
	return m, true
}

// frame is node n's full netmap without the peers and items.
func (v *Netmaps) frame(n protocol.NodeNumber) (m protocol.Netmap, ok bool) {
	self, ok := v.self[n]
	if !ok {
		self = &protocol.NetmapSelf{}
	}
	return protocol.Netmap{NetmapVersion: v.Version, HubList: v.hubs, Gone: v.Gone, Mark: v.Mark, Self: *self, MaxAge: v.ages[self.Site], Requires: v.requires[n]}, ok
}

// Has reports whether n is a live node.
func (v *Netmaps) Has(n protocol.NodeNumber) bool {
	_, ok := v.self[n]
	return ok
}

// Knows reports whether peer is in node n's netmap.
func (v *Netmaps) Knows(n, peer protocol.NodeNumber) bool {
	_, ok := v.row(n).find(peer)
	return ok && n != peer
}

// SameAs reports whether every netmap of v and w says the same, whatever their
// versions. One of them was computed from the other.
func (v *Netmaps) SameAs(w *Netmaps) bool {
	return w != nil && v.Version.Epoch == w.Version.Epoch && slices.Equal(v.peers, w.peers) && maps.Equal(v.self, w.self) && maps.Equal(v.ages, w.ages) &&
		maps.EqualFunc(v.own, w.own, slices.Equal) && maps.Equal(v.rows, w.rows) && maps.EqualFunc(v.Owners, w.Owners, slices.Equal) &&
		(v.hubs == w.hubs || reflect.DeepEqual(v.hubs, w.hubs)) && (v.Gone == w.Gone || reflect.DeepEqual(v.Gone, w.Gone)) && maps.EqualFunc(v.itemsBy, w.itemsBy, slices.Equal) && v.services.same(w.services)
}

// Next returns the version after have for a netmap computed at v.Version: the
// log's sequence where it grew, else one Minor more.
func (v *Netmaps) Next(have protocol.NetmapVersion) protocol.NetmapVersion {
	if have.Epoch == v.Version.Epoch && have.Version >= v.Version.Version {
		have.Minor++
		return have
	}
	return v.Version
}
