package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/agent/needs"
	"causeway/agent/netmapcheck"
	"causeway/netns"
	"causeway/protocol"
)

var silent = zerolog.Nop()

// vpns are names that other tunnels give their interfaces.
var vpns = map[string]string{"tailscale": "Tailscale", "wt": "NetBird", "nebula": "Nebula", "tun": "OpenVPN or another VPN", "zt": "ZeroTier", "wg": "WireGuard", "utun": "a VPN", "ipsec": "IPsec", "ppp": "PPP"}

// foreign is an interface that a VPN may have made.
type foreign struct{ name, kind, whose string }

// network looks at links, addresses, routes and rules.
func network(c Config, own *netmapcheck.Owned) []Check {
	links, err := netlink.LinkList()
	if err != nil {
		return []Check{{Name: "interfaces", Status: Warn, What: "they cannot be listed: " + err.Error()}}
	}
	names := map[int]string{}
	var vpn []foreign
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		if f, ok := foreignVPN(l.Attrs().Name, l.Type()); ok && l.Attrs().Name != c.Interface {
			vpn = append(vpn, f)
		}
	}
	var taken []claim
	for _, l := range links {
		if l.Attrs().Name == c.Interface {
			continue
		}
		addrs, _ := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range addrs {
			if p, ok := prefix(a.IPNet.IP, a.IPNet.Mask); ok && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
				taken = append(taken, claim{p.Masked(), l.Attrs().Name})
			}
		}
	}
	routes, _ := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	largest := 0
	for _, r := range routes {
		if r.Table == netns.DefaultTable || names[r.LinkIndex] == c.Interface || r.Type != unix.RTN_UNICAST {
			continue
		}
		p, ok := netip.Prefix{}, false
		if r.Dst != nil {
			p, ok = prefix(r.Dst.IP, r.Dst.Mask)
		}
		if !ok || p.Bits() == 0 {
			for _, l := range links {
				if l.Attrs().Index == r.LinkIndex {
					largest = max(largest, l.Attrs().MTU)
				}
			}
			continue
		}
		if !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast() {
			taken = append(taken, claim{p, names[r.LinkIndex]})
		}
	}
	rules, _ := netlink.RuleList(netlink.FAMILY_ALL)
	return append([]Check{conflicts(vpn), policyRules(rules), mtu(largest)}, overlaps(c, taken, own)...)
}

// owned is what the host has of its own, as the agent has it. What cannot be read is left out.
func owned(ctx context.Context, c Config) *netmapcheck.Owned {
	h, nc := netns.NewHost("", silent), netns.Config{Interface: c.Interface, Table: netns.DefaultTable}
	foreign, _ := h.ForeignRoutes(ctx, nc)
	n := needs.Config{Getenv: os.Getenv}
	n.Gateways, _ = h.Gateways(ctx, nc)
	if c.Identity != nil {
		if l, err := c.Identity.HubList.Open(c.Identity.Pin); err == nil {
			n.Hubs = needs.HubAddrs(l)
		}
	}
	kept := c.Held.Except(needs.Find(n))
	return netmapcheck.NewOwned(foreign, kept, netmapcheck.Ways(kept, n.Gateways, n.Hubs))
}

func foreignVPN(name, kind string) (foreign, bool) {
	base := strings.TrimRight(name, "0123456789")
	whose, known := vpns[base]
	if !known && base != name && strings.HasPrefix(name, "zt") {
		whose, known = "ZeroTier", true
	}
	switch {
	case kind == "wireguard":
		if !known {
			whose = "WireGuard"
		}
	case kind == "tuntap" || kind == "tun":
		if !known {
			whose = "a tunnel or virtual machine"
		}
	case !known:
		return foreign{}, false
	}
	return foreign{name, kind, whose}, true
}

func conflicts(vpn []foreign) Check {
	if len(vpn) == 0 {
		return Check{Name: "other VPNs", Status: OK, What: "there is no interface of one"}
	}
	var l []string
	for _, f := range vpn {
		l = append(l, f.name+" ("+f.whose+")")
	}
	slices.Sort(l)
	return Check{Name: "other VPNs", Status: Warn, What: few(l), Why: "another tunnel on the host may take the same ranges, or carry this one's packets",
		Do: "check that it routes neither the overlay nor other sites' ranges, nor the way to the hub"}
}

// policyRules looks for rules that may decide over a packet before the tunnel's.
func policyRules(rules []netlink.Rule) Check {
	var l []string
	for _, r := range rules {
		switch r.Table {
		case unix.RT_TABLE_LOCAL, netns.DefaultTable, 0:
			continue
		case unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT: // with its default route, for all: not what has single pods' addresses go to them
			if r.Priority >= netns.RulePreference || r.Dst != nil || r.SuppressPrefixlen >= 0 {
				continue
			}
		}
		table := strconv.Itoa(r.Table)
		if r.Table == unix.RT_TABLE_MAIN {
			table = "main"
		}
		text := fmt.Sprintf("%d: lookup %s", r.Priority, table)
		if r.Mark != 0 {
			text = fmt.Sprintf("%d: fwmark %#x lookup %s", r.Priority, r.Mark, table)
		}
		if !slices.Contains(l, text) {
			l = append(l, text)
		}
	}
	if len(l) == 0 {
		return Check{Name: "rules", Status: OK, What: "no foreign policy routing"}
	}
	slices.Sort(l)
	return Check{Name: "rules", Status: Warn, What: few(l), Why: "a foreign rule may lead packets for other sites elsewhere, before the tunnel's rule is asked; the agent drops what it leads there", Do: "see 'ip rule'; their tables must not have routes for other sites' ranges"}
}

// leastUnderlay is the MTU that carries 1280 bytes inside over IPv6.
const leastUnderlay = 1280 + 48 + protocol.MinTransportSize

func mtu(underlay int) Check {
	switch {
	case underlay == 0:
		return Check{Name: "mtu", Status: Fail, What: "the host has no default route", Why: "hubs and other nodes are reached over it", Do: "give the host a default route, or routes to the hub and the other nodes"}
	case underlay < leastUnderlay:
		return Check{Name: "mtu", Status: Warn, What: fmt.Sprintf("the way out carries packets of %d bytes", underlay), Why: fmt.Sprintf("below %d, packets inside are smaller than IPv6 asks for, and larger ones go over TCP", leastUnderlay), Do: "raise the MTU of the uplink if it can be"}
	}
	return Check{Name: "mtu", Status: OK, What: fmt.Sprintf("the way out carries packets of %d bytes", underlay)}
}

// claim is a range that the host uses already.
type claim struct {
	prefix netip.Prefix
	dev    string
}

func (c claim) String() string {
	if c.dev == "" {
		return c.prefix.String()
	}
	return c.prefix.String() + " on " + c.dev
}

// advice says what to do about those of some ranges that are, or lie in, what the host uses.
func advice(ranges []netip.Prefix, taken []claim, own *netmapcheck.Owned) (out []string) {
	for _, r := range ranges {
		if slices.ContainsFunc(taken, func(t claim) bool { return t.prefix.Bits() <= r.Bits() && t.prefix.Overlaps(r) }) {
			out = append(out, protocol.AcceptAdvice("this host", r, own.Takes(r)))
		}
	}
	return out[:min(len(out), 2)]
}

// overlaps holds what the host uses to what the tunnel needs.
func overlaps(c Config, taken []claim, own *netmapcheck.Owned) (out []Check) {
	within := func(ranges []netip.Prefix, counts func(r, t netip.Prefix) bool) (l []string) {
		for _, t := range taken {
			for _, r := range ranges {
				if r.Overlaps(t.prefix) && counts(r, t.prefix) && !slices.Contains(l, t.String()) {
					l = append(l, t.String())
				}
			}
		}
		slices.Sort(l)
		return l
	}
	any := func(netip.Prefix, netip.Prefix) bool { return true }
	inside := func(r, t netip.Prefix) bool { return t.Bits() > r.Bits() }
	if l := within(c.Overlay, any); len(l) > 0 {
		out = append(out, Check{Name: "overlay range", Status: Fail, What: few(l), Why: "the host uses addresses of the overlay, which every node has its own of: " + joined(c.Overlay), Do: "give what the host has there another range; a hub that no node has joined yet can be run with another --overlay instead"})
	}
	var others, named []netip.Prefix
	for _, p := range c.Peers {
		switch {
		case slices.Contains(c.Routes, p):
		case slices.Contains(c.Named, p) && !own.Fixed(p):
			named = append(named, p)
		default:
			others = append(others, p)
		}
	}
	wide := func(r, t netip.Prefix) bool { return !inside(r, t) }
	if l := within(others, wide); len(l) > 0 {
		out = append(out, Check{Name: "other sites' ranges", Status: Warn, What: few(l), Why: "another node announces what the host reaches by itself: the agent refuses that route", Do: few(advice(others, taken, own))})
	}
	if l := within(named, wide); len(l) > 0 {
		out = append(out, Check{Name: "taken by accept:", Status: Warn, What: few(l), Why: "accept: names exactly what another node announces of it, so that it goes into the tunnel and this host does not reach its own", Do: "take it out of accept: of the agent's config if this host needs its own, and give one of the two sites another range"})
	}
	if l := within(slices.Concat(others, named), inside); len(l) > 0 {
		out = append(out, Check{Name: "local networks", Status: Warn, What: few(l), Why: "they lie inside another site's range: this host keeps them local, and does not reach that part of the site", Do: "give one of the two another range, if they are to reach each other"})
	}
	if len(out) == 0 {
		out = append(out, Check{Name: "ranges", Status: OK, What: "nothing on the host overlaps the overlay or other sites' ranges"})
	}
	return out
}

func joined(l []netip.Prefix) string {
	s := make([]string, len(l))
	for i, p := range l {
		s[i] = p.String()
	}
	return strings.Join(s, ", ")
}

func prefix(ip, mask []byte) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	bits := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			bits++
		}
	}
	if len(mask) == 16 && a.Is4In6() {
		bits -= 96
	}
	if !ok || bits < 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a.Unmap(), bits), true
}
