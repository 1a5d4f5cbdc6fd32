package policy

import (
	"slices"

	"causeway/protocol"
)

// Try is a question for packets: whether what begins at an address of one class reaches one of another.
type Try struct {
	Pair
	V6   bool
	Port protocol.Ports // one port, or ICMP
	Open bool           // wanted
	Rule string         // that opens it
}

// Tries lists what packets can show of what is declared: for each pair of classes that have addresses of one family a
// probe of each protocol of which something is closed, and one that is open. Of those that are closed, left are
// beyond most.
func (c *Compiled) Tries(most int) (closed, open []Try, left int) {
	v6 := map[ClassID][2]bool{}
	for _, u := range c.Units {
		f := v6[u.Class]
		if u.Prefix.Addr().Is6() {
			f[1] = true
		} else {
			f[0] = true
		}
		v6[u.Class] = f
	}
	ports := c.served()
	for _, a := range c.Classes {
		for _, b := range c.Classes {
			allows := c.Allows(Pair{a.ID, b.ID})
			for family, is6 := range []bool{false, true} {
				if !v6[a.ID][family] || !v6[b.ID][family] {
					continue
				}
				if p, rule, ok := opened(allows); ok {
					open = append(open, Try{Pair{a.ID, b.ID}, is6, p, true, rule})
				}
				for _, proto := range []protocol.Proto{protocol.ProtoTCP, protocol.ProtoUDP, protocol.ProtoICMP} {
					p, ok := shut(allows, proto, ports[b.ID])
					switch {
					case !ok:
					case len(closed) < most:
						closed = append(closed, Try{Pair: Pair{a.ID, b.ID}, V6: is6, Port: p})
					default:
						left++
					}
				}
			}
		}
	}
	return closed, open, left
}

// served are the ports that rules open to each class, for anybody: the ones of which it matters most to whom they are closed.
func (c *Compiled) served() map[ClassID][]protocol.Ports {
	out := map[ClassID][]protocol.Ports{}
	for _, k := range c.Classes {
		for r := range k.to.both(k.to) {
			for _, p := range c.rules[r].Allow {
				if p.First != 0 && len(out[k.ID]) < 64 {
					out[k.ID] = append(out[k.ID], one(p))
				}
			}
		}
	}
	return out
}

func one(p protocol.Ports) protocol.Ports {
	return protocol.Ports{Proto: p.Proto, First: p.First, Last: p.First}
}

// opened is a probe that is open.
func opened(allows []Allow) (p protocol.Ports, rule string, ok bool) {
	for _, x := range allows {
		switch {
		case x.Proto == protocol.ProtoAny:
			return usual[protocol.ProtoTCP], x.Rule, true
		case x.First != 0 || x.Proto == protocol.ProtoICMP:
			return one(x.Ports), x.Rule, true
		}
	}
	return p, "", false
}

// usual are the ports of probes where rules name none.
var usual = map[protocol.Proto]protocol.Ports{
	protocol.ProtoTCP:  {Proto: protocol.ProtoTCP, First: 22, Last: 22},
	protocol.ProtoUDP:  {Proto: protocol.ProtoUDP, First: 53, Last: 53},
	protocol.ProtoICMP: {Proto: protocol.ProtoICMP},
}

// shut is a probe of a protocol that is closed: of the ports that are served to others, if there is one.
func shut(allows []Allow, proto protocol.Proto, served []protocol.Ports) (protocol.Ports, bool) {
	is := func(p protocol.Ports) bool {
		own := p.First >= protocol.OverlayPortFirst && p.First <= protocol.OverlayPortLast // no subject of rules
		return p.Proto == proto && !own && !slices.ContainsFunc(allows, func(x Allow) bool { return x.Has(p) })
	}
	for _, p := range append(slices.Clone(served), usual[proto]) {
		if is(p) {
			return p, true
		}
	}
	if proto == protocol.ProtoICMP {
		return protocol.Ports{}, false
	}
	// The first that no range has: right behind one, or the first of all.
	after := []uint16{1}
	for _, x := range allows {
		if x.Proto == proto && x.Last < 65535 {
			after = append(after, x.Last+1)
		}
	}
	slices.Sort(after)
	for _, n := range after {
		if p := (protocol.Ports{Proto: proto, First: n, Last: n}); is(p) {
			return p, true
		}
	}
	return protocol.Ports{}, false
}
