package service

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// live is what there is of services at the moment, checked, as small as the kernel has it: 8 bytes a slot of IPv4.
type live struct {
	services map[key]*entry
	dead     map[Backend]bool
	exposed  map[key]key // addresses of the host's own, which are in services too, and whose they are
	fences
}

// entry is one service's slots. It is never changed.
type entry struct {
	sticky bool
	data   []byte // the values of the map, one after the other
}

// dataLen is how long the value of a slot is.
func dataLen(v6 bool) int {
	if v6 {
		return 20
	}
	return 8
}

// appendData appends an address and a port as maps have them, each field in multiples of four bytes.
func appendData(b []byte, a netip.AddrPort) []byte {
	if a.Addr().Is4() {
		x := a.Addr().As4()
		b = append(b, x[:]...)
	} else {
		x := a.Addr().As16()
		b = append(b, x[:]...)
	}
	return append(binary.BigEndian.AppendUint16(b, a.Port()), 0, 0)
}

func readData(b []byte) netip.AddrPort {
	n := len(b) - 4
	a, _ := netip.AddrFromSlice(b[:n])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[n:]))
}

// slots are how many it has: 0, 64 or 256.
func (e *entry) slots(k key) int { return len(e.data) / dataLen(k.vip.Is6()) }

// slot is the value of one.
func (e *entry) slot(k key, i int) []byte {
	n := dataLen(k.vip.Is6())
	return e.data[i*n : (i+1)*n]
}

// backends are those in its slots, some of them more than once.
func (e *entry) backends(k key) iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		for i := range e.slots(k) {
			if i > 0 && bytes.Equal(e.slot(k, i), e.slot(k, i-1)) {
				continue
			}
			if !yield(readData(e.slot(k, i))) {
				return
			}
		}
	}
}

// newLive checks. Services that are as in before are taken from there, so that most of a change allocates nothing.
func newLive(services []Service, dead []Backend, before live) (live, error) {
	if len(services) > MaxServices || len(dead) > MaxDead {
		return live{}, fmt.Errorf("service: %d services and %d dead backends: at most %d and %d", len(services), len(dead), MaxServices, MaxDead)
	}
	l := live{services: make(map[key]*entry, len(services)), dead: make(map[Backend]bool, len(dead)), exposed: map[key]key{}, fences: before.fences}
	var scratch []byte
	slots := 0
	for _, s := range services {
		k := s.key()
		if slots += len(s.Slots) * (1 + len(s.Expose)); slots > MaxSlots {
			return live{}, fmt.Errorf("service: more than %d slots", MaxSlots)
		}
		if l.services[k] != nil {
			return live{}, fmt.Errorf("service: %s is there twice", k)
		}
		scratch = scratch[:0]
		for _, b := range s.Slots {
			scratch = appendData(scratch, b)
		}
		e := before.services[k] // which was checked
		if e == nil || e.sticky != s.Sticky || e.slots(k) != len(s.Slots) || !bytes.Equal(e.data, scratch) {
			if err := s.check(); err != nil {
				return live{}, fmt.Errorf("service: %s: %w", k, err)
			}
			e = &entry{s.Sticky, bytes.Clone(scratch)}
		}
		l.services[k] = e
	}
	for _, s := range services {
		if err := l.expose(s); err != nil {
			return live{}, err
		}
	}
	for _, b := range dead {
		if err := b.check(); err != nil {
			return live{}, err
		}
		l.dead[b] = true
	}
	return l, nil
}

// config is what was handed over, in order.
func (l live) config(c Config) Config {
	met := map[key][]netip.AddrPort{}
	for _, d := range slices.SortedFunc(maps.Keys(l.exposed), key.compare) {
		met[l.exposed[d]] = append(met[l.exposed[d]], netip.AddrPortFrom(d.vip, d.port))
	}
	for _, k := range slices.SortedFunc(maps.Keys(l.services), key.compare) {
		if _, by := l.exposed[k]; by {
			continue
		}
		e := l.services[k]
		s := Service{VIP: k.vip, Proto: k.proto, Port: k.port, Sticky: e.sticky, Expose: met[k]}
		for i := range e.slots(k) {
			s.Slots = append(s.Slots, readData(e.slot(k, i)))
		}
		c.Services = append(c.Services, s)
	}
	compare := func(a, b Backend) int {
		return key{a.Addr.Addr(), a.Proto, a.Addr.Port()}.compare(key{b.Addr.Addr(), b.Proto, b.Addr.Port()})
	}
	c.Dead = slices.SortedFunc(maps.Keys(l.dead), compare)
	c.Fenced = slices.SortedFunc(maps.Keys(l.fenced), compare)
	c.Left = slices.SortedFunc(maps.Keys(l.left), func(a, b Left) int {
		return cmp.Or(key{a.VIP, a.Proto, a.Port}.compare(key{b.VIP, b.Proto, b.Port}), a.Backend.Compare(b.Backend))
	})
	return c
}
