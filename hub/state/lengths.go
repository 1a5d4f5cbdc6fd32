package state

import (
	"iter"
	"net/netip"
)

// lengths counts prefixes by their length, so that nobody looks for those around a prefix at lengths of which
// there are none. As a Map it can be copied.
type lengths struct{ n *[2][129]int32 } // of IPv4 and IPv6; what it points to is never changed; nil: none

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// add counts d more prefixes of the length of p, which is valid.
func (l *lengths) add(p netip.Prefix, d int32) {
	var n [2][129]int32
	if l.n != nil {
		n = *l.n
	}
	n[family(p)][p.Bits()] += d
	l.n = &n
}

// around yields p, which is masked, and the prefixes around it, the nearest first, of lengths of which there are some.
func (l lengths) around(p netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		if l.n == nil || !p.IsValid() {
			return
		}
		for bits := p.Bits(); bits >= 0; bits-- {
			if l.n[family(p)][bits] == 0 {
				continue
			}
			if x, err := p.Addr().Prefix(bits); err != nil || !yield(x) {
				return
			}
		}
	}
}
