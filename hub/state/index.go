package state

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/btree"

	"causeway/protocol"
)

// index finds claims by what they overlap, routes by their node and nodes by their site, so that
// thousands of sites and routes in one transaction are not each held against all the others. It
// follows Sites, Routes and Nodes: put, putRoute and so on change both. Reading it is safe from any number of
// goroutines, as the state is; a copy costs nothing until it is changed.
type index struct {
	copying sync.Mutex                 // to copy a tree changes it, unseen by who reads it
	ranges  *claims                    // of sites
	carried *claims                    // approved routes
	routes  *btree.BTreeG[RouteKey]    // by node and prefix; nil: not of this state, see With
	nodes   *btree.BTreeG[siteAndNode] // live ones, by site and number
}

type siteAndNode struct {
	site string
	node protocol.NodeNumber
}

// claims are claimed prefixes, by address and then the wider first.
type claims struct {
	tree *btree.BTreeG[claim]
	bits [2][129]int // how many there are of each length, of IPv4 and IPv6
}

// claim is a site's range (node is 0) or a node's route (site is empty).
type claim struct {
	prefix netip.Prefix
	site   string
	node   protocol.NodeNumber
}

const degree = 32 // of the trees

func newIndex() *index {
	less := func(a, b claim) bool {
		return cmp.Or(a.prefix.Compare(b.prefix), cmp.Compare(a.node, b.node), cmp.Compare(a.site, b.site)) < 0
	}
	return &index{
		ranges:  &claims{tree: btree.NewG(degree, less)},
		carried: &claims{tree: btree.NewG(degree, less)},
		routes: btree.NewG(degree, func(a, b RouteKey) bool {
			return cmp.Or(cmp.Compare(a.Node, b.Node), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits())) < 0
		}),
		nodes: btree.NewG(degree, func(a, b siteAndNode) bool {
			return cmp.Or(cmp.Compare(a.site, b.site), cmp.Compare(a.node, b.node)) < 0
		}),
	}
}

func (x *index) clone() *index {
	x.copying.Lock()
	defer x.copying.Unlock()
	return &index{ranges: x.ranges.clone(), carried: x.carried.clone(), routes: x.routes.Clone(), nodes: x.nodes.Clone()}
}

func (c *claims) clone() *claims { return &claims{c.tree.Clone(), c.bits} }

func (c *claims) put(x claim) {
	if !x.prefix.IsValid() {
		return
	}
	if _, was := c.tree.ReplaceOrInsert(x); !was {
		*c.of(x.prefix, x.prefix.Bits())++
	}
}

func (c *claims) drop(x claim) {
	if _, was := c.tree.Delete(x); was {
		*c.of(x.prefix, x.prefix.Bits())--
	}
}

func (c *claims) of(p netip.Prefix, bits int) *int {
	if p.Addr().Is4() {
		return &c.bits[0][bits]
	}
	return &c.bits[1][bits]
}

// overlapping calls each with the claims that p overlaps: those around it, the widest first, then
// equal ones and those inside it; until it returns false.
func (c *claims) overlapping(p netip.Prefix, each func(claim) bool) {
	if !p.IsValid() {
		return
	}
	stopped := false
	for bits := range p.Bits() {
		if *c.of(p, bits) == 0 {
			continue
		}
		around := netip.PrefixFrom(p.Addr(), bits).Masked()
		c.tree.AscendGreaterOrEqual(claim{prefix: around}, func(x claim) bool {
			stopped = x.prefix == around && !each(x)
			return x.prefix == around && !stopped
		})
		if stopped {
			return
		}
	}
	c.tree.AscendGreaterOrEqual(claim{prefix: p.Masked()}, func(x claim) bool {
		return p.Overlaps(x.prefix) && each(x)
	})
}

// putRoute, dropRoute, putSite, dropSite and putNode change the state and its index.
func (s *State) putRoute(r Route) {
	s.Routes[r.RouteKey] = r
	s.found.routes.ReplaceOrInsert(r.RouteKey)
	if x := (claim{prefix: r.Prefix, node: r.Node}); r.State == protocol.RouteApproved {
		s.found.carried.put(x)
	} else {
		s.found.carried.drop(x)
	}
}

func (s *State) dropRoute(k RouteKey) {
	delete(s.Routes, k)
	s.found.routes.Delete(k)
	s.found.carried.drop(claim{prefix: k.Prefix, node: k.Node})
}

func (s *State) putSite(site Site) {
	for _, p := range s.Sites[site.Name].Ranges {
		s.found.ranges.drop(claim{prefix: p, site: site.Name})
	}
	for _, p := range site.Ranges {
		s.found.ranges.put(claim{prefix: p, site: site.Name})
	}
	s.Sites[site.Name] = site
}

func (s *State) dropSite(name string) {
	s.putSite(Site{Name: name})
	delete(s.Sites, name)
}

func (s *State) putNode(n Node) {
	s.Nodes[n.Number] = n
	if at := (siteAndNode{n.Site, n.Number}); n.Live() {
		s.found.nodes.ReplaceOrInsert(at)
	} else {
		s.found.nodes.Delete(at)
	}
}

// reindex makes the index of a state whose tables were filled otherwise.
func (s *State) reindex() {
	s.found = newIndex()
	for _, site := range s.Sites {
		s.putSite(site)
	}
	for _, r := range s.Routes {
		s.putRoute(r)
	}
	for _, n := range s.Nodes {
		s.putNode(n)
	}
}

// Equal reports whether both have the same.
func (x *index) Equal(y *index) bool {
	if x == nil || y == nil {
		return x == y
	}
	return slices.Equal(listed(x.ranges.tree), listed(y.ranges.tree)) && slices.Equal(listed(x.carried.tree), listed(y.carried.tree)) &&
		x.ranges.bits == y.ranges.bits && x.carried.bits == y.carried.bits &&
		slices.Equal(listed(x.routes), listed(y.routes)) && slices.Equal(listed(x.nodes), listed(y.nodes))
}

func listed[T any](t *btree.BTreeG[T]) (out []T) {
	t.Ascend(func(x T) bool {
		out = append(out, x)
		return true
	})
	return out
}
