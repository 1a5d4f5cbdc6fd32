package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// metric6 is the kernel's metric of an IPv6 route for which none was asked.
const metric6 = 1024

// toRoute is a kernel's route in the form of the plan's; names gives a link's
// name by its index.
func toRoute(r netlink.Route, name func(int) string) (route, bool) {
	x, ok := kernel.PrefixOf(r.Dst)
	if !ok {
		return route{}, false
	}
	metric := r.Priority
	if x.Addr().Is6() && metric == metric6 {
		metric = 0
	}
	switch r.Type {
	case unix.RTN_THROW:
		return route{prefix: x, throw: true, metric: metric}, true
	case unix.RTN_UNREACHABLE:
		return route{prefix: x, closed: true, metric: metric}, true
	}
	src, _ := netip.AddrFromSlice(r.Src)
	via, _ := netip.AddrFromSlice(r.Gw)
	return route{prefix: x, src: src.Unmap(), mtu: r.MTU, dev: name(r.LinkIndex), via: via.Unmap(), metric: metric}, true
}

// netlink is the kernel's form; index is that of the link it leads to.
func (r route) netlink(index, table int) *netlink.Route {
	n := &netlink.Route{Dst: netipx.PrefixIPNet(r.prefix), Table: table, Protocol: RouteProtocol, Priority: r.metric}
	switch {
	case r.throw:
		n.Type = unix.RTN_THROW
		return n
	case r.closed:
		n.Type = unix.RTN_UNREACHABLE
		return n
	}
	n.LinkIndex, n.MTU = index, r.mtu
	switch {
	case r.via.IsValid():
		n.Gw = r.via.AsSlice()
		n.SetFlag(netlink.FLAG_ONLINK)
	case r.prefix.Addr().Is4():
		n.Scope = netlink.SCOPE_LINK
	}
	if r.src.IsValid() {
		n.Src = r.src.AsSlice()
	}
	return n
}

// applyRoutes makes our table match the plan. New and changed routes come
// first, so that nothing that stays is ever missing, and what is closed is
// closed before what led into the tunnel goes. Without a link (nil) what does
// not lead into the tunnel is added, and nothing is deleted.
func applyRoutes(link netlink.Link, p Plan, f *Failures) {
	index := -1
	if link != nil {
		index = link.Attrs().Index
	}
	routes := p.routes()
	want, wanted := make(map[route]bool, len(routes)), make(map[slot]route, len(routes))
	for _, r := range routes {
		want[r], wanted[r.slot()] = true, r
	}
	for _, v6 := range kernel.Families() {
		have, err := ourRoutes(v6, p.Table)
		if err != nil {
			f.add(Routes, "", err)
			continue
		}
		right := map[slot]bool{}
		var stale, first []netlink.Route
		for _, n := range have {
			r, ok := toRoute(n, func(i int) string { return kernel.LinkName(i, index, p.Interface) })
			if ok && !right[r.slot()] && want[r] {
				right[r.slot()] = true
				continue
			}
			// IPv6 takes a second route of another kind with the same destination as
			// a further hop, so that what is wrong there goes first; else a route is
			// replaced, so that its packets never take the default route meanwhile.
			if w, there := wanted[r.slot()]; ok && v6 && there && (w.throw != r.throw || w.closed != r.closed || w.dev != r.dev || w.via != r.via) {
				first = append(first, n)
				continue
			}
			stale = append(stale, n)
		}
		if link == nil {
			first, stale = nil, nil
		}
		deleteRoutes(first, f)
		tried := map[slot]bool{}
		for _, r := range routes {
			if r.prefix.Addr().Is6() != v6 || right[r.slot()] {
				continue
			}
			to := index
			switch {
			case r.throw || r.closed:
			case r.dev != p.Interface:
				l, err := kernel.LinkByName(r.dev)
				if err != nil {
					f.add(Routes, r.line(p.Table), err)
					continue
				}
				if l == nil {
					continue // it has just gone, and with it the route that this is a copy of
				}
				to = l.Attrs().Index
			case link == nil:
				continue // Apply tells that the device is missing
			}
			err := netlink.RouteReplace(r.netlink(to, p.Table))
			if to != index && (errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL)) {
				continue // or its address has
			}
			if err != nil {
				f.add(Routes, r.line(p.Table), fmt.Errorf("set route: %s: %w", r.line(p.Table), err))
			}
			tried[r.slot()] = true // if that failed, the one before is better than the default route
		}
		deleteRoutes(slices.DeleteFunc(stale, func(n netlink.Route) bool {
			r, ok := toRoute(n, func(int) string { return "" })
			return ok && tried[r.slot()]
		}), f)
	}
}

// Ranges returns the prefixes of our table that lead into the tunnel or are closed:
// what an earlier run of the agent had routed.
func (h *Host) Ranges(_ context.Context, c Config) ([]netip.Prefix, error) {
	index := -1
	if l, err := c.Device(); err != nil {
		return nil, err
	} else if l != nil {
		index = l.Attrs().Index
	}
	var out []netip.Prefix
	for _, v6 := range kernel.Families() {
		rs, err := ourRoutes(v6, c.Table)
		if err != nil {
			return nil, err
		}
		for _, n := range rs {
			r, ok := toRoute(n, func(int) string { return "" })
			if ok && !r.throw && (r.closed || n.LinkIndex == index) {
				out = append(out, r.prefix)
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}

// Apart returns the single addresses that our table throws back to the host's own: what an
// earlier run of the agent kept outside the tunnel.
func (h *Host) Apart(_ context.Context, c Config) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, v6 := range kernel.Families() {
		rs, err := ourRoutes(v6, c.Table)
		if err != nil {
			return nil, err
		}
		for _, n := range rs {
			if r, ok := toRoute(n, func(int) string { return "" }); ok && r.throw && r.prefix.IsSingleIP() {
				out = append(out, r.prefix.Addr())
			}
		}
	}
	return out, nil
}
