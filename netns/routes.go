package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// prefixOf converts without masking: addresses keep their host part.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); bits == 0 || ones > a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), true
}

// ourRoutes are the entries of a table that carry our protocol number.
func ourRoutes(v6 bool, table int) ([]netlink.Route, error) {
	rs, err := retry(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(nlFamily(v6), &netlink.Route{Table: table, Protocol: RouteProtocol}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of table %d: %w", table, err)
	}
	return slices.DeleteFunc(rs, func(r netlink.Route) bool { return r.Protocol != RouteProtocol }), nil
}

// toRoute is a kernel's route in the form of the plan's; names gives a link's
// name by its index.
func toRoute(r netlink.Route, name func(int) string) (route, bool) {
	x, ok := prefixOf(r.Dst)
	if !ok {
		return route{}, false
	}
	if r.Type == unix.RTN_THROW {
		return route{prefix: x, throw: true}, true
	}
	src, _ := netip.AddrFromSlice(r.Src)
	return route{prefix: x, src: src.Unmap(), mtu: r.MTU, dev: name(r.LinkIndex)}, true
}

func (r route) netlink(link netlink.Link, table int) *netlink.Route {
	n := &netlink.Route{Dst: netipx.PrefixIPNet(r.prefix), Table: table, Protocol: RouteProtocol}
	if r.throw {
		n.Type = unix.RTN_THROW
		return n
	}
	n.LinkIndex, n.MTU = link.Attrs().Index, r.mtu
	if r.prefix.Addr().Is4() {
		n.Scope = netlink.SCOPE_LINK
	}
	if r.src.IsValid() {
		n.Src = r.src.AsSlice()
	}
	return n
}

// metric6 is the kernel's metric of an IPv6 route for which none was asked.
const metric6 = 1024

// applyRoutes makes our table match the plan. New and changed routes come
// first, so that nothing that stays is ever missing.
func applyRoutes(link netlink.Link, p Plan, f *Failures) {
	want := p.routes()
	index := link.Attrs().Index
	for _, v6 := range families() {
		have, err := ourRoutes(v6, p.Table)
		if err != nil {
			f.add(Routes, "", err)
			continue
		}
		name := func(i int) string {
			if i == index {
				return p.Interface
			}
			return ""
		}
		right := map[netip.Prefix]bool{}
		var stale []netlink.Route
		for _, n := range have {
			r, ok := toRoute(n, name)
			if ok && !right[r.prefix] && slices.Contains(want, r) {
				right[r.prefix] = true
				continue
			}
			stale = append(stale, n)
		}
		// IPv6 takes a second route of another kind with the same destination as
		// a further hop, so that what is wrong there goes first; else a route is
		// replaced, so that its packets never take the default route meanwhile.
		if v6 {
			gone := slices.DeleteFunc(slices.Clone(stale), func(n netlink.Route) bool {
				r, ok := toRoute(n, name)
				return ok && n.Priority == metric6 && slices.ContainsFunc(want, func(w route) bool {
					return w.prefix == r.prefix && w.throw == r.throw && w.dev == r.dev && !right[r.prefix]
				})
			})
			deleteRoutes(gone, f)
		}
		for _, r := range want {
			if r.prefix.Addr().Is6() != v6 || right[r.prefix] {
				continue
			}
			if err := netlink.RouteReplace(r.netlink(link, p.Table)); err != nil {
				f.add(Routes, r.line(p.Table), fmt.Errorf("set route %s dev %s table %d: %w", r.prefix, p.Interface, p.Table, err))
			}
			// Replaced; if that failed, the one before is better than the default route.
			stale = slices.DeleteFunc(stale, func(n netlink.Route) bool {
				x, _ := prefixOf(n.Dst)
				return x == r.prefix
			})
		}
		if !v6 {
			deleteRoutes(stale, f)
		}
	}
}

func deleteRoutes(rs []netlink.Route, f *Failures) {
	for i := range rs {
		if err := netlink.RouteDel(&rs[i]); err != nil && !errors.Is(err, unix.ESRCH) {
			what := fmt.Sprintf("delete route %s table %d", rs[i].Dst, rs[i].Table)
			f.add(Routes, what, fmt.Errorf("%s: %w", what, err))
		}
	}
}

// ourRules are the rules that look into our table.
func ourRules(v6 bool, table int) ([]netlink.Rule, error) {
	rs, err := retry(func() ([]netlink.Rule, error) { return netlink.RuleList(nlFamily(v6)) })
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	rs = slices.DeleteFunc(rs, func(r netlink.Rule) bool { return r.Table != table })
	for i := range rs {
		rs[i].Family = nlFamily(v6)
	}
	return rs, nil
}

func rightRule(r netlink.Rule, p Plan) bool {
	return r.Invert && r.Mark == p.Mark && r.Priority == RulePreference && r.Protocol == RouteProtocol &&
		r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" && (r.Mask == nil || *r.Mask == ^uint32(0))
}

func applyRules(p Plan, f *Failures) {
	for _, v6 := range families() {
		line := ruleLine(v6, p.Mark, p.Table, RulePreference)
		have, err := ourRules(v6, p.Table)
		if err != nil {
			f.add(Rules, line, err)
			continue
		}
		found := !p.has(v6)
		for i := range have {
			if !found && rightRule(have[i], p) {
				found = true
				continue
			}
			if err := netlink.RuleDel(&have[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				f.add(Rules, have[i].String(), fmt.Errorf("delete rule %s: %w", have[i], err))
			}
		}
		if found {
			continue
		}
		r := netlink.NewRule()
		r.Family, r.Invert, r.Mark, r.Table = nlFamily(v6), true, p.Mark, p.Table
		r.Priority, r.Protocol = RulePreference, RouteProtocol
		if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			f.add(Rules, line, fmt.Errorf("add rule not fwmark 0x%x lookup %d: %w", p.Mark, p.Table, err))
		}
	}
}

// ForeignRoutes lists the host's own non-default routes outside our table:
// prefixes that a netmap may not take over unless accept: names them exactly.
// Loopback, link-local and multicast ranges and what goes into the tunnel's
// own interface are left out.
func (h *Host) ForeignRoutes(ctx context.Context, c Config) ([]netip.Prefix, error) {
	own := -1
	if l, err := ownLink(c); err != nil {
		return nil, err
	} else if l != nil {
		own = l.Attrs().Index
	}
	var out []netip.Prefix
	for _, v6 := range families() {
		rs, err := retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(nlFamily(v6), &netlink.Route{}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range rs {
			x, ok := prefixOf(r.Dst)
			if !ok || x.Bits() == 0 || r.Table == c.Table || r.Table == unix.RT_TABLE_LOCAL || own >= 0 && r.LinkIndex == own {
				continue
			}
			a := x.Addr()
			if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
				continue
			}
			out = append(out, x.Masked())
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}
