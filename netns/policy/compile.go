package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// content is what the table's sets hold, as values that compare.
type content struct {
	spans [4][]span // of each map or set of addresses, in order: see spanSets
	// Who may begin what with whom: the key of a list. What arrives may be more than what begins here.
	arrives, begins map[pair]string
	lists           map[string][]item
	side            map[string]map[pair]string
	rules           map[string]bool // names
}

// spanSets are where addresses of one class are, in the order of content.spans: remote ones in
// a map to their class, local ones in a set, and in the maps to the chains of their class.
var spanSets = [4]string{"remote4", "remote6", "local4", "local6"}

// span is a range of addresses of one class.
type span struct {
	from, to netip.Addr
	class    Class
}

type pair struct{ from, to Class }

// sides are the local classes that something is open to, or from, by the names of their chains.
func (c content) sides() map[string]map[pair]string {
	local := map[Class]bool{}
	for _, l := range c.spans[2:] {
		for _, s := range l {
			local[s.class] = true
		}
	}
	out := map[string]map[pair]string{}
	put := func(name string, p pair, k string) {
		if out[name] == nil {
			out[name] = map[pair]string{}
		}
		out[name][p] = k
	}
	for p, k := range c.arrives {
		if local[p.to] {
			put(sideName(sideTo, p.to), p, k)
		}
	}
	for p, k := range c.begins {
		if local[p.from] {
			put(sideName(sideFrom, p.from), p, k)
		}
	}
	return out
}

func sideName(side string, c Class) string { return fmt.Sprintf("%s-%d", side, c) }

// item opens a range of protocols and ports for a rule. Items of one list do not overlap.
type item struct {
	protoFirst, protoLast Proto
	first, last           uint16
	rule                  string
}

// compile computes what the sets hold.
func compile(c Config) content {
	out := content{arrives: map[pair]string{}, begins: map[pair]string{}, lists: map[string][]item{}, rules: map[string]bool{}}
	for i, l := range [4][]Member{c.Remote, c.Remote, c.Local, c.Local} {
		out.spans[i] = flatten(l, i%2 == 1)
	}
	allows := slices.Clone(c.Allows)
	slices.SortFunc(allows, func(a, b Allow) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Proto, b.Proto),
			cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last), strings.Compare(a.Rule, b.Rule))
	})
	var begins []Allow // of one pair
	for len(allows) > 0 {
		p := pair{allows[0].From, allows[0].To}
		n := 0
		begins = begins[:0]
		for n < len(allows) && (pair{allows[n].From, allows[n].To}) == p {
			if !allows[n].Arrives {
				begins = append(begins, allows[n])
			}
			n++
		}
		k := out.list(allows[:n])
		if out.arrives[p] = k; len(begins) == n {
			out.begins[p] = k
		} else if len(begins) > 0 {
			out.begins[p] = out.list(begins)
		}
		allows = allows[n:]
	}
	out.side = out.sides()
	return out
}

// list has the list of the sorted allows of one pair, and returns its key.
func (c *content) list(allows []Allow) string {
	var b []byte
	for _, a := range allows {
		b = append(b, byte(a.Proto), byte(a.First>>8), byte(a.First), byte(a.Last>>8), byte(a.Last))
		b = append(append(b, a.Rule...), 0)
		c.rules[a.Rule] = true
	}
	key := string(b)
	if _, ok := c.lists[key]; !ok {
		c.lists[key] = items(allows)
	}
	return key
}

// flatten makes of nested prefixes ranges that do not overlap: the longest prefix wins.
func flatten(l []Member, v6 bool) []span {
	out := make([]span, 0, len(l))
	type around struct {
		last  netip.Addr
		class Class
	}
	var in []around // the prefixes that the next one may lie in, the widest first
	var next netip.Addr
	emit := func(to netip.Addr, c Class) {
		if next.IsValid() && !to.Less(next) {
			out = append(out, span{next, to, c})
		}
	}
	leave := func(before netip.Addr) { // those that end before an address; not valid: all
		for len(in) > 0 && (!before.IsValid() || in[len(in)-1].last.Less(before)) {
			a := in[len(in)-1]
			emit(a.last, a.class)
			in = in[:len(in)-1]
			if next = a.last.Next(); !next.IsValid() {
				in = nil // what lies around it ends there too
			}
		}
	}
	for _, m := range l {
		first := m.Prefix.Addr()
		if first.Is6() != v6 {
			continue
		}
		leave(first)
		if len(in) > 0 && next.Less(first) {
			emit(first.Prev(), in[len(in)-1].class)
		}
		next = first
		in = append(in, around{netipx.PrefixLastIP(m.Prefix), m.Class})
	}
	leave(netip.Addr{})
	return out
}

// items makes of the sorted allows of one pair items that do not overlap. Where several open
// the same, the first by name counts it.
func items(allows []Allow) (out []item) {
	of := func(p Proto) (l []Allow) {
		for _, a := range allows {
			if a.Proto == p || a.Proto == Any {
				if a.Last == 0 {
					a.Last = 65535
				}
				l = append(l, a)
			}
		}
		slices.SortStableFunc(l, func(a, b Allow) int { return strings.Compare(a.Rule, b.Rule) })
		return l
	}
	for _, p := range []Proto{TCP, UDP} {
		out = append(out, ports(p, of(p))...)
	}
	if l := of(ICMP); len(l) > 0 {
		out = append(out, item{ICMP, ICMP, 0, 65535, l[0].Rule}, item{icmp6, icmp6, 0, 65535, l[0].Rule})
	}
	if all := of(Any); len(all) > 0 {
		for _, x := range [][2]Proto{{0, ICMP - 1}, {ICMP + 1, TCP - 1}, {TCP + 1, UDP - 1}, {UDP + 1, icmp6 - 1}, {icmp6 + 1, 255}} {
			out = append(out, item{x[0], x[1], 0, 65535, all[0].Rule})
		}
	}
	return out
}

// ports cuts the ranges of one protocol so that they do not overlap; the first in l wins.
func ports(p Proto, l []Allow) (out []item) {
	var cuts []int // where something begins or has ended
	for _, a := range l {
		cuts = append(cuts, int(a.First), int(a.Last)+1)
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for i := range max(len(cuts)-1, 0) {
		first, last := uint16(cuts[i]), uint16(cuts[i+1]-1)
		k := slices.IndexFunc(l, func(a Allow) bool { return a.First <= first && last <= a.Last })
		if k < 0 {
			continue
		}
		if n := len(out) - 1; n >= 0 && out[n].rule == l[k].Rule && int(out[n].last)+1 == cuts[i] {
			out[n].last = last
			continue
		}
		out = append(out, item{p, p, first, last, l[k].Rule})
	}
	return out
}
