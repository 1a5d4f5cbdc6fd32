package protocol

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Proto is an IP protocol number; 0 is any.
type Proto uint8

// Protocols that rules name. ICMP stands for ICMPv6 too.
const (
	ProtoAny  Proto = 0
	ProtoICMP Proto = 1
	ProtoTCP  Proto = 6
	ProtoUDP  Proto = 17
)

var protoNames = map[string]Proto{"any": ProtoAny, "icmp": ProtoICMP, "tcp": ProtoTCP, "udp": ProtoUDP}

// Ports are the ports of a protocol, First to Last. ProtoICMP and ProtoAny have none: both are 0.
type Ports struct {
	Proto       Proto
	First, Last uint16
}

// ParsePorts reads such as tcp/5432, udp/5000-5100, tcp (all ports), icmp and any.
func ParsePorts(text string) (Ports, error) {
	name, ports, some := strings.Cut(text, "/")
	proto, ok := protoNames[name]
	if !ok {
		return Ports{}, fmt.Errorf("%.40q is no protocol and port; write such as tcp/5432, udp/5000-5100, tcp, icmp or any", text)
	}
	has := proto == ProtoTCP || proto == ProtoUDP
	switch {
	case !some && has:
		return Ports{proto, 1, 65535}, nil
	case !some:
		return Ports{Proto: proto}, nil
	case !has:
		return Ports{}, fmt.Errorf("%.40q: %s has no ports", text, name)
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	p := Ports{Proto: proto}
	for i, text := range []string{first, last} {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 || text[0] == '+' {
			return Ports{}, fmt.Errorf("%.40q: ports are 1 to 65535", ports)
		}
		*[]*uint16{&p.First, &p.Last}[i] = uint16(n)
	}
	if p.First > p.Last {
		return Ports{}, fmt.Errorf("%.40q: the first port of a range is not above its last", ports)
	}
	return p, nil
}

// String is as ParsePorts reads it.
func (p Ports) String() string {
	name := "any"
	for n, x := range protoNames {
		if x == p.Proto {
			name = n
		}
	}
	switch {
	case p.Proto != ProtoTCP && p.Proto != ProtoUDP || p.First == 1 && p.Last == 65535:
		return name
	case p.First == p.Last:
		return fmt.Sprintf("%s/%d", name, p.First)
	}
	return fmt.Sprintf("%s/%d-%d", name, p.First, p.Last)
}

// Has reports whether all of q is in p.
func (p Ports) Has(q Ports) bool {
	return p.Proto == ProtoAny || p.Proto == q.Proto && p.First <= q.First && q.Last <= p.Last
}

// Meet is what is in both p and q, if anything is.
func (p Ports) Meet(q Ports) (Ports, bool) {
	switch {
	case p.Proto == ProtoAny:
		return q, true
	case q.Proto == ProtoAny:
		return p, true
	}
	m := Ports{p.Proto, max(p.First, q.First), min(p.Last, q.Last)}
	return m, p.Proto == q.Proto && m.First <= m.Last
}

// Less is what of p is not in q. Any protocol without one is any protocol still.
func (p Ports) Less(q Ports) (out []Ports) {
	switch {
	case q.Has(p):
		return nil
	case p.Proto != q.Proto || q.Last < p.First || p.Last < q.First:
		return []Ports{p}
	}
	if p.First < q.First {
		out = append(out, Ports{p.Proto, p.First, q.First - 1})
	}
	if q.Last < p.Last {
		out = append(out, Ports{p.Proto, q.Last + 1, p.Last})
	}
	return out
}

// JoinPorts is what is in any of a list, each port once, neighbours together, in order. It changes the order of the list.
func JoinPorts(l []Ports) (out []Ports) {
	slices.SortFunc(l, func(a, b Ports) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	if len(l) > 0 && l[0].Proto == ProtoAny { // which is the first
		return l[:1]
	}
	for _, p := range l {
		if n := len(out) - 1; n >= 0 && out[n].Proto == p.Proto && int(p.First) <= int(out[n].Last)+1 {
			out[n].Last = max(out[n].Last, p.Last)
			continue
		}
		out = append(out, p)
	}
	return out
}
