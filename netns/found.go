package netns

import (
	"context"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"causeway/netns/internal/kernel"
)

// Found returns what is there of ours, in the form of Plan.Lines, so that the
// two can be compared line by line. Kernel settings are those that any plan
// for c could set, with the values of now. Nothing is changed.
func (h *Host) Found(ctx context.Context, c Config) ([]string, error) {
	link, err := c.Device()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, k := range lineOrder {
		l, err := h.found(ctx, link, c, k)
		if err != nil {
			return nil, err
		}
		out = append(out, l...)
	}
	out = append(out, foundHairpins(c.Hairpin)...)
	parts, err := h.foundParts(ctx, c)
	return append(out, parts...), err
}

// found is Found for one kind; link may be nil.
func (h *Host) found(ctx context.Context, link netlink.Link, c Config, k Kind) (out []string, err error) {
	switch k {
	case Link:
		out = append(out, foundLink(link, c)...)
	case Addresses:
		if link == nil {
			return nil, nil
		}
		as, err := linkAddrs(link)
		if err != nil {
			return nil, err
		}
		local, err := delivered(link, as)
		if err != nil {
			return nil, err
		}
		for _, a := range as {
			if local[a.Addr()] { // else it is there in name alone
				out = append(out, a.line(c.Interface))
			}
		}
	case Routes:
		index := -1
		if link != nil {
			index = link.Attrs().Index
		}
		var routes []route
		for _, v6 := range kernel.Families() {
			rs, err := ourRoutes(v6, c.Table)
			if err != nil {
				return nil, err
			}
			for _, r := range rs {
				if f, ok := toRoute(r, func(i int) string { return kernel.LinkName(i, index, c.Interface) }); ok {
					routes = append(routes, f)
				}
			}
		}
		slices.SortStableFunc(routes, func(a, b route) int { return a.prefix.Compare(b.prefix) })
		for _, r := range routes {
			out = append(out, r.line(c.Table))
		}
	case Rules:
		for _, v6 := range kernel.Families() {
			us, err := ourRules(v6, c.Table)
			if err != nil {
				return nil, err
			}
			for _, u := range us {
				if u.Invert && u.Protocol == RouteProtocol {
					out = append(out, ruleLine(v6, u.Mark, u.Table, u.Priority))
				} else {
					out = append(out, "# "+u.String())
				}
			}
		}
	case Sysctls:
		for _, s := range (Plan{c}).sysctls() {
			if v, err := kernel.ReadSysctl(s.key); err == nil {
				out = append(out, sysctl{s.key, v}.line())
			}
		}
	case Nftables:
		nft, err := h.foundNft(ctx)
		if err != nil {
			return nil, err
		}
		for _, l := range nft {
			out = append(out, nftLine(l))
		}
	}
	return out, nil
}

// RouteMTUs returns the MTUs of the routes into the tunnel that are there, by
// prefix: what an earlier run of the agent found out.
func (h *Host) RouteMTUs(_ context.Context, c Config) (map[netip.Prefix]int, error) {
	out := map[netip.Prefix]int{}
	for _, v6 := range kernel.Families() {
		rs, err := ourRoutes(v6, c.Table)
		if err != nil {
			return nil, err
		}
		for _, n := range rs {
			if r, ok := toRoute(n, func(int) string { return "" }); ok && r.mtu > 0 {
				out[r.prefix] = r.mtu
			}
		}
	}
	return out, nil
}
