package look

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Passing is a rule of routing policy before the tunnel's that leads addresses elsewhere which
// leave by the tunnel alone: the wall drops what it takes.
type Passing struct {
	Rule string     // all that tells it from others, as 'ip rule' has it
	IPv6 bool       // it is one of 'ip -6 rule'
	Of   netip.Addr // the first address that it leads elsewhere
	// Certain says that it takes packets of this host, or of what is behind it, whatever
	// program sends them. Else it depends on marks, ports, users or interfaces.
	Certain bool
}

// String is for people.
func (x Passing) String() string {
	family := "-4"
	if x.IPv6 {
		family = "-6"
	}
	return fmt.Sprintf("rule '%s' (ip %s rule)", strings.Replace(x.Rule, "lookup 254", "lookup main", 1), family)
}

// Passing finds such rules, against the last applied plan, in the order of the kernel.
func (h *Host) Passing() (out []Passing, err error) {
	p := h.host.Last()
	if p.Interface == "" {
		return nil, nil
	}
	own := -1
	if l, err := p.Device(); err != nil {
		return nil, err
	} else if l != nil {
		own = l.Attrs().Index
	}
	for _, v6 := range kernel.Families() {
		rules, err := policyRules(v6)
		if err != nil {
			return nil, err
		}
		closed := sync.OnceValue(func() []netipx.IPRange { return p.Closed(v6) })
		for i, r := range rules {
			if r.pref > netns.RulePreference || r.pref == netns.RulePreference && r.table == p.Table {
				break
			}
			if r.led(rules) {
				closed = without(closed, r.dst)
				continue
			}
			tables := []policyRule{r}
			if r.action == unix.FR_ACT_GOTO && r.jump > netns.RulePreference {
				tables = slices.DeleteFunc(slices.Clone(rules[i+1:]), func(o policyRule) bool { return o.pref < r.jump })
			}
			for _, t := range tables {
				of, ok, err := t.leadsOut(v6, p, own, r.dst, closed)
				if err != nil {
					return nil, err
				}
				if ok {
					certain, err := certain(r, p, of)
					if err != nil {
						return nil, err
					}
					out = append(out, Passing{Rule: r.text(), IPv6: v6, Of: of, Certain: certain})
					break
				}
			}
		}
	}
	return out, nil
}

// leadsOut finds the first of the closed addresses, inside dst where that is one, which a rule's
// table has a way out for that is not the tunnel's.
func (r policyRule) leadsOut(v6 bool, p netns.Plan, own int, dst netip.Prefix, ranges func() []netipx.IPRange) (netip.Addr, bool, error) {
	if r.action != unix.FR_ACT_TO_TBL || r.vrf || r.table == 0 || r.table == unix.RT_TABLE_LOCAL || r.table == p.Table {
		return netip.Addr{}, false, nil
	}
	closed := ranges()
	if len(closed) == 0 {
		return netip.Addr{}, false, nil
	}
	rs, err := kernel.Retry(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(kernel.Family(v6), &netlink.Route{Table: r.table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return netip.Addr{}, false, fmt.Errorf("list routes of table %d: %w", r.table, err)
	}
	var best netip.Addr
	for _, n := range rs {
		x, ok := kernel.PrefixOf(n.Dst)
		if n.Dst == nil {
			x, ok = netip.PrefixFrom(closed[0].From(), 0).Masked(), true
		}
		if !ok || x.Bits() <= r.suppress || n.Type != unix.RTN_UNICAST || own >= 0 && n.LinkIndex == own {
			continue
		}
		for _, c := range closed {
			a := meet(c, x.Masked(), dst)
			if a.IsValid() && (!best.IsValid() || a.Less(best)) {
				best = a
			}
			if a.IsValid() {
				break
			}
		}
	}
	return best, best.IsValid(), nil
}

// meet is the first address that is in all three; a dst that is not valid has all.
func meet(c netipx.IPRange, x, dst netip.Prefix) netip.Addr {
	first, last := c.From(), c.To()
	for _, p := range []netip.Prefix{x, dst} {
		if !p.IsValid() {
			continue
		}
		if r := netipx.RangeOfPrefix(p.Masked()); r.From().Is6() != first.Is6() {
			return netip.Addr{}
		} else {
			if first.Less(r.From()) {
				first = r.From()
			}
			if r.To().Less(last) {
				last = r.To()
			}
		}
	}
	if last.Less(first) {
		return netip.Addr{}
	}
	return first
}

// led reports whether a rule leads a range past those that follow, to the tunnel's: so 'causeway
// diag explain' has it mended.
func (r policyRule) led(rules []policyRule) bool {
	plain := !r.invert && !r.src.IsValid() && r.dst.IsValid() && r.mark&r.mask == 0 && r.tos == 0 && r.iif == "" && r.oif == "" && !r.byUID && r.proto == 0 &&
		r.sport == [2]uint16{} && r.dport == [2]uint16{}
	return plain && r.action == unix.FR_ACT_GOTO && r.jump == netns.RulePreference && slices.ContainsFunc(rules, func(o policyRule) bool { return o.pref == r.jump })
}

// without is l without what is in x.
func without(l func() []netipx.IPRange, x netip.Prefix) func() []netipx.IPRange {
	return sync.OnceValue(func() []netipx.IPRange {
		var b netipx.IPSetBuilder
		for _, r := range l() {
			b.AddRange(r)
		}
		b.RemovePrefix(x.Masked())
		set, err := b.IPSet()
		if err != nil {
			return l()
		}
		return set.Ranges()
	})
}

// certain reports whether a rule decides over every packet to an address from this host, or from
// some of what is behind it.
func certain(r policyRule, p netns.Plan, to netip.Addr) (bool, error) {
	from := []routed{{src: p.Source(to.Is6()), dst: to}}
	for _, x := range p.Local {
		if x.Addr().Is6() != to.Is6() {
			continue
		}
		src := x.Addr()
		if r.src.IsValid() && x.Overlaps(r.src) && r.src.Bits() > x.Bits() {
			src = r.src.Addr()
		}
		from = append(from, routed{src: src, dst: to, iif: cmp.Or(toward(src.Next()), "?")})
	}
	for _, k := range from {
		if !k.src.IsValid() || !r.takes(k) {
			continue
		}
		l, err := thieves(p, k, p.Interface)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(l, func(t protocol.PolicyRule) bool { return t.Text == r.text() }) {
			return true, nil
		}
	}
	return false, nil
}
