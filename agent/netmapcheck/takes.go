package netmapcheck

import (
	"net/netip"
	"slices"

	"causeway/agent/held"
	"causeway/netns"
	"causeway/protocol"
)

// Owned is what a host has of its own, to be asked what a change would take away from it. Every
// advice that may cut the host from a network of its own asks here before it is printed.
type Owned struct {
	routes map[netip.Prefix]netns.Foreign
	cover  *held.Cover
	kept   []held.Exception
	ways   []netip.Addr
}

// NewOwned takes the host's own routes, the addresses that it relies on, and of these its
// gateways and hubs, which nothing takes away.
func NewOwned(foreign []netns.Foreign, kept []held.Exception, ways []netip.Addr) *Owned {
	o := &Owned{routes: make(map[netip.Prefix]netns.Foreign, len(foreign)), cover: held.NewCover(foreignPrefixes(foreign)), kept: kept, ways: ways}
	for _, f := range foreign {
		o.routes[f.Prefix] = f
	}
	return o
}

func foreignPrefixes(l []netns.Foreign) []netip.Prefix {
	out := make([]netip.Prefix, len(l))
	for i, f := range l {
		out[i] = f.Prefix
	}
	return out
}

// Takes is what the host would lose of its own if r went into the tunnel because accept: names it
// exactly: the longest of its routes that has all of r, and addresses that it relies on. What it
// has inside r by a longer route stays.
func (o *Owned) Takes(r netip.Prefix) (out []protocol.Own) {
	wide, covered := o.cover.Of(r)
	var lost protocol.Own
	if covered {
		lost = ownPart(o.routes[wide], r)
	}
	for _, k := range o.kept {
		x := netip.PrefixFrom(k.Addr, k.Addr.BitLen())
		if !r.Contains(k.Addr) {
			continue
		}
		if l, ok := o.cover.Of(x); ok && l.Bits() > r.Bits() {
			continue
		}
		switch {
		case covered && o.routes[wide].Direct:
			lost.Needs = append(lost.Needs, k.What+" "+k.Addr.String())
		case o.Way(k.Addr): // it alone stays
		default:
			out = append(out, protocol.Own{Prefix: x, Needs: []string{k.What}})
		}
	}
	if covered {
		lost.Fixed = o.Fixed(r)
		out = slices.Insert(out, 0, lost)
	}
	return out
}

// Ways are the gateways, and those hubs that the host relied on before a range had them: what a
// hub calls a hub's address later opens nothing.
func Ways(kept []held.Exception, gateways, hubs []netip.Addr) []netip.Addr {
	out := slices.Clone(gateways)
	for _, k := range kept {
		if slices.Contains(hubs, k.Addr) {
			out = append(out, k.Addr)
		}
	}
	return out
}

// Way reports whether an address is a gateway or a hub.
func (o *Owned) Way(a netip.Addr) bool { return slices.Contains(o.ways, a) }

// Fixed reports whether nothing takes r from the host, whatever accept: names: it is a link's own
// network, or a part of one, and a gateway or a hub of the host's is in it.
func (o *Owned) Fixed(r netip.Prefix) bool {
	wide, ok := o.cover.Of(r)
	return ok && o.routes[wide].Direct && slices.ContainsFunc(o.ways, func(a netip.Addr) bool {
		l, _ := o.cover.Of(netip.PrefixFrom(a, a.BitLen()))
		return r.Contains(a) && l == wide
	})
}

// ownPart is the part of f that lies in r, which is inside f or has f inside.
func ownPart(f netns.Foreign, r netip.Prefix) protocol.Own {
	x := f.Exception(r)
	out := protocol.Own{Prefix: x.Prefix, Link: x.Link, Via: x.Via}
	if f.Prefix != out.Prefix {
		out.Of = f.Prefix
	}
	return out
}
