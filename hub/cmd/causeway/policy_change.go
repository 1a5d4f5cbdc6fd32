package main

import (
	"fmt"
	"slices"
	"strings"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// What a page shows of a change at most.
const (
	effectsShown = 12
	pairsShown   = 4 // of one effect
	cutsShown    = 10
	silentShown  = 5
)

// changePage says what opens and closes, whom for, and what would be cut.
func changePage(p *frame.Page, c *api.PolicyChange) {
	if c.Opens+c.Closes == 0 {
		p.Line("Nothing opens or closes")
		return
	}
	effects, pairs := effectsOf(c.Differences)
	for _, e := range effects[:min(len(effects), effectsShown)] {
		p.Line("%s", p.Paint(map[bool]frame.Meaning{true: frame.Good, false: frame.Warn}[strings.HasPrefix(e, "opens")], e))
		l := pairs[e]
		for _, x := range l[:min(len(l), pairsShown)] {
			p.Line("  from %s", protocol.Printable(x.From.Text))
			p.Line("    to %s", protocol.Printable(x.To.Text))
		}
		if n := len(l) - pairsShown; n > 0 {
			p.Line("  and %s more", counts(n, "pair"))
		}
	}
	if n := len(effects) - effectsShown; n > 0 || c.LeftOut > 0 {
		p.Line("and more: -o json")
	}
	p.Gap()
	text := fmt.Sprintf("Opens something for %s of sender and receiver, closes something for %d", counts(c.Opens, "pair"), c.Closes)
	switch {
	case c.Cuts == nil:
		p.Line("%s", text)
		return
	case c.Cuts.Connections == 0:
		p.Line("%s; no connection that exists now is known to be cut", text)
	default:
		p.Line("%s; %s of %s of addresses that exist now would be cut:", text, counts(c.Cuts.Connections, "connection"), counts(c.Cuts.Pairs, "pair"))
	}
	cutsPage(p, c.Cuts)
}

func cutsPage(p *frame.Page, c *api.PolicyCuts) {
	for _, x := range c.List[:min(len(c.List), cutsShown)] {
		by := ""
		if x.Rule != "" {
			by = ", open by " + x.Rule
		}
		p.Line("  %s to %s, %s: %d%s", x.From, x.To, protocol.Printable(x.Ports), x.Count, protocol.Printable(by))
	}
	if n := len(c.List) - cutsShown; n > 0 {
		p.Line("  and more: -o json")
	}
	if c.More > 0 {
		p.Line("%s beyond those that nodes told were not looked at", counts(c.More, "connection"))
	}
	for _, s := range c.Silent[:min(len(c.Silent), silentShown)] {
		p.Line("%s: what would be cut there is not known: %s", protocol.Printable(s.Node), protocol.Printable(s.Why))
	}
	if n := len(c.Silent) + c.MoreSilent - silentShown; n > 0 {
		p.Line("and %s more of which it is not known", counts(n, "node"))
	}
}

// effectsOf gathers the pairs for which the same opens or closes, in the order of differences: what closes first.
func effectsOf(l []api.PolicyDifference) (effects []string, pairs map[string][]api.PolicyDifference) {
	pairs = map[string][]api.PolicyDifference{}
	var opens []string
	add := func(to *[]string, e string, x api.PolicyDifference) {
		if pairs[e] == nil {
			*to = append(*to, e)
		}
		pairs[e] = append(pairs[e], x)
	}
	for _, x := range l {
		if len(x.Closes) > 0 {
			e := "closes " + openingsText(x.Closes)
			if len(x.Stays) > 0 {
				e += " but " + openingsText(x.Stays)
			}
			add(&effects, e, x)
		}
		if len(x.Opens) > 0 {
			add(&opens, "opens "+openingsText(x.Opens), x)
		}
	}
	return append(effects, opens...), pairs
}

// openingsText is such as: tcp/5432, icmp (main/web-to-db); udp/53 (main/dns).
func openingsText(l []api.PolicyOpening) string {
	var rules, parts []string
	ports := map[string][]string{}
	for _, o := range l {
		if !slices.Contains(rules, o.Rule) {
			rules = append(rules, o.Rule)
		}
		ports[o.Rule] = append(ports[o.Rule], o.Ports)
	}
	for _, r := range rules {
		s := strings.Join(ports[r], ", ")
		if r != "" {
			s += " (" + r + ")"
		}
		parts = append(parts, s)
	}
	return strings.Join(parts, "; ")
}

// counts is such as "1 pair" and "3 pairs".
func counts(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
