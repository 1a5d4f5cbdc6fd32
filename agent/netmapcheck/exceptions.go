package netmapcheck

import (
	"net/netip"
	"slices"

	"causeway/agent/held"
	"causeway/netns"
)

// Ground is what Exceptions weighs.
type Ground struct {
	Ranges  []netip.Prefix  // routed into the tunnel, and closed
	Routes  []netip.Prefix  // of Ranges those that peers have
	Own     []netip.Prefix  // the node's own, which are thrown back to the host
	Named   []netip.Prefix  // in accept:, by an operator
	Foreign []netns.Foreign // the host's own routes
	Kept    []held.Exception
	Ways    []netip.Addr // gateways and hubs: no name in accept: takes them away
}

// Exceptions are what stays the host's own inside the tunnel's ranges, and Apart
// those of Kept among them.
//
//   - A route of the host's own that is longer than the range it lies in.
//   - A link's own network that came where a range was routed, as large or larger: the
//     part of it that would be closed. A route by a gateway that is so wide is none: any
//     LAN can hand one out.
//   - An address that the host relies on, unless accept: names the range. Gateways and hubs
//     stay all the same.
//
// What accept: names exactly goes where the operator wants it, and is closed when it
// goes away; but for a link's own network in which a gateway or a hub is.
func Exceptions(g Ground) (all []netns.Exception, apart []held.Exception) {
	owned := NewOwned(g.Foreign, g.Kept, g.Ways)
	names := slices.DeleteFunc(slices.Clone(g.Named), owned.Fixed)
	tunnel, live, own, named := held.NewCover(g.Ranges, g.Routes), held.NewCover(g.Routes), held.NewCover(g.Own), held.NewCover(names)
	// in is the range of the tunnel's that x lies in, unless the node's own is longer.
	in := func(x netip.Prefix) (netip.Prefix, bool) {
		q, ok := tunnel.Of(x)
		if !ok {
			return q, false
		}
		o, ours := own.Of(x)
		return q, !ours || o.Bits() < q.Bits()
	}
	links := map[netip.Prefix]netns.Foreign{}
	var direct, kept []netip.Prefix
	for _, f := range g.Foreign {
		if f.Direct {
			links[f.Prefix] = f
			direct = append(direct, f.Prefix)
		}
		q, ok := in(f.Prefix)
		if !ok || named.Has(f.Prefix) || q == f.Prefix && (live.Has(q) || !f.Direct) {
			continue
		}
		all = append(all, f.Exception(f.Prefix))
		kept = append(kept, f.Prefix)
	}
	wide := held.NewCover(direct)
	for _, q := range g.Ranges {
		if live.Has(q) || named.Has(q) {
			continue
		}
		if f, ok := wide.Of(q); ok && f != q {
			all = append(all, links[f].Exception(q))
			kept = append(kept, q)
		}
	}
	local := held.NewCover(kept)
	for _, k := range g.Kept {
		x := netip.PrefixFrom(k.Addr, k.Addr.BitLen())
		q, ok := in(x)
		if !ok || named.Has(q) && !slices.Contains(g.Ways, k.Addr) {
			continue
		}
		if l, ok := local.Of(x); ok && l.Bits() >= q.Bits() {
			continue
		}
		all = append(all, netns.Exception{Prefix: x})
		apart = append(apart, k)
	}
	return all, apart
}
