package netns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// The wall beside the routes. What our table leads into the tunnel, or answers as unreachable,
// leaves by nothing but the tunnel's interface, whoever led it elsewhere: a rule of routing
// policy before ours, a route of another table, or the kernel, which takes IPv6's closed routes
// away with lo. Which addresses that are is read off the routes of the plan themselves, by the
// longest prefix as the kernel does it, so that routes and wall never say two things.
const (
	// chainClosed is asked last, where it is certain by which interface a packet leaves:
	// after destination NAT and after what routes anew behind the output hook. Its priority is
	// before that of others who change marks there.
	chainClosed = "closed"
	// chainBridged marks what a bridge passes on from port to port, which br_netfilter shows
	// like a forwarded packet. The host does not route it, and it is none of ours.
	chainBridged = "closed-bridged"
	bridgedMark  = DefaultMark + 1
	setClosed4   = "closed4"
	setClosed6   = "closed6"
)

// Bridge is a bridge of the host's with its own address: a frame to that is for the host.
type Bridge struct{ Name, MAC string }

// deciding are the routes of our table that decide over packets, one for each prefix, sorted: of
// two for one prefix that with the lesser metric.
func (p Plan) deciding() []route {
	l := p.routes()
	slices.SortStableFunc(l, func(a, b route) int {
		if c := a.prefix.Compare(b.prefix); c != 0 {
			return c
		}
		return a.metric - b.metric
	})
	return slices.CompactFunc(l, func(a, b route) bool { return a.prefix == b.prefix })
}

// own reports whether a route leaves its packets to the host's own network.
func (r route) own(dev string) bool { return r.throw || !r.closed && r.dev != dev }

// Closed are the addresses of a family which leave this host by the tunnel alone, or not at all:
// those that no route of the host's own takes out, by the longest prefix. They are sorted, and no two runs meet.
func (p Plan) Closed(v6 bool) (out []netipx.IPRange) {
	emit := func(from, to netip.Addr, shut bool) {
		if !shut || to.Less(from) {
			return
		}
		if n := len(out); n > 0 && out[n-1].To().Next() == from {
			from = out[n-1].From()
			out = out[:n-1]
		}
		out = append(out, netipx.IPRangeFrom(from, to))
	}
	type around struct {
		last netip.Addr
		shut bool
	}
	var in []around // the prefixes that the next one may lie in, the widest first
	var next netip.Addr
	leave := func(before netip.Addr) { // those that end before an address; not valid: all
		for len(in) > 0 && (!before.IsValid() || in[len(in)-1].last.Less(before)) {
			a := in[len(in)-1]
			emit(next, a.last, a.shut)
			next, in = a.last.Next(), in[:len(in)-1]
		}
	}
	for _, r := range p.deciding() {
		first := r.prefix.Addr()
		if first.Is6() != v6 {
			continue
		}
		leave(first)
		if len(in) > 0 && next.Less(first) {
			emit(next, first.Prev(), in[len(in)-1].shut)
		}
		next = first
		in = append(in, around{netipx.PrefixLastIP(r.prefix), !r.own(p.Interface)})
	}
	leave(netip.Addr{})
	return out
}

// nftClosedSets are the sets of the wall, nftClosed its chains, as Plan.nft has them.
func (p Plan) nftClosedSets() (out []string) {
	for _, v6 := range []bool{false, true} {
		l := p.Closed(v6)
		if len(l) == 0 {
			continue
		}
		name, typ := setClosed4, "ipv4_addr"
		if v6 {
			name, typ = setClosed6, "ipv6_addr"
		}
		out = append(out, nftSet(name, typ))
		for _, r := range l {
			out = append(out, nftElement(name, nftRange(r)))
		}
	}
	return out
}

func nftSet(name, typ string) string {
	return fmt.Sprintf("set inet %s %s { type %s; flags interval; }", NftTable, name, typ)
}

func nftElement(set, text string) string {
	return fmt.Sprintf("element inet %s %s { %s }", NftTable, set, text)
}

func nftRange(r netipx.IPRange) string {
	if x, ok := r.Prefix(); ok {
		return nftPrefix(x)
	}
	return r.From().String() + "-" + r.To().String()
}

// parseRange reads what nft lists of a set of addresses.
func parseRange(s string) (netipx.IPRange, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netipx.IPRangeFrom(a, a), true
	}
	if x, err := netip.ParsePrefix(s); err == nil {
		return netipx.RangeOfPrefix(x.Masked()), true
	}
	r, err := netipx.ParseIPRange(s)
	return r, err == nil && r.IsValid()
}

func (p Plan) nftClosed(sets []string) (out []string) {
	var match []string // what goes to a set
	for _, l := range sets {
		switch {
		case l == nftSet(setClosed4, "ipv4_addr"):
			match = append(match, "ip daddr @"+setClosed4)
		case l == nftSet(setClosed6, "ipv6_addr"):
			match = append(match, "ip6 daddr @"+setClosed6)
		}
	}
	if len(match) == 0 {
		return nil
	}
	t := " inet " + NftTable + " "
	rule := func(chain, format string, args ...any) {
		out = append(out, "rule"+t+chain+" "+fmt.Sprintf(format, args...))
	}
	if len(p.Bridged) > 0 {
		out = append(out, "chain"+t+chainBridged+" { type filter hook forward priority 10; policy accept; }")
		for _, b := range p.Bridged {
			for _, m := range match {
				rule(chainBridged, "%s iifname %q oifname %q ether daddr != %s meta mark set 0x%08x", m, b.Name, b.Name, strings.ToLower(b.MAC), bridgedMark)
			}
		}
	}
	out = append(out, "chain"+t+chainClosed+" { type filter hook postrouting priority -160; policy accept; }")
	rule(chainClosed, "oifname %q accept", p.Interface)
	rule(chainClosed, "oifname %q accept", "lo")
	rule(chainClosed, "meta mark 0x%08x accept", p.Mark)
	if len(p.Bridged) > 0 {
		rule(chainClosed, "meta mark 0x%08x accept", bridgedMark)
	}
	for _, m := range match {
		rule(chainClosed, "%s counter drop", m)
	}
	return out
}
