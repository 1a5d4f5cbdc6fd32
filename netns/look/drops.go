package look

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"causeway/netns"
	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// drops finds rules of nftables, other tools' and our own (and of iptables, which the
// kernel keeps there), that drop packets of a flow or of the datagrams that carry it. The
// rules are read and followed as the kernel would; a condition that is not
// understood makes what follows from it uncertain, never certain.
func drops(ctx context.Context, p netns.Plan, f Flow, pod string) ([]protocol.Drop, error) {
	rules, err := readRules(ctx)
	if err != nil {
		return nil, err
	}
	var out []protocol.Drop
	for _, k := range packetsOf(p, f, pod) {
		for _, d := range rules.all(k) {
			if len(out) >= protocol.MaxEvidenceLines {
				break
			}
			same := func(o protocol.Drop) bool {
				return o.Chain == d.Chain && o.Handle == d.Handle && o.Hook == d.Hook && o.Way == d.Way
			}
			if i := slices.IndexFunc(out, same); i >= 0 {
				out[i].Certain = out[i].Certain || d.Certain
				continue
			}
			if strings.HasPrefix(k.way, "underlay") {
				d.Port = f.UnderlayPort
			}
			d.Rule = ruleLineOf(ctx, d)
			out = append(out, d)
		}
	}
	if d, ok := rules.counted(f.Local); ok && pod != "" {
		d.Rule = ruleLineOf(ctx, d)
		out = append(out, d)
	}
	return out, nil
}

// counted is the rule of our own that has dropped packets from a or what is beside it, as
// they came by an interface where that is not. Whether they were those of a flow it cannot say.
func (r *nftRules) counted(a netip.Addr) (protocol.Drop, bool) {
	key := protocol.AccessTable + protocol.InterfaceChain
	w := &walk{nftRules: r, k: packet{src: a, dst: a}}
	for _, x := range r.chains[key] {
		from, packets := no, 0.0
		for _, e := range x.expr {
			if m, ok := e["match"].(map[string]any); ok {
				if left, _ := m["left"].(map[string]any); left["payload"] != nil {
					from = w.match(key, m)
				}
			}
			if c, ok := e["counter"].(map[string]any); ok {
				packets, _ = c["packets"].(float64)
			}
		}
		if from == yes && packets > 0 {
			return protocol.Drop{Way: "out", Hook: "prerouting", Chain: key, Handle: x.handle}, true
		}
	}
	return protocol.Drop{}, false
}

// ruleLineOf is a rule as nft prints it with these flags.
func ruleLineOf(ctx context.Context, d protocol.Drop, flags ...string) string {
	if d.Handle == 0 {
		return "policy drop"
	}
	list, err := kernel.Run(ctx, "", "nft", slices.Concat(flags, []string{"-a", "list", "chain"}, strings.Fields(d.Chain))...)
	if err != nil {
		return ""
	}
	end := fmt.Sprintf(" # handle %d", d.Handle)
	for l := range strings.Lines(list) {
		if l = strings.TrimSpace(l); strings.HasSuffix(l, end) {
			return protocol.OneLine(strings.TrimSuffix(l, end), 200)
		}
	}
	return ""
}

// packet is one that a host handles, at one hook.
type packet struct {
	way          string // of protocol.Drop
	hook         string
	iif, oif     string
	src, dst     netip.Addr
	proto        string
	sport, dport uint16 // 0: any
	mark         uint32
	state        string // of conntrack
	local        bool   // ends at this host
}

func (k packet) addr() netip.Addr {
	if k.dst.IsValid() {
		return k.dst
	}
	return k.src
}

// packetsOf are the packets of f at this host, hook by hook: those of the flow both
// ways, and the datagrams that carry it.
func packetsOf(p netns.Plan, f Flow, pod string) (out []packet) {
	add := func(k packet, hooks ...string) {
		for _, hook := range hooks {
			k := k
			k.hook = hook
			if hook == "input" || hook == "prerouting" {
				k.oif = ""
			}
			out = append(out, k)
		}
	}
	into := packet{way: "in", iif: p.Interface, oif: pod, src: f.Remote, dst: f.Local, proto: f.Proto, state: "new", local: pod == ""}
	from := packet{way: "out", iif: pod, oif: p.Interface, src: f.Local, dst: f.Remote, proto: f.Proto, state: "new"}
	if f.Serves {
		into.dport, from.sport, from.state = f.Port, f.Port, "established"
	} else {
		from.dport, into.sport, into.state = f.Port, f.Port, "established"
	}
	if pod == "" {
		add(into, "prerouting", "input")
		add(from, "output", "postrouting")
	} else {
		add(into, "prerouting", "forward", "postrouting")
		add(from, "prerouting", "forward", "postrouting")
	}
	for _, to := range f.Underlay {
		rs := decide(routed{dst: to.Addr()})
		dev := rs.To
		add(packet{way: "underlay-out", oif: dev, dst: to.Addr(), proto: protocol.FlowUDP, sport: f.UnderlayPort, dport: to.Port(), mark: p.Mark, state: "new"}, "output", "postrouting")
		add(packet{way: "underlay-in", iif: dev, src: to.Addr(), proto: protocol.FlowUDP, sport: to.Port(), dport: f.UnderlayPort, state: "established", local: true}, "prerouting", "input")
	}
	return out
}
