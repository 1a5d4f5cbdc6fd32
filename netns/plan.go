package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Plan is the desired state, a value that prints as the commands that would
// make it (ip, nft, sysctl), one a line.
type Plan struct{ Config }

// ipv6MTU is the least that IPv6 needs (RFC 8200, section 5).
const ipv6MTU = 1280

// maxInterface is IFNAMSIZ without the zero at the end.
const maxInterface = 15

// NewPlan computes the plan. It fails on a Config that makes no sense: nothing
// is ever routed by default, and loopback, link-local and multicast ranges
// never go into the tunnel. Prefixes are masked, sorted and made unique.
func NewPlan(c Config) (Plan, error) {
	if c.Interface == "" || len(c.Interface) > maxInterface || strings.ContainsAny(c.Interface, "/ \t\n\"'\\:") || c.Interface == "lo" {
		return Plan{}, fmt.Errorf("interface name %q: want 1 to %d characters without spaces, quotes, '/' and ':'", c.Interface, maxInterface)
	}
	if c.MTU < ipv6MTU || c.MTU > 65535 {
		return Plan{}, fmt.Errorf("route mtu %d is not between 1280 and 65535", c.MTU)
	}
	if c.LinkMTU != 0 && (c.LinkMTU < ipv6MTU || c.LinkMTU > 65535) {
		return Plan{}, fmt.Errorf("link mtu %d is not between 1280 and 65535", c.LinkMTU)
	}
	for x, mtu := range c.MTUs {
		if mtu < MinMTU || mtu > 65535 {
			return Plan{}, fmt.Errorf("route %s: mtu %d is not between %d and 65535", x, mtu, MinMTU)
		}
	}
	if c.Mark == 0 {
		return Plan{}, errors.New("the underlay's mark must not be zero: the tunnel would ride inside itself")
	}
	if c.Table < 1 || c.Table >= 253 && c.Table <= 255 {
		return Plan{}, fmt.Errorf("routing table %d: the tunnel needs one of its own", c.Table)
	}
	if len(c.Overlay) == 0 {
		return Plan{}, errors.New("no overlay address")
	}
	p := Plan{c}
	p.Overlay = slices.Clone(c.Overlay)
	for _, a := range p.Overlay {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() {
			return Plan{}, fmt.Errorf("overlay address %v is no plain unicast address", a)
		}
	}
	slices.SortFunc(p.Overlay, netip.Addr.Compare)
	p.Overlay = slices.Compact(p.Overlay)
	if a := c.Names; a.IsValid() && (!a.Is4() || !a.IsLinkLocalUnicast()) {
		return Plan{}, fmt.Errorf("address of names %v is no link-local IPv4 address", a)
	}
	var err error
	if p.Wall, err = c.Wall.normal(); err != nil {
		return Plan{}, err
	}
	if p.Routes, err = normal("route", c.Routes); err != nil {
		return Plan{}, err
	}
	if p.Local, err = normal("local prefix", c.Local); err != nil {
		return Plan{}, err
	}
	if p.Held, err = normal("held prefix", c.Held); err != nil {
		return Plan{}, err
	}
	if p.Refused, err = normal("refused prefix", c.Refused); err != nil {
		return Plan{}, err
	}
	if p.Except, err = normalExceptions(c.Except); err != nil {
		return Plan{}, err
	}
	if p.Shields.Allow, err = normalPorts(c.Shields.Allow); err != nil {
		return Plan{}, err
	}
	if err := checkParts(c.Parts); err != nil {
		return Plan{}, err
	}
	p.Forward6 = c.Forward6 && p.local(true)
	return p, nil
}

// normal masks, sorts and checks prefixes.
func normal(what string, in []netip.Prefix) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(in))
	for _, x := range in {
		x = x.Masked()
		if err := protocol.CheckPrefix(x); err != nil {
			return nil, fmt.Errorf("%s %s %w", what, x, err)
		}
		out = append(out, x)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}

// Without6 is the plan for a host that has no IPv6.
func (p Plan) Without6() Plan {
	is6 := func(x netip.Prefix) bool { return x.Addr().Is6() }
	p.Routes = slices.DeleteFunc(slices.Clone(p.Routes), is6)
	p.Local = slices.DeleteFunc(slices.Clone(p.Local), is6)
	p.Held = slices.DeleteFunc(slices.Clone(p.Held), is6)
	p.Refused = slices.DeleteFunc(slices.Clone(p.Refused), is6)
	p.Except = slices.DeleteFunc(slices.Clone(p.Except), func(x Exception) bool { return is6(x.Prefix) })
	p.Overlay = slices.DeleteFunc(slices.Clone(p.Overlay), netip.Addr.Is6)
	p.Wall = p.Wall.Without6()
	p.Forward6 = false
	return p
}

// Source is the overlay address that local programs use as their source, invalid
// if the plan has none of this family.
func (p Plan) Source(v6 bool) netip.Addr {
	for _, a := range p.Overlay {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// mtu is what the path behind a route carries.
func (p Plan) mtu(x netip.Prefix) int {
	if m, ok := p.MTUs[x]; ok {
		return m
	}
	return p.MTU
}

// has reports whether the plan has anything of a family.
func (p Plan) has(v6 bool) bool {
	is := func(x netip.Prefix) bool { return x.Addr().Is6() == v6 }
	return p.Source(v6).IsValid() || slices.ContainsFunc(p.Routes, is) || slices.ContainsFunc(p.Local, is) || slices.ContainsFunc(p.Held, is)
}

// sysctl is one kernel setting by its dotted name; an interface name in it is
// written as it is.
type sysctl struct{ key, value string }

// ofOwn reports whether a setting is of our own interface.
func (p Plan) ofOwn(s sysctl) bool {
	return strings.HasPrefix(s.key, kernel.ConfKey("ipv4", p.Interface, "")) || strings.HasPrefix(s.key, kernel.ConfKey("ipv6", p.Interface, ""))
}

// sysctls are the kernel settings that the plan needs. Those that let packets through, of
// the value forwardMark, come last.
func (p Plan) sysctls() []sysctl {
	own := func(proto, name, value string) sysctl { return sysctl{kernel.ConfKey(proto, p.Interface, name), value} }
	out := []sysctl{
		own("ipv4", "forwarding", "1"),
		own("ipv4", "rp_filter", "2"),
		// Without its agent the device has no carrier: its routes must count
		// all the same, or packets for other sites take the default route.
		own("ipv4", "ignore_routes_with_linkdown", "0"),
	}
	if p.has(true) {
		// A hardened host may have it off for devices to come.
		out = append(out, own("ipv6", "disable_ipv6", "0"),
			// 1 is none: no link-local address, and so no router solicitations into the tunnel.
			own("ipv6", "addr_gen_mode", "1"),
			own("ipv6", "ignore_routes_with_linkdown", "0"))
	}
	for _, dev := range p.Strict {
		// The path back to a marked socket is looked up with its mark, or
		// strict rp_filter would drop the hub's answers when a tunnel route
		// covers the hub's address.
		out = append(out, sysctl{kernel.ConfKey("ipv4", dev, "src_valid_mark"), "1"})
	}
	for _, dev := range p.Forward4 {
		out = append(out, sysctl{kernel.ConfKey("ipv4", dev, "forwarding"), forwardMark})
	}
	if p.Forward6 {
		out = append(out, sysctl{forward6, forwardMark})
	}
	return out
}

// Priorities at postrouting.
const (
	// IdentityPriority is that of our identity mapping: address translation of others behind it has no say.
	IdentityPriority = 90
	// SourcePriority is that of the chain which drops what is about to enter the tunnel from a source that is not ours.
	SourcePriority = 200
)

// nft is the content of our table in nft's own words, in the order and form of
// 'nft -y -p -s list table', each line an 'add' command without that word.
func (p Plan) nft() []string {
	t := " inet " + NftTable + " "
	sets := p.nftClosedSets()
	out := append([]string{"table inet " + NftTable}, sets...)
	// SYNs carry an MSS that fits the route into the tunnel: those that go in,
	// and those that come out, which say what is sent in. 'rt mtu' takes the
	// smaller one of both directions' routes.
	const syn = "tcp flags syn tcp option maxseg size set"
	out = append(out,
		"chain"+t+"forward { type filter hook forward priority -150; policy accept; }",
		fmt.Sprintf("rule%sforward oifname %q %s rt mtu", t, p.Interface, syn),
		fmt.Sprintf("rule%sforward iifname %q %s rt mtu", t, p.Interface, syn))
	for _, x := range p.Routes {
		if m := p.mtu(x); x.Addr().Is6() && m < ipv6MTU && !slices.Contains(p.Local, x) {
			const headers = 40 + 20
			out = append(out,
				fmt.Sprintf("rule%sforward oifname %q ip6 daddr %s %s %d", t, p.Interface, nftPrefix(x), syn, m-headers),
				fmt.Sprintf("rule%sforward iifname %q ip6 saddr %s %s %d", t, p.Interface, nftPrefix(x), syn, m-headers))
		}
	}
	// An identity mapping ahead of every other tool's source NAT: once a
	// connection has a mapping, later chains do not get to see it.
	out = append(out, fmt.Sprintf("chain%sidentity { type nat hook postrouting priority %d; policy accept; }", t, IdentityPriority))
	for _, x := range p.Local {
		f := "ip"
		if x.Addr().Is6() {
			f = "ip6"
		}
		out = append(out, fmt.Sprintf("rule%sidentity oifname %q %s saddr %s snat %s to %s saddr", t, p.Interface, f, nftPrefix(x), f, f))
	}
	// Answers to the underlay's sockets carry its mark too, for src_valid_mark.
	out = append(out,
		"chain"+t+"mark-out { type filter hook postrouting priority -150; policy accept; }",
		fmt.Sprintf("rule%smark-out meta mark 0x%08x ct mark set meta mark", t, p.Mark),
		"chain"+t+"mark-in { type filter hook prerouting priority -150; policy accept; }",
		fmt.Sprintf("rule%smark-in ct mark 0x%08x meta mark set ct mark", t, p.Mark))
	return slices.Concat(out, p.nftClosed(sets), p.nftBounds(), p.nftWall(), p.access())
}

// nftPrefix is how nft prints a prefix: a single address without its length.
func nftPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// lineOrder is the order in Lines of all kinds but Parts.
var lineOrder = []Kind{Link, Addresses, Routes, Rules, Sysctls, Nftables}

// Lines returns the plan as commands, sorted by kind, those of parts last. Each is one that a shell
// takes as it stands.
func (p Plan) Lines() (out []string) {
	for _, k := range lineOrder {
		out = append(out, p.lines(k)...)
	}
	for _, dev := range p.Hairpin {
		out = append(out, hairpinLine(dev))
	}
	for _, x := range p.Parts {
		out = append(out, x.Lines()...)
	}
	return out
}

// lines are the commands of one kind.
func (p Plan) lines(k Kind) (out []string) {
	switch k {
	case Link:
		out = append(out, p.linkLines()...)
	case Addresses:
		for _, a := range p.addrs() {
			out = append(out, a.line(p.Interface))
		}
	case Routes:
		for _, r := range p.routes() {
			out = append(out, r.line(p.Table))
		}
	case Rules:
		for _, v6 := range []bool{false, true} {
			if p.has(v6) {
				out = append(out, ruleLine(v6, p.Mark, p.Table, RulePreference))
			}
		}
	case Sysctls:
		for _, s := range p.sysctls() {
			out = append(out, s.line())
		}
	case Nftables:
		for _, l := range p.nft() {
			out = append(out, nftLine(l))
		}
	}
	return out
}

// addr is an address of the device.
type addr struct {
	netip.Prefix
	host bool // of scope host
}

// addrs are those that the device has.
func (p Plan) addrs() (out []addr) {
	for _, a := range p.Overlay {
		out = append(out, addr{netip.PrefixFrom(a, a.BitLen()), false})
	}
	if p.Names.IsValid() {
		out = append(out, addr{netip.PrefixFrom(p.Names, p.Names.BitLen()), true})
	}
	slices.SortFunc(out, func(a, b addr) int { return a.Addr().Compare(b.Addr()) })
	return out
}

func (a addr) line(dev string) string {
	switch {
	case a.Addr().Is6():
		return fmt.Sprintf("ip -6 addr add %s dev %s nodad", a.Prefix, dev)
	case a.host:
		return fmt.Sprintf("ip -4 addr add %s dev %s scope host", a.Prefix, dev)
	}
	return fmt.Sprintf("ip -4 addr add %s dev %s", a.Prefix, dev)
}

func ruleLine(v6 bool, mark uint32, table, pref int) string {
	return fmt.Sprintf("ip %s rule add not fwmark 0x%x lookup %d pref %d protocol %d", family(v6), mark, table, pref, RouteProtocol)
}

func (s sysctl) line() string { return fmt.Sprintf("sysctl -w %s=%s", s.key, s.value) }

func nftLine(s string) string { return "nft 'add " + s + "'" }

func family(v6 bool) string {
	if v6 {
		return "-6"
	}
	return "-4"
}
