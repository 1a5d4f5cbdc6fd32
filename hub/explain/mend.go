package explain

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"causeway/hub/api"
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

// plainNames is plainOnly of texts of one word each.
func plainNames(l ...string) bool {
	return plainOnly(l...) && !slices.ContainsFunc(l, func(s string) bool { return strings.Contains(s, " ") })
}

// oddName stands for a name of an agent's that could mean something to a shell.
const oddName = "odd-name"

// plainEvidence takes out of an agent's answer what is put into commands and could mean something else
// to a shell there: names of interfaces, and lines that it planned.
func plainEvidence(e *protocol.Evidence) {
	if e == nil {
		return
	}
	names := []*string{&e.Flow.Interface, &e.Flow.Out.From, &e.Flow.Out.To, &e.Flow.In.From, &e.Flow.In.To}
	if e.Pod != nil {
		names = append(names, &e.Pod.Interface)
	}
	for _, n := range names {
		if *n != "" && !plainNames(*n) {
			*n = oddName
		}
	}
	e.Flow.Missing = slices.DeleteFunc(slices.Clone(e.Flow.Missing), func(l string) bool {
		return !plainOnly(l) && !strings.HasPrefix(l, "nft") // which is shown alone
	})
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

// acceptMend is what to do about a range that a node does not accept, or that its host has
// itself: the node's own word of what it would lose decides whether accept: is named at all.
func acceptMend(s side) string {
	mend := "give one of the two sites another range" // an older agent cannot say what it would lose
	if s.e.Name.IsValid() {
		mend = protocol.AcceptAdvice(s.node(), s.e.Name, plainOwn(s.e.Takes))
	}
	if s.Node.Site == s.other.Node.Site {
		mend = "nothing, if both nodes are on that network: packets go there without the tunnel; else " + mend
	}
	return mend
}

// plainOwn are what an agent tells of its host's own, without texts that could mean something to a
// shell.
func plainOwn(l []protocol.Own) (out []protocol.Own) {
	for _, o := range l {
		if !plainOnly(o.Link) {
			o.Link = ""
		}
		o.Needs = slices.DeleteFunc(slices.Clone(o.Needs), func(s string) bool { return !plainOnly(s) })
		out = append(out, o)
	}
	return out
}

// staysFault says that a flow's packets stay at the host of s, which has their addresses itself. Nodes
// of one site may well be on one network: then packets go there directly, and nothing is wrong.
func staysFault(s side) api.Fault {
	own := plainOwn([]protocol.Own{*s.e.Stays})[0]
	far := rangeOf(s.other)
	f := api.Fault{Cause: "stays-local", Hop: HopHost, Node: s.node(), Blocks: true,
		Summary:  fmt.Sprintf("%s has %s itself, inside %s of %s: packets for %s stay there", s.node(), own, far, s.other.Node.Name, s.other.Addr),
		Evidence: []string{fmt.Sprintf("%s keeps %s outside the tunnel", s.node(), own.Prefix)}}
	if to := s.e.Flow.Out.To; to != "" {
		f.Evidence[0] += ": packets leave by " + to
	}
	f.Mend = acceptMend(s)
	return f
}

// ruleMend leads packets that a rule of routing policy takes elsewhere past it. A rule that
// is about nothing but the range goes; before another one stands an exception. What the rules'
// tables have of the host's own inside the range goes on as it went. rules are in their order.
func ruleMend(s side, iif string, to netip.Prefix, rules []protocol.PolicyRule) string {
	ip := "ip" + ip6(to.Addr()) + " rule "
	var keep []netip.Prefix
	for _, r := range rules {
		for _, o := range r.Own {
			if o.Overlaps(to) && o.Bits() > to.Bits() && !slices.Contains(keep, o) {
				keep = append(keep, o)
			}
		}
	}
	narrow := len(keep) == 0 && !slices.ContainsFunc(rules, func(r protocol.PolicyRule) bool {
		return r.Inverted || !r.Dst.IsValid() || r.Dst.Bits() < to.Bits() || !to.Contains(r.Dst.Addr()) || !plainOnly(r.Text)
	})
	if narrow {
		var all []string
		for _, r := range rules {
			all = append(all, ip+"del "+r.Text)
		}
		return on(s.node(), strings.Join(all, "; "))
	}
	if rules[0].Pref == 0 || len(keep) > mostKept || iif != "" && !plainOnly(iif) {
		return fmt.Sprintf("on %s give the rule another place, after %d, with the networks of its own table still before", s.node(), tunnelRule)
	}
	if iif != "" {
		iif = "iif " + iif + " "
	}
	all := make([]string, 0, len(keep)+1) // of one pref the first that fits decides
	for _, o := range keep {
		all = append(all, fmt.Sprintf("%sadd pref %d %sto %s goto %d", ip, rules[0].Pref-1, iif, o, rules[0].Pref))
	}
	all = append(all, fmt.Sprintf("%sadd pref %d %sto %s goto %d", ip, rules[0].Pref-1, iif, to, tunnelRule))
	return on(s.node(), strings.Join(all, "; "))
}

// mostKept bounds the lines of a mend.
const mostKept = 8

// tunnelRule is where an agent's own rule of routing policy lies (netns.RulePreference).
const tunnelRule = 5206

// dropMend lets the flow pass before each of the rules that drop it.
func (j *judge) dropMend(s side, drops []protocol.Drop) string {
	var all []string
	for _, d := range drops {
		who, mend := d.Mend(s.e.Flow.Interface, s.e.Flow.Out.From)
		switch match := j.passes(s, d); {
		case who == "Docker": // its configuration's, which no command line writes
			return "on " + s.node() + ": " + mend
		case match == "" || !plainOnly(d.Chain) || len(strings.Fields(d.Chain)) != 3,
			who != "" && !plainNames(s.e.Flow.Interface, s.e.Flow.Out.From):
			return fmt.Sprintf("on %s let the flow pass before that rule", s.node())
		case who != "":
		case d.Chain == "ip raw PREROUTING" && d.Way == "in" && plainNames(s.e.Flow.Interface):
			mend = fmt.Sprintf("iptables -t raw -I PREROUTING -i %s -d %s -j ACCEPT", s.e.Flow.Interface, s.Addr)
		default:
			mend = d.Let(match)
		}
		if !slices.Contains(all, mend) {
			all = append(all, mend)
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
