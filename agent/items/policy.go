package items

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"causeway/internal/policyfault"
	"causeway/netns"
	"causeway/netns/policy"
	"causeway/protocol"
)

// segments say which segments the node is in; what is open inside them is part of the policies' table.
type segments struct{}

func (segments) Kind() string { return protocol.ItemSegment }

func (segments) Check(i protocol.Item) error { return checkOpenings(i) }

func (segments) Apply(context.Context, []protocol.Item) error { return nil }

func (segments) Text(i protocol.Item) string {
	o, err := bodyOf[protocol.Openings](i)
	switch {
	case err != nil:
		return err.Error()
	case len(o.Rules) == 0:
		return "this node is in it"
	}
	return "this node is in it, and all inside it is open"
}

// policies are who may talk to whom: a table of its own that judges each packet of the tunnel.
type policies struct{}

func (policies) Kind() string { return protocol.ItemPolicy }

func (policies) Check(i protocol.Item) error { return checkOpenings(i) }

func (policies) Apply(context.Context, []protocol.Item) error { return nil }

func (policies) Text(i protocol.Item) string {
	o, err := bodyOf[protocol.Openings](i)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d rules open something to or from this node", len(o.Rules))
}

func checkOpenings(i protocol.Item) error {
	o, err := bodyOf[protocol.Openings](i)
	if err != nil {
		return err
	}
	return o.Check()
}

// Part closes what no rule opens as soon as there is any segment or policy, whether or not what it says is taken.
func (policies) Part(v View, _ []protocol.Item) (netns.Part, error) {
	c := policy.Config{Interface: v.Interface, Own: v.Own, Hubs: v.Hubs, Overlay: v.Overlay}
	there := false
	for _, i := range v.Items {
		if i.Kind != protocol.ItemSegment && i.Kind != protocol.ItemPolicy {
			continue
		}
		there = true
		if checkOpenings(i) == nil {
			c.Allows = append(c.Allows, allows(i)...)
		}
	}
	if !there || policyfault.Off(policyfault.Host) {
		return nil, nil
	}
	var remote members
	for _, p := range v.Peers {
		mine := slices.Concat(p.Prefixes(), p.Sources)
		for _, k := range p.Classes {
			if slices.ContainsFunc(mine, func(q netip.Prefix) bool { return q.Bits() <= k.Prefix.Bits() && q.Contains(k.Prefix.Addr()) }) {
				remote.add(k)
			}
		}
	}
	var local members
	for _, k := range v.Classes {
		local.add(k)
	}
	c.Remote, c.Local = remote.list(), local.list()
	x, err := policy.NewPart(c)
	if err != nil { // closed, but for what no policy closes
		c.Remote, c.Local, c.Allows = nil, nil, nil
		if x, closed := policy.NewPart(c); closed == nil {
			return x, nil
		}
		return nil, err
	}
	return x, nil
}

// allows are the openings of an item that was checked.
func allows(i protocol.Item) (out []policy.Allow) {
	o, _ := bodyOf[protocol.Openings](i)
	for _, r := range o.Rules {
		for _, text := range r.Allow {
			p, _ := protocol.ParsePorts(text)
			if p.First == 1 && p.Last == 65535 {
				p.First, p.Last = 0, 0
			}
			for _, from := range r.From {
				for _, to := range r.To {
					out = append(out, policy.Allow{From: policy.Class(from), To: policy.Class(to), Proto: policy.Proto(p.Proto), First: p.First, Last: p.Last, Rule: i.Name + "." + r.Rule, Arrives: r.Arrives})
				}
			}
		}
	}
	return out
}

// nobodys is a class that no rule names.
const nobodys = policy.MaxClass

// members are prefixes with their classes. One that is said to be of two classes, or of none, is closed: it is not of the
// class that is around it.
type members struct {
	of    map[netip.Prefix]policy.Class
	order []netip.Prefix
}

func (m *members) add(k protocol.AddressClass) {
	if protocol.CheckPrefix(k.Prefix) != nil {
		return
	}
	class := policy.Class(k.Class)
	if class == 0 || class >= nobodys {
		class = nobodys
	}
	if m.of == nil {
		m.of = map[netip.Prefix]policy.Class{}
	}
	had, there := m.of[k.Prefix]
	if !there {
		m.order = append(m.order, k.Prefix)
	} else if had != class {
		class = nobodys
	}
	m.of[k.Prefix] = class
}

func (m *members) list() (out []policy.Member) {
	for _, p := range m.order {
		out = append(out, policy.Member{Prefix: p, Class: m.of[p]})
	}
	return out
}
