package explain

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"causeway/protocol"
)

// A mend is a text for whoever sits at the console. One that begins with 'on NODE: ' is a
// command line for root's shell there, as it stands; one that begins with 'causeway ' is for
// an admin's. Others are to be done by hand. It changes what it names and nothing else: a rule
// that is in the way of a flow may guard something else, so that none is taken away, but the
// flow is let pass before it.

// plainWords is what a name of an agent's may be made of in a command: anything else could
// mean something to a shell.
var plainWords = regexp.MustCompile(`^[A-Za-z0-9 ._:/+@=-]+$`)

// plainOnly reports whether texts may stand in a command.
func plainOnly(l ...string) bool {
	return !slices.ContainsFunc(l, func(s string) bool { return !plainWords.MatchString(s) || strings.HasPrefix(s, "-") })
}

func on(node, command string) string { return "on " + node + ": " + command }

func ip6(a netip.Addr) string {
	if a.Is6() {
		return " -6"
	}
	return ""
}

// own is the range that s's end is in behind its node, or its address alone.
func (s side) own() netip.Prefix { return rangeOf(&s.End) }

func rangeOf(e *End) netip.Prefix {
	best := netip.PrefixFrom(e.Addr, e.Addr.BitLen())
	for _, r := range e.Routes {
		if r.State == protocol.RouteApproved && r.Prefix.Contains(e.Addr) {
			return r.Prefix.Masked()
		}
	}
	return best
}

// ruleMend leads packets that a rule of routing policy takes elsewhere past it. A rule that
// is about nothing but the range goes; before another one stands an exception. rules are in
// their order.
func ruleMend(s side, iif string, to netip.Prefix, rules []protocol.PolicyRule) string {
	ip := "ip" + ip6(to.Addr()) + " rule "
	narrow := !slices.ContainsFunc(rules, func(r protocol.PolicyRule) bool {
		return r.Inverted || !r.Dst.IsValid() || r.Dst.Bits() < to.Bits() || !to.Contains(r.Dst.Addr()) || !plainOnly(r.Text)
	})
	if narrow {
		var all []string
		for _, r := range rules {
			all = append(all, ip+"del "+r.Text)
		}
		return on(s.node(), strings.Join(all, "; "))
	}
	if rules[0].Pref == 0 || iif != "" && !plainOnly(iif) {
		return fmt.Sprintf("on %s give the rule another place, after %d", s.node(), tunnelRule)
	}
	if iif != "" {
		iif = "iif " + iif + " "
	}
	return on(s.node(), fmt.Sprintf("%sadd pref %d %sto %s goto %d", ip, rules[0].Pref-1, iif, to, tunnelRule))
}

// tunnelRule is where an agent's own rule of routing policy lies (netns.RulePreference).
const tunnelRule = 5206

// dropMend lets the flow pass before each of the rules that drop it.
func (j *judge) dropMend(s side, drops []protocol.Drop) string {
	var all []string
	for _, d := range drops {
		match := j.passes(s, d)
		if match == "" || !plainOnly(d.Chain) || len(strings.Fields(d.Chain)) != 3 {
			return fmt.Sprintf("on %s let the flow pass before that rule", s.node())
		}
		rule := fmt.Sprintf("nft 'insert rule %s handle %d %s accept'", d.Chain, d.Handle, match)
		if d.Handle == 0 { // a policy, which is asked last
			rule = fmt.Sprintf("nft 'add rule %s %s accept'", d.Chain, match)
		}
		if !slices.Contains(all, rule) {
			all = append(all, rule)
		}
	}
	return on(s.node(), strings.Join(all, "; "))
}

// passes is what tells the flow's packets from others where d drops them, as nft has it.
func (j *judge) passes(s side, d protocol.Drop) string {
	dev := s.e.Flow.Interface
	if !plainOnly(dev) {
		return ""
	}
	if strings.HasPrefix(d.Way, "underlay") {
		switch {
		case d.Port == 0: // an older agent
			return ""
		case d.Way == "underlay-in":
			return fmt.Sprintf("udp dport %d", d.Port)
		}
		return fmt.Sprintf("udp sport %d", d.Port)
	}
	family, src, dst := "ip", rangeOf(s.other), s.own()
	if s.Addr.Is6() {
		family = "ip6"
	}
	port, comes := "dport", d.Way == "in"
	if !comes {
		src, dst = dst, src
	}
	if comes != s.to { // an answer
		port = "sport"
	}
	out := ""
	switch {
	case comes && slices.Contains([]string{"prerouting", "input", "forward"}, d.Hook):
		out = fmt.Sprintf("iifname \"%s\" ", dev)
	case !comes && slices.Contains([]string{"output", "postrouting", "forward"}, d.Hook):
		out = fmt.Sprintf("oifname \"%s\" ", dev)
	}
	out += fmt.Sprintf("%s saddr %s %s daddr %s ", family, src, family, dst)
	switch {
	case j.Port != 0:
		return out + fmt.Sprintf("%s %s %d", j.Proto, port, j.Port)
	case j.Proto == protocol.FlowICMP && s.Addr.Is6():
		return out + "meta l4proto ipv6-icmp"
	}
	return out + "meta l4proto " + j.Proto
}
