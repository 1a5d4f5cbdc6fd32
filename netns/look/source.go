package look

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// anotherSource sends a probe that did not come through as it was, once more, and tells the source that it was about to
// leave the host with, or that our own chain was to drop it for; not valid if it was not given another one. What leaves
// so is no answer that anybody takes, nor a question that a peer does.
func anotherSource(ctx context.Context, p netns.Plan, link netlink.Link, b probe, inject Inject) (from netip.Addr) {
	secret, l := newSecret(), []probe{b}
	tryOnce(ctx, link, l, secret, trialRules(p, l, secret)+sourceRules(p, b, secret), inject, func() (bool, error) {
		text, err := kernel.Run(ctx, "", "nft", "-j", "list", "set", "inet", netns.TrialTable, sourceSet)
		if err == nil {
			from = firstSource(text)
		}
		return from.IsValid(), err
	})
	return from
}

// sourceSet has the other sources of a probe.
const sourceSet = "sources"

// sourceRules note the source of a probe that leaves where it should under another one: before our own chain drops
// what is not ours, and at the end.
func sourceRules(p netns.Plan, b probe, secret uint32) string {
	dev, from, _ := b.leaves(p)
	t, f, typ := "inet "+netns.TrialTable, kernel.NftFamily(from), "ipv4_addr"
	if from.Is6() {
		typ = "ipv6_addr"
	}
	notes := fmt.Sprintf("tcp ackseq %d tcp sequence %d oifname %q %s saddr != %s add @%s { %s saddr }\n", secret, b.id, dev, f, from, sourceSet, f)
	return fmt.Sprintf("add set %s %s { type %s; size 16; flags dynamic; }\n", t, sourceSet, typ) +
		fmt.Sprintf("add chain %s before { type filter hook postrouting priority %d; policy accept; }\n", t, netns.SourcePriority-1) +
		fmt.Sprintf("add rule %s before %sinsert rule %s leaving %s", t, notes, t, notes)
}

// firstSource is the first address of a set that nft listed.
func firstSource(text string) netip.Addr {
	var list struct {
		Nftables []struct {
			Set *struct{ Elem []any }
		}
	}
	if json.Unmarshal([]byte(text), &list) != nil {
		return netip.Addr{}
	}
	for _, e := range list.Nftables {
		if e.Set == nil {
			continue
		}
		for _, x := range e.Set.Elem {
			if m, ok := x.(map[string]any); ok { // newer versions of nft say more of an element
				x, _ = m["elem"].(map[string]any)["val"]
			}
			s, _ := x.(string)
			if a, err := netip.ParseAddr(s); err == nil {
				return a
			}
		}
	}
	return netip.Addr{}
}

// translated says that a probe leaves with another source, by which rule, and what mends it as far as rules that can be
// read say.
func translated(ctx context.Context, p netns.Plan, b probe, from netip.Addr) string {
	what := fmt.Sprintf("packets that come by %s for %s leave by %s with another source, %s", p.Interface, b.pod, b.dev, from)
	mapped := 1 << 30
	if b.out {
		what = fmt.Sprintf("packets that %s sends by %s leave by %s with another source, %s", b.pod, b.dev, p.Interface, from)
		mapped = netns.IdentityPriority
	}
	rules, err := readRules(ctx)
	if err != nil {
		return what
	}
	d, nat, ok := rules.translates(b.asSeen(p), mapped)
	if !ok {
		return what + noRule
	}
	what += fmt.Sprintf(": nftables chain %s gives it to them: %s", d.Chain, protocol.OneLine(ruleLineOf(ctx, d, "-s"), mostRule))
	if !b.out || !nat || !plainChain(d) || !commandName.MatchString(p.Interface) {
		return what
	}
	return what + ": run '" + strings.ReplaceAll(d.Let("oifname "+p.Interface), "'", "") + "'"
}

// anotherSourceVerdict is what a rule does that gives a packet another source.
const anotherSourceVerdict = "another source"

// setsSource reports whether a mangle statement sets the source address.
func setsSource(v any) bool {
	m, _ := v.(map[string]any)
	key, _ := m["key"].(map[string]any)
	payload, _ := key["payload"].(map[string]any)
	return payload["field"] == "saddr"
}

// translates finds the rule that gives k another source: one that does for certain, or else the first that may. Chains of
// address translation from a priority on are not asked: the connection has its mapping by then. nat says whether it is one of
// those.
func (r *nftRules) translates(k packet, mapped int) (d protocol.Drop, nat, ok bool) {
	oif := k.oif
	for _, k.hook = range []string{"prerouting", "forward", "postrouting"} {
		if k.oif = oif; k.hook == "prerouting" {
			k.oif = ""
		}
		for _, c := range r.base {
			if !c.sees(k) || c.typ == "nat" && c.prio >= mapped {
				continue
			}
			w := &walk{nftRules: r, k: k, sure: true, source: true}
			fate, found := w.chain(c.key, 0)
			if fate != dropped {
				found = w.maybe
			}
			if found == nil || ok && !found.Certain {
				continue
			}
			if d, nat, ok = *found, c.typ == "nat", true; d.Certain {
				return d, nat, ok
			}
		}
	}
	return d, nat, ok
}
