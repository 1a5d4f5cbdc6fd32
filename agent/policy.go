package agent

import (
	"net/netip"
	"slices"
	"strings"

	"causeway/agent/debug"
	"causeway/agent/flows"
	"causeway/agent/identity"
	"causeway/agent/items"
	"causeway/agent/onhost"
	"causeway/netns/policy"
)

// flowView is what the host has in force of what flows are judged and told apart by.
func flowView(host *onhost.Keeper, own *identity.Own) flows.View {
	f := host.Facts()
	return flows.View{Wall: wallOf(f), Logging: items.Logging(f.Items), Own: own.Now().Overlay, Hubs: f.Plan.Wall.Hubs, Overlay: f.Plan.Wall.Overlay, Local: f.Plan.Local, Remote: f.Plan.Routes}
}

// wallOf is the wall of policies that stands on the host; nil: none is declared.
func wallOf(f onhost.Facts) *policy.Part {
	for _, p := range f.Plan.Parts {
		if w, ok := p.(*policy.Part); ok {
			return w
		}
	}
	return nil
}

// policy says what is in force here of who may talk to whom, and what it counts.
func (a *answers) policy(addr netip.Addr) debug.Policy {
	f := a.host.Facts()
	out := debug.Policy{Logging: items.Logging(f.Items), Rules: []debug.RuleCount{}, Flows: a.flows.Refused(), Classes: []debug.ClassOf{}}
	w := wallOf(f)
	if w == nil {
		return out
	}
	out.InForce = true
	if err := w.Deaf(); err != nil {
		out.Deaf = err.Error()
	}
	c, err := a.flows.Counts()
	if err != nil {
		out.Error = err.Error()
	}
	out.Refused, out.Dropped, out.Untracked, out.Invalid = c.Refused, c.Dropped, c.Untracked, c.Invalid
	for name, n := range c.Rules {
		out.Rules = append(out.Rules, debug.RuleCount{Rule: name, Count: n})
	}
	slices.SortFunc(out.Rules, func(x, y debug.RuleCount) int { return strings.Compare(x.Rule, y.Rule) })
	for where, l := range map[string][]policy.Member{"here": w.Config().Local, "at a peer": w.Config().Remote} {
		best := -1
		for i, m := range l {
			if m.Prefix.Contains(addr) && (best < 0 || m.Prefix.Bits() > l[best].Prefix.Bits()) {
				best = i
			}
		}
		if best >= 0 {
			out.Classes = append(out.Classes, debug.ClassOf{Where: where, Prefix: l[best].Prefix, Class: uint32(l[best].Class)})
		}
	}
	return out
}
