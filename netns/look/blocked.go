package look

import (
	"context"
	"fmt"
	"net/netip"

	"causeway/netns"
	"causeway/protocol"
)

// ReadBlocked is what Try would say, as far as rules that can be read say it for certain, of
// packets that come by interface dev for pods in these ranges, or that pods send by it; empty: nothing.
func ReadBlocked(ctx context.Context, dev string, ranges []netip.Prefix) string {
	p := netns.Plan{Config: netns.Config{Interface: dev}}
	for _, pod := range namedAddrs(ctx, ranges) {
		b := probe{pod: pod, dev: toward(pod), untried: true}
		for _, b.out = range []bool{false, true} {
			if b.dev == "" || b.dev == dev {
				continue
			}
			if why := blocked(ctx, p, b); why != "" {
				return why
			}
		}
	}
	return ""
}

// asSeen is the probe as rules see it.
func (b probe) asSeen(p netns.Plan) packet {
	k := packet{iif: p.Interface, proto: protocol.FlowTCP, state: "new"}
	if k.oif, k.src, k.dst = b.leaves(p); b.out {
		k.iif = b.dev
	}
	k.sport, k.dport = b.ports()
	return k
}

// blocked says what stopped a probe, and how to mend it as far as the rules that can be read say.
func blocked(ctx context.Context, p netns.Plan, b probe) string {
	k := b.asSeen(p)
	what := fmt.Sprintf("packets that come by %s for %s do not get to %s", p.Interface, b.pod, b.dev)
	if b.out {
		what = fmt.Sprintf("packets that %s sends by %s do not get into %s", b.pod, b.dev, p.Interface)
	}
	rules, err := readRules(ctx)
	if err != nil && b.untried {
		return ""
	} else if err != nil {
		return what
	}
	oif := k.oif
	for _, k.hook = range []string{"prerouting", "forward", "postrouting"} {
		if k.oif = oif; k.hook == "prerouting" {
			k.oif = ""
		}
		d, ok := rules.follow(k)
		if !ok || !d.Certain && (k.hook != "forward" || b.untried) {
			continue
		}
		return what + ", " + dropText(ctx, p.Interface, b, k, d)
	}
	if b.untried {
		return ""
	}
	return what + noRule
}

// dropText says what d does to probe b, which is packet k there, and what mends it as far as rules that can be read say.
func dropText(ctx context.Context, dev string, b probe, k packet, d protocol.Drop) string {
	switch who, mend := d.Mend(dev, b.dev); who {
	case "Docker":
		return fmt.Sprintf("Docker drops them (nftables chain %s): %s", d.Chain, mend)
	case "ufw":
		return fmt.Sprintf("ufw drops them (nftables chain %s): run '%s'", d.Chain, mend)
	case "firewalld":
		return fmt.Sprintf("firewalld rejects them (nftables chain %s): run '%s'", d.Chain, mend)
	}
	// Without what it counted, so that the same fault is always the same text.
	what := fmt.Sprintf("nftables chain %s drops them: %s", d.Chain, protocol.OneLine(ruleLineOf(ctx, d, "-s"), mostRule))
	if d.Hook != "forward" || !plainChain(d) {
		return what
	}
	return what + runs(dev, []string{b.dev}, func(in, out string) string {
		if d.Handle != 0 && in != k.iif {
			return "" // the rule may be about one way alone
		}
		return letBetween(d, in, out)
	})
}

// noRule follows what was seen and has no reason that can be read.
const noRule = ", and no rule that can be read says why: 'causeway diag explain' with such a pair looks closer"

// mostRule bounds the text of a rule, so that what follows it is whole where a condition is cut.
const mostRule = 120
