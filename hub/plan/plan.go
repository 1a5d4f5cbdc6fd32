// Package plan computes what the hub tells each agent, from the state and
// from what is known live of nodes. It is pure: values in, values out.
//
// The rules are those of 'Claims': no prefix is in two peers of one netmap, and
// of nodes of a site that announce the same prefix exactly one owns it; nothing
// that an agent's own node may announce comes back to it.
package plan

import (
	"cmp"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

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
	// Owners says which node carries a prefix. The next Netmaps are computed from it, so that a
	// prefix stays where it is while its owner is online.
	Owners map[netip.Prefix]protocol.NodeNumber

	// Gone is what all netmaps say of nodes that are gone; whoever computed the
	// Netmaps adds it. May be nil.
	Gone *protocol.SignedGoneList
	// Mark is of the state that the Netmaps were computed from; whoever computed them adds it. It
	// goes out with what else is new, and is no news itself. May be nil.
	Mark *protocol.StateMark

	peers []*entry          // every node that peers may know, by number
	sum   protocol.PeersSum // of all peers

	self map[protocol.NodeNumber]*protocol.NetmapSelf
	ages map[string]time.Duration // max_age of each site
	hubs *protocol.SignedHubList
	own  map[protocol.NodeNumber][]netip.Prefix // prefixes that a node announces, approved, in their order

	alone map[protocol.NodeNumber]bool // may know nobody

	items    map[protocol.ItemKey]*item       // all there are
	itemsBy  map[protocol.NodeNumber][]*item  // by kind and name
	requires map[protocol.NodeNumber][]string // features without which a node may not go on with its items

	mu     sync.Mutex
	deltas []delta // from those that agents hold
}

// Compute makes the netmaps. before is the one before, whose owners go on where they
// can and whose peers are shared where they are the same; or nil.
func Compute(s *state.State, live map[protocol.NodeNumber]Live, before *Netmaps) *Netmaps {
	if before == nil {
		before = &Netmaps{}
	}
	v := &Netmaps{
		Version: protocol.NetmapVersion{Epoch: s.Epoch, Version: s.Seq},
		Owners:  map[netip.Prefix]protocol.NodeNumber{},
		self:    map[protocol.NodeNumber]*protocol.NetmapSelf{},
		ages:    map[string]time.Duration{},
		hubs:    s.HubList,
		own:     map[protocol.NodeNumber][]netip.Prefix{},
		alone:   map[protocol.NodeNumber]bool{},
	}
	v.allItems(s, before.items)
	for _, site := range s.Sites.All() {
		v.ages[site.Name] = site.MaxAge
	}
	announced := v.routes(s)
	owned, shared := v.owners(s, live, before)
	for _, n := range s.LiveNodes() {
		overlay, err := s.OverlayOf(n.Number)
		if err != nil { // joins beyond the range are refused
			continue
		}
		self := &protocol.NetmapSelf{Number: n.Number, Name: n.Name, Site: n.Site, Overlay: overlay, Routes: announced[n.Number],
			RotateKeys: s.Sites.Get(n.Site).RotateKeys, Upgrade: s.Upgrade.Wish(n.Number)}
		if n.KeyWanted > n.KeyEpoch() {
			self.KeyEpoch, self.KeyOverlap = n.KeyWanted, n.KeyOverlap
		}
		v.self[n.Number] = before.sharedSelf(self)
		if n.Quarantine != "" {
			v.alone[n.Number] = true
		}
		if !talks(n) {
			continue
		}
		e := before.entry(protocol.Peer{
			Statement: *n.Statement, Name: n.Name, Site: n.Site, Overlay: overlay, Routes: owned[n.Number], Sources: shared[n.Number],
			Candidates: Candidates(live[n.Number].Candidates, s.Overlay), Direct: true,
		})
		v.peers = append(v.peers, e)
		v.sum.Add(e.sum)
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
// another node of its site owns, both in their order.
func (v *Netmaps) owners(s *state.State, live map[protocol.NodeNumber]Live, before *Netmaps) (owned, shared map[protocol.NodeNumber][]netip.Prefix) {
	owned, shared = map[protocol.NodeNumber][]netip.Prefix{}, map[protocol.NodeNumber][]netip.Prefix{}
	talking := map[protocol.NodeNumber]bool{}
	for _, n := range s.LiveNodes() {
		talking[n.Number] = talks(n)
	}
	var p netip.Prefix
	var nodes []protocol.NodeNumber // who could own p, by number
	settle := func() {
		if len(nodes) == 0 || state.CheckPrefix(p, s.Overlay) != nil {
			return
		}
		o := nodes[0]
		if len(nodes) > 1 {
			o = owner(nodes, before.Owners[p], func(n protocol.NodeNumber) int { return fitness(s.Nodes.Get(n), live[n]) })
		}
		v.Owners[p] = o
		owned[o] = append(owned[o], p)
		for _, n := range nodes {
			if n != o {
				shared[n] = append(shared[n], p)
			}
		}
	}
	for r := range s.Routes.ByPrefix() {
		if r.Prefix != p {
			settle()
			p, nodes = r.Prefix, nodes[:0]
		}
		if r.Carried() && talking[r.Node] {
			nodes = append(nodes, r.Node)
		}
	}
	settle()
	return owned, shared
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

// owner chooses the fittest of nodes (by number): of equals the owner so far, else
// the first.
func owner(nodes []protocol.NodeNumber, before protocol.NodeNumber, fit func(protocol.NodeNumber) int) protocol.NodeNumber {
	best := nodes[0]
	for _, n := range nodes[1:] {
		if f := fit(n); f > fit(best) || f == fit(best) && n == before {
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
	m.Peers = make([]protocol.Peer, 0, len(v.peers))
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
	_, ok := v.find(peer)
	return ok && n != peer && !v.alone[n]
}

// SameAs reports whether every netmap of v and w says the same, whatever their
// versions. One of them was computed from the other.
func (v *Netmaps) SameAs(w *Netmaps) bool {
	return w != nil && v.Version.Epoch == w.Version.Epoch && slices.Equal(v.peers, w.peers) && maps.Equal(v.self, w.self) && maps.Equal(v.ages, w.ages) &&
		maps.EqualFunc(v.own, w.own, slices.Equal) && maps.Equal(v.alone, w.alone) && maps.Equal(v.Owners, w.Owners) &&
		(v.hubs == w.hubs || reflect.DeepEqual(v.hubs, w.hubs)) && (v.Gone == w.Gone || reflect.DeepEqual(v.Gone, w.Gone)) && maps.EqualFunc(v.itemsBy, w.itemsBy, slices.Equal)
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
