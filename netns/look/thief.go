package look

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// policyRule is a rule of routing policy as the kernel lists it.
type policyRule struct {
	pref         int
	action       uint8 // unix.FR_ACT_…
	invert       bool
	src, dst     netip.Prefix // not valid: any
	mark         uint32
	mask         uint32
	tos          uint8
	iif, oif     string
	proto        int
	sport, dport [2]uint16 // 0, 0: any
	uid          [2]uint32
	byUID        bool
	vrf          bool // it leads into the table of the VRF that the packet is in
	table        int
	jump         int // pref of FR_ACT_GOTO
	suppress     int // prefixes of at most this length do not count; -1: all count
	protocol     uint8
}

// policyRules lists the rules of a family in their order.
func policyRules(v6 bool) ([]policyRule, error) {
	out, err := kernel.Retry(func() ([]policyRule, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETRULE, unix.NLM_F_DUMP|unix.NLM_F_REQUEST)
		req.AddData(nl.NewIfInfomsg(kernel.Family(v6)))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWRULE)
		if err != nil {
			return nil, err
		}
		var out []policyRule
		for _, m := range msgs {
			r, err := parsePolicyRule(m)
			if err != nil {
				return nil, err
			}
			out = append(out, r)
		}
		return out, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return out, nil
}

// parsePolicyRule reads struct fib_rule_hdr, which has the layout of rtmsg, and its
// attributes (linux/fib_rules.h).
func parsePolicyRule(b []byte) (policyRule, error) {
	if len(b) < unix.SizeofRtMsg {
		return policyRule{}, fmt.Errorf("a rule of %d bytes", len(b))
	}
	h := nl.DeserializeRtMsg(b)
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
	if err != nil {
		return policyRule{}, err
	}
	order := nl.NativeEndian()
	r := policyRule{action: h.Type, invert: h.Flags&netlink.FibRuleInvert != 0, tos: h.Tos, mask: ^uint32(0), table: int(h.Table), suppress: -1}
	for _, a := range attrs {
		v := a.Value
		n := uint32(0)
		if len(v) >= 4 {
			n = order.Uint32(v)
		}
		switch a.Attr.Type &^ unix.NLA_F_NESTED {
		case unix.RTA_TABLE:
			r.table = int(n)
		case nl.FRA_PRIORITY:
			r.pref = int(n)
		case nl.FRA_SRC:
			if x, ok := netip.AddrFromSlice(v); ok {
				r.src = netip.PrefixFrom(x, int(h.Src_len))
			}
		case nl.FRA_DST:
			if x, ok := netip.AddrFromSlice(v); ok {
				r.dst = netip.PrefixFrom(x, int(h.Dst_len))
			}
		case nl.FRA_FWMARK:
			r.mark = n
		case nl.FRA_FWMASK:
			r.mask = n
		case nl.FRA_IIFNAME:
			r.iif = unix.ByteSliceToString(v)
		case nl.FRA_OIFNAME:
			r.oif = unix.ByteSliceToString(v)
		case nl.FRA_GOTO:
			r.jump = int(n)
		case nl.FRA_IP_PROTO:
			if len(v) > 0 {
				r.proto = int(v[0])
			}
		case nl.FRA_SPORT_RANGE, nl.FRA_DPORT_RANGE:
			if len(v) >= 4 {
				ports := [2]uint16{order.Uint16(v), order.Uint16(v[2:])}
				if a.Attr.Type == nl.FRA_SPORT_RANGE {
					r.sport = ports
				} else {
					r.dport = ports
				}
			}
		case nl.FRA_UID_RANGE:
			if len(v) >= 8 {
				r.byUID, r.uid = true, [2]uint32{n, order.Uint32(v[4:])}
			}
		case nl.FRA_SUPPRESS_PREFIXLEN:
			r.suppress = int(int32(n))
		case fraL3mdev:
			r.vrf = len(v) > 0 && v[0] != 0
		case nl.FRA_PROTOCOL:
			if len(v) > 0 {
				r.protocol = v[0]
			}
		}
	}
	return r, nil
}

// fraL3mdev is FRA_L3MDEV of linux/fib_rules.h.
const fraL3mdev = 19

// text is the rule as 'ip rule del' takes it: with all that tells it from others.
func (r policyRule) text() string {
	s := fmt.Sprintf("pref %d", r.pref)
	add := func(format string, args ...any) { s += fmt.Sprintf(" "+format, args...) }
	if r.invert {
		add("not")
	}
	if r.src.IsValid() {
		add("from %s", r.src)
	}
	if r.dst.IsValid() {
		add("to %s", r.dst)
	}
	if r.tos != 0 {
		add("tos 0x%x", r.tos)
	}
	if r.mark != 0 || r.mask != ^uint32(0) && r.mask != 0 {
		if add("fwmark 0x%x", r.mark); r.mask != ^uint32(0) {
			s += fmt.Sprintf("/0x%x", r.mask)
		}
	}
	if r.iif != "" {
		add("iif %s", r.iif)
	}
	if r.oif != "" {
		add("oif %s", r.oif)
	}
	if r.byUID {
		add("uidrange %d-%d", r.uid[0], r.uid[1])
	}
	if r.proto != 0 {
		add("ipproto %d", r.proto)
	}
	for _, p := range []struct {
		name  string
		ports [2]uint16
	}{{"sport", r.sport}, {"dport", r.dport}} {
		switch {
		case p.ports == [2]uint16{}:
		case p.ports[0] == p.ports[1]:
			add("%s %d", p.name, p.ports[0])
		default:
			add("%s %d-%d", p.name, p.ports[0], p.ports[1])
		}
	}
	switch {
	case r.action == unix.FR_ACT_BLACKHOLE:
		add("blackhole")
	case r.action == unix.FR_ACT_UNREACHABLE:
		add("unreachable")
	case r.action == unix.FR_ACT_PROHIBIT:
		add("prohibit")
	case r.action == unix.FR_ACT_GOTO:
		add("goto %d", r.jump)
	case r.action == unix.FR_ACT_NOP:
		add("nop")
	case r.vrf:
		add("l3mdev")
	default:
		if add("lookup %d", r.table); r.suppress >= 0 {
			add("suppress_prefixlength %d", r.suppress)
		}
	}
	return s
}

// routed is a packet as the rules of routing policy see it.
type routed struct {
	src, dst     netip.Addr
	iif          string // empty: a local program sends it
	proto        string
	sport, dport uint16 // 0: any
}

// takes reports whether a rule is about k. What the mark of a packet will be, and who
// sends it, is not known: of such rules the kernel's own answer tells.
func (r policyRule) takes(k routed) bool {
	iif := k.iif
	if iif == "" {
		iif = "lo"
	}
	number := int(protoNumber(k.proto, k.dst.Is6()))
	ports := func(l [2]uint16, p uint16) bool { return l == [2]uint16{} || p != 0 && l[0] <= p && p <= l[1] }
	is := (!r.src.IsValid() || r.src.Contains(k.src)) && (!r.dst.IsValid() || r.dst.Contains(k.dst)) && r.mark&r.mask == 0 && r.tos == 0 &&
		(r.iif == "" || r.iif == iif) && r.oif == "" && !r.byUID && (r.proto == 0 || r.proto == number) && ports(r.sport, k.sport) && ports(r.dport, k.dport)
	return is != r.invert
}

// thieves are the rules before the tunnel's own that lead k elsewhere than to an interface,
// the first one first; the others would if it were not there.
func thieves(p netns.Plan, k routed, want string) ([]protocol.PolicyRule, error) {
	v6 := k.dst.Is6()
	rules, err := policyRules(v6)
	if err != nil {
		return nil, err
	}
	var out []protocol.PolicyRule
	skip := 0 // to this pref, by a goto
	for _, r := range rules {
		own := r.pref == netns.RulePreference && r.table == p.Table && r.protocol == netns.RouteProtocol
		if own || r.pref > netns.RulePreference || len(out) >= maxThieves {
			break
		}
		if r.pref < skip || !r.takes(k) {
			continue
		}
		steals := true
		var leadsTo []netip.Prefix
		switch {
		case r.action == unix.FR_ACT_NOP:
			steals = false
		case r.action == unix.FR_ACT_GOTO && r.jump <= netns.RulePreference:
			if slices.ContainsFunc(rules, func(o policyRule) bool { return o.pref == r.jump }) {
				skip = r.jump
			}
			steals = false
		case r.action == unix.FR_ACT_GOTO:
			steals = slices.ContainsFunc(rules, func(o policyRule) bool { return o.pref == r.jump })
		case r.action == unix.FR_ACT_TO_TBL:
			table := r.table
			if r.vrf {
				table = kernel.VRFTable(k.iif)
			}
			if table == 0 || table == unix.RT_TABLE_LOCAL || table == p.Table {
				continue
			}
			to := 0
			if steals, to, leadsTo, err = leads(v6, table, k.dst, r.suppress); err != nil {
				return nil, err
			}
			if steals && to != 0 && kernel.LinkName(to, 0, "") == want {
				return out, nil
			}
		}
		if steals {
			out = append(out, protocol.PolicyRule{Pref: r.pref, Dst: r.dst, Inverted: r.invert, Text: r.text(), Own: leadsTo})
		}
	}
	return out, nil
}

// maxThieves bounds the rules that are named.
const maxThieves = 8

// leads reports whether a table has a route for dst, longer than suppress, and the
// interface to which it leads, 0 if there is none or more than one. own are the other routes of a
// table that is none of the kernel's, but default ones.
func leads(v6 bool, table int, dst netip.Addr, suppress int) (_ bool, to int, own []netip.Prefix, err error) {
	rs, err := kernel.Retry(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(kernel.Family(v6), &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return false, 0, nil, fmt.Errorf("list routes of table %d: %w", table, err)
	}
	best, throw := -1, false
	for _, r := range rs {
		x, ok := kernel.PrefixOf(r.Dst)
		if r.Dst == nil {
			x, ok = netip.PrefixFrom(dst, 0).Masked(), true
		}
		if ok && x.Masked().Contains(dst) && x.Bits() > best {
			best, to, throw = x.Bits(), r.LinkIndex, r.Type == unix.RTN_THROW
		}
		plain := r.Type == unix.RTN_UNICAST && x.Bits() >= protocol.LeastPrefixBits && !x.Addr().IsMulticast() && !x.Addr().IsLinkLocalUnicast()
		if ok && plain && table != unix.RT_TABLE_MAIN && table != unix.RT_TABLE_DEFAULT && len(own) < protocol.MaxEvidenceLines {
			own = append(own, x.Masked())
		}
	}
	return best > suppress && !throw, to, own, nil
}

// packets are those that this host sends, and those that come out of the tunnel.
func (f Flow) packets(p netns.Plan, pod string) (out, in routed) {
	out, in = routed{src: f.Local, dst: f.Remote, iif: pod, proto: f.Proto}, routed{src: f.Remote, dst: f.Local, iif: p.Interface, proto: f.Proto}
	switch {
	case f.Port == 0:
	case f.Serves:
		out.sport, out.dport, in.sport, in.dport = f.Port, clientPort, clientPort, f.Port
	default:
		out.sport, out.dport, in.sport, in.dport = clientPort, f.Port, f.Port, clientPort
	}
	return out, in
}

// clientPort is one of those that clients get.
const clientPort = 49152

// protoNumber is what an IP header has for a flow's protocol, 0 for one that is not known.
func protoNumber(proto string, v6 bool) uint8 {
	switch proto {
	case protocol.FlowTCP:
		return unix.IPPROTO_TCP
	case protocol.FlowUDP:
		return unix.IPPROTO_UDP
	case protocol.FlowICMP:
		if v6 {
			return unix.IPPROTO_ICMPV6
		}
		return unix.IPPROTO_ICMP
	}
	return 0
}

// routeAnswer is the kernel's answer about one packet.
type routeAnswer struct {
	table, link, mtu int
	kind             uint8 // unix.RTN_…
}

// routeGet is 'ip route get' with protocol and ports, which the kernel takes for those of some
// UDP datagram if they are left out.
func routeGet(k routed) (routeAnswer, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_REQUEST)
	msg := &nl.RtMsg{}
	msg.Family, msg.Dst_len, msg.Flags = uint8(kernel.Family(k.dst.Is6())), uint8(k.dst.BitLen()), unix.RTM_F_LOOKUP_TABLE
	attrs := []*nl.RtAttr{nl.NewRtAttr(unix.RTA_DST, k.dst.AsSlice())}
	if k.src.IsValid() {
		msg.Src_len = uint8(k.src.BitLen())
		attrs = append(attrs, nl.NewRtAttr(unix.RTA_SRC, k.src.AsSlice()))
	}
	if k.iif != "" {
		l, err := netlink.LinkByName(k.iif)
		if err != nil {
			return routeAnswer{}, fmt.Errorf("find link %s: %w", k.iif, err)
		}
		attrs = append(attrs, nl.NewRtAttr(unix.RTA_IIF, nl.Uint32Attr(uint32(l.Attrs().Index))))
	}
	if n := protoNumber(k.proto, k.dst.Is6()); n != 0 {
		attrs = append(attrs, nl.NewRtAttr(unix.RTA_IP_PROTO, []byte{n}))
	}
	for kind, p := range map[int]uint16{unix.RTA_SPORT: k.sport, unix.RTA_DPORT: k.dport} {
		if p != 0 {
			attrs = append(attrs, nl.NewRtAttr(kind, binary.BigEndian.AppendUint16(nil, p)))
		}
	}
	req.AddData(msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
	if err != nil {
		return routeAnswer{}, err
	}
	if len(msgs) == 0 || len(msgs[0]) < unix.SizeofRtMsg {
		return routeAnswer{}, errors.New("no answer")
	}
	h := nl.DeserializeRtMsg(msgs[0])
	out := routeAnswer{table: int(h.Table), kind: h.Type}
	got, err := nl.ParseRouteAttr(msgs[0][unix.SizeofRtMsg:])
	if err != nil {
		return routeAnswer{}, err
	}
	order := nl.NativeEndian()
	for _, a := range got {
		switch {
		case len(a.Value) < 4:
		case a.Attr.Type == unix.RTA_TABLE:
			out.table = int(order.Uint32(a.Value))
		case a.Attr.Type == unix.RTA_OIF:
			out.link = int(order.Uint32(a.Value))
		case a.Attr.Type == unix.RTA_METRICS:
			metrics, err := nl.ParseRouteAttr(a.Value)
			for _, m := range metrics {
				if err == nil && m.Attr.Type == unix.RTAX_MTU && len(m.Value) >= 4 {
					out.mtu = int(order.Uint32(m.Value))
				}
			}
		}
	}
	return out, nil
}
