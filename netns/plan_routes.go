package netns

import (
	"fmt"
	"net/netip"
	"slices"

	"causeway/protocol"
)

// Exception is a prefix that stays the host's own inside a range of the tunnel's.
// With a Link it is a copy of a route that the host has, Via and Src included: the
// kernel takes it away with the link, and what the link had goes into the tunnel
// again at that moment, not to the default route. Without one the host's own tables
// decide.
type Exception struct {
	Prefix   netip.Prefix
	Link     string
	Via, Src netip.Addr
}

// heldMetric puts a closed route behind any other one to the same prefix.
const heldMetric = 9999

// normalExceptions checks and sorts; of two for one prefix the first one holds.
func normalExceptions(in []Exception) ([]Exception, error) {
	out := make([]Exception, 0, len(in))
	for _, x := range in {
		x.Prefix = x.Prefix.Masked()
		if err := protocol.CheckPrefix(x.Prefix); err != nil {
			return nil, fmt.Errorf("exception %s %w", x.Prefix, err)
		}
		out = append(out, x)
	}
	slices.SortStableFunc(out, func(a, b Exception) int { return a.Prefix.Compare(b.Prefix) })
	return slices.CompactFunc(out, func(a, b Exception) bool { return a.Prefix == b.Prefix }), nil
}

// route is one entry of our table: into the tunnel; a throw, which sends the lookup
// on to the host's own tables; closed, which answers that nobody is there; or a copy
// of a route of the host's own.
type route struct {
	prefix        netip.Prefix
	throw, closed bool
	src           netip.Addr
	mtu           int
	dev           string
	via           netip.Addr
	metric        int // 0: the kernel's default
}

// slot is what the kernel has one route for.
type slot struct {
	prefix netip.Prefix
	metric int
}

func (r route) slot() slot { return slot{r.prefix, r.metric} }

// routes are the entries of our table. What lies behind the node itself must
// not be caught by a wider prefix of another node: our rule comes before
// main, so that a throw route hands these back to main.
func (p Plan) routes() []route {
	var out []route
	taken := map[netip.Prefix]bool{}
	add := func(r route) {
		if !taken[r.prefix] {
			taken[r.prefix] = true
			out = append(out, r)
		}
	}
	for _, x := range p.Local {
		if !slices.Contains(p.Bare, x) {
			add(route{prefix: x, throw: true})
		}
	}
	for _, x := range p.Except {
		add(route{prefix: x.Prefix, throw: x.Link == "", dev: x.Link, via: x.Via, src: x.Src})
	}
	for _, x := range slices.Concat(p.Routes, p.Refused) { // one that is ours as well: another node of the same group
		mtu := p.mtu(x)
		if x.Addr().Is6() {
			mtu = max(mtu, ipv6MTU)
		}
		add(route{prefix: x, src: p.Source(x.Addr().Is6()), mtu: mtu, dev: p.Interface})
	}
	for _, x := range p.Held {
		out = append(out, route{prefix: x, closed: true, metric: heldMetric})
	}
	slices.SortStableFunc(out, func(a, b route) int { return a.prefix.Compare(b.prefix) })
	return out
}

func (r route) line(table int) string {
	f := family(r.prefix.Addr().Is6())
	switch {
	case r.throw:
		return fmt.Sprintf("ip %s route add throw %s proto %d table %d", f, r.prefix, RouteProtocol, table)
	case r.closed:
		return fmt.Sprintf("ip %s route add unreachable %s proto %d metric %d table %d", f, r.prefix, RouteProtocol, r.metric, table)
	}
	s := fmt.Sprintf("ip %s route add %s", f, r.prefix)
	if r.via.IsValid() {
		s += " via " + r.via.String()
	}
	s += fmt.Sprintf(" dev %s proto %d", r.dev, RouteProtocol)
	if r.src.IsValid() {
		s += " src " + r.src.String()
	}
	if r.mtu > 0 {
		s += fmt.Sprintf(" mtu %d", r.mtu)
	}
	if r.metric > 0 {
		s += fmt.Sprintf(" metric %d", r.metric)
	}
	if r.via.IsValid() {
		s += " onlink" // the gateway may lie in what the tunnel has
	}
	return s + fmt.Sprintf(" table %d", table)
}
