package engine

import (
	"encoding/binary"
	"net/netip"

	"go4.org/netipx"
)

// Local are the destinations that peers may send to. It never changes once it is made, so
// that a data path reads it by an atomic pointer; a nil one holds nothing.
type Local struct {
	v4 []span[addr4]
	v6 []span[addr6]
}

type addr4 = uint32
type addr6 struct{ hi, lo uint64 }

// span is a range of addresses, both ends inside. Those of a Local are sorted and apart.
type span[A any] struct{ from, to A }

// NewLocal makes one; prefixes may overlap. Nil holds nothing.
func NewLocal(prefixes []netip.Prefix) *Local {
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	set, err := b.IPSet()
	if err != nil { // of a prefix that is not valid, which holds nothing
		return &Local{}
	}
	l := &Local{}
	for _, r := range set.Ranges() {
		if from, to := r.From(), r.To(); from.Is4() {
			a, b := from.As4(), to.As4()
			l.v4 = append(l.v4, span[addr4]{binary.BigEndian.Uint32(a[:]), binary.BigEndian.Uint32(b[:])})
		} else {
			a, b := from.As16(), to.As16()
			l.v6 = append(l.v6, span[addr6]{key6(a[:]), key6(b[:])})
		}
	}
	return l
}

func key6(b []byte) addr6 { return addr6{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])} }

func (a addr6) less(b addr6) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

// few spans are looked at one by one.
const few = 8

// Holds reports whether an IP packet's destination is inside; one too short for its
// header is not. It does not allocate.
func (l *Local) Holds(packet []byte) bool {
	switch {
	case l == nil || len(packet) < 20:
		return false
	case packet[0]>>4 == 4:
		a, s := binary.BigEndian.Uint32(packet[16:]), l.v4
		for len(s) > few {
			if m := len(s) / 2; a < s[m].from {
				s = s[:m]
			} else {
				s = s[m:]
			}
		}
		for i := range s {
			if s[i].from <= a && a <= s[i].to {
				return true
			}
		}
	case packet[0]>>4 == 6 && len(packet) >= 40:
		a, s := key6(packet[24:]), l.v6
		for len(s) > few {
			if m := len(s) / 2; a.less(s[m].from) {
				s = s[:m]
			} else {
				s = s[m:]
			}
		}
		for i := range s {
			if !a.less(s[i].from) && !s[i].to.less(a) {
				return true
			}
		}
	}
	return false
}
