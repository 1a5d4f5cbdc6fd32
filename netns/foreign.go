package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Foreign is a route of the host's own, outside our table and no default one, nor a part
// of one such as the halves that other VPNs set.
type Foreign struct {
	Prefix netip.Prefix
	// Link is where it leads, Via by which gateway there, Src the source address that
	// it names. Link is empty where the route is no plain one of the main table, and
	// then nothing but the host's own tables can say what becomes of a packet.
	Link     string
	Via, Src netip.Addr
	Direct   bool // it is a link's own network
}

// Exception keeps the part of f that lies in x, which is inside f or has f inside.
func (f Foreign) Exception(x netip.Prefix) Exception {
	if x.Bits() < f.Prefix.Bits() {
		x = f.Prefix
	}
	return Exception{Prefix: x, Link: f.Link, Via: f.Via, Src: f.Src}
}

// ForeignRoutes lists the host's own non-default routes outside our table, each
// prefix once, sorted. Loopback, link-local and multicast ranges and what goes into
// the tunnel's own interface are left out.
func (h *Host) ForeignRoutes(ctx context.Context, c Config) ([]Foreign, error) {
	own := -1
	if l, err := c.Device(); err != nil {
		return nil, err
	} else if l != nil {
		own = l.Attrs().Index
	}
	type candidate struct {
		Foreign
		main   bool
		metric int
	}
	best := map[netip.Prefix]candidate{}
	names := map[int]string{}
	links := map[int]bool{}
	for _, v6 := range kernel.Families() {
		rs, err := kernel.Retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(kernel.Family(v6), &netlink.Route{}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range rs {
			x, ok := kernel.PrefixOf(r.Dst)
			if !ok || x.Bits() < protocol.LeastPrefixBits || r.Table == c.Table || r.Table == unix.RT_TABLE_LOCAL || own >= 0 && r.LinkIndex == own {
				continue
			}
			a := x.Addr()
			if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
				continue
			}
			f := candidate{Foreign: Foreign{Prefix: x.Masked()}, main: r.Table == unix.RT_TABLE_MAIN, metric: r.Priority}
			plain := f.main && r.Type == unix.RTN_UNICAST && len(r.MultiPath) == 0 && r.Encap == nil && r.NewDst == nil && r.Via == nil && r.LinkIndex > 0
			if plain {
				links[r.LinkIndex] = true
				if _, ok := names[r.LinkIndex]; !ok {
					names[r.LinkIndex] = kernel.LinkName(r.LinkIndex, own, c.Interface)
				}
				src, _ := netip.AddrFromSlice(r.Src)
				via, _ := netip.AddrFromSlice(r.Gw)
				f.Link, f.Src, f.Via, f.Direct = names[r.LinkIndex], src.Unmap(), via.Unmap(), len(r.Gw) == 0
				if f.Link == "?" { // it has just gone
					f.Link, f.Src, f.Via = "", netip.Addr{}, netip.Addr{}
				}
			}
			b, ok := best[f.Prefix]
			if !ok || f.main && !b.main || f.main == b.main && f.metric < b.metric {
				best[f.Prefix] = f
			}
		}
	}
	h.links.Store(&links)
	out := make([]Foreign, 0, len(best))
	for _, f := range best {
		out = append(out, f.Foreign)
	}
	slices.SortFunc(out, func(a, b Foreign) int { return a.Prefix.Compare(b.Prefix) })
	return out, nil
}

// Gateways are those of the host's default routes in its main table, and of parts of one such as
// the halves that other VPNs set.
func (h *Host) Gateways(_ context.Context, c Config) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, v6 := range kernel.Families() {
		rs, err := kernel.Retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(kernel.Family(v6), &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range rs {
			if x, ok := kernel.PrefixOf(r.Dst); r.Dst != nil && (!ok || x.Bits() >= protocol.LeastPrefixBits) {
				continue
			}
			ways := []net.IP{r.Gw}
			for _, n := range r.MultiPath {
				ways = append(ways, n.Gw)
			}
			for _, w := range ways {
				if a, ok := netip.AddrFromSlice(w); ok {
					out = append(out, a.Unmap())
				}
			}
		}
	}
	return out, nil
}

// LeadsOut reports whether a default route of the host's leads by an interface. Where it cannot
// be told, it does.
func LeadsOut(name string) bool {
	l, err := kernel.LinkByName(name)
	if err != nil || l == nil {
		return err != nil
	}
	out, err := leadOut()
	return err != nil || out[l.Attrs().Index]
}

// leadOut are the indexes of the links that default routes of the host's lead by.
func leadOut() (map[int]bool, error) {
	out := map[int]bool{}
	for _, v6 := range kernel.Families() {
		rs, err := kernel.Retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(kernel.Family(v6), &netlink.Route{}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range rs {
			if x, ok := kernel.PrefixOf(r.Dst); r.Dst != nil && (!ok || x.Bits() != 0) || r.Type != unix.RTN_UNICAST {
				continue
			}
			addLinks(out, r, -1)
		}
	}
	return out, nil
}

// Standing is p without copies of routes that the host has no more: the kernel took
// both away.
func (h *Host) Standing(ctx context.Context, p Plan) (Plan, error) {
	if !slices.ContainsFunc(p.Except, func(x Exception) bool { return x.Link != "" }) {
		return p, nil
	}
	foreign, err := h.ForeignRoutes(ctx, p.Config)
	if err != nil {
		return p, err
	}
	p.Except = slices.DeleteFunc(slices.Clone(p.Except), func(x Exception) bool {
		return x.Link != "" && !slices.ContainsFunc(foreign, func(f Foreign) bool {
			return f.Prefix.Bits() <= x.Prefix.Bits() && f.Prefix.Contains(x.Prefix.Addr()) && f.Exception(x.Prefix) == x
		})
	})
	return p, nil
}
