package state

import (
	"encoding/binary"
	"encoding/json"
	"hash/fnv"
	"net/netip"

	"causeway/protocol"
)

// stamper is an ObjectKind whose specs have something that the log gives. It lies in what is stored, so that a hub which
// does not know the kind keeps it.
type stamper interface {
	ObjectKind
	// Stamp is a canonical spec with what is given. had is what the object was before; zero: it was not there. What is there
	// already stays as it is.
	Stamp(s *State, name string, had Object, spec json.RawMessage) (json.RawMessage, error)
}

// holder is an ObjectKind whose objects have addresses of the overlay.
type holder interface {
	ObjectKind
	// Holds are the addresses of an object, whatever else its spec is.
	Holds(o Object) []netip.Addr
}

func holds(o Object) []netip.Addr {
	if k, ok := objectKinds[o.Kind].(holder); ok {
		return k.Holds(o)
	}
	return nil
}

// hold notes which addresses an object has, in place of those that it had.
func (s *State) hold(old, o Object) {
	for _, a := range holds(old) {
		if s.held.Get(a) == old.Key() {
			s.held.Delete(a)
		}
	}
	for _, a := range holds(o) {
		s.held.Set(a, o.Key())
	}
}

// upper is the upper half of an overlay range, to which nodes' numbers come last: its first address, and how many may be
// given to objects from there on.
func upper(p netip.Prefix) (first netip.Addr, n uint64) {
	p = p.Masked()
	bits := p.Addr().BitLen() - p.Bits() - 1
	b := p.Addr().As16()
	b[15-bits/8] |= 1 << (bits % 8)
	first = netip.AddrFrom16(b)
	if p.Addr().Is4() {
		first = first.Unmap()
	}
	return first, 1<<min(bits, 62) - 1 // all but the last one, which may be a broadcast address
}

// MayHold says why no object may have an address of the overlay; empty: it may.
func (s *State) MayHold(a netip.Addr) string {
	for _, p := range s.Overlay {
		if !p.Contains(a) {
			continue
		}
		first, n := upper(p)
		if half := netip.PrefixFrom(first, p.Bits()+1); !half.Contains(a) || low64(a)-low64(first) >= n {
			return "it is not in the upper half of the overlay range " + p.String() + ", from " + first.String() + " on"
		}
		return s.taken(p, a)
	}
	return "it is not in the overlay"
}

func low64(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])
}

// taken says who has or had an address of the overlay range p; empty: nobody.
func (s *State) taken(p netip.Prefix, a netip.Addr) string {
	if k, ok := s.held.Find(a); ok {
		return k.String() + " has it"
	}
	if n := numberAt(p, a); n != 0 && n < s.NextNumber {
		return "a node or hub has it, or had it"
	}
	return ""
}

// FreeAddress chooses an address in the upper half of the overlay range p for what has a name: by the name, so that what is
// declared again has the same one again, as long as nobody else took it.
func (s *State) FreeAddress(p netip.Prefix, name string) (netip.Addr, error) {
	first, n := upper(p)
	h := fnv.New64a()
	h.Write([]byte(name))
	at := mixed(h.Sum64()) % n
	most := min(n, uint64(s.held.Len())+uint64(s.NextNumber)+1) // as many as may be taken, and one
	for range most {
		b := first.As16()
		binary.BigEndian.PutUint64(b[8:], low64(first)+at)
		a := netip.AddrFrom16(b)
		if first.Is4() {
			a = a.Unmap()
		}
		if s.taken(p, a) == "" {
			return a, nil
		}
		at = (at + 1) % n
	}
	return netip.Addr{}, Errorf(Full, "the upper half of the overlay range %s has no address left; delete what has some, or start the hub with a wider --overlay, one that begins at the same address", p)
}

// mixed is the finalizer of SplitMix64: FNV alone tells short names badly apart.
func mixed(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// NextFree is the next number that is given. It passes over those whose addresses objects have.
func NextFree(d *Draft) (protocol.NodeNumber, error) {
	n := d.NextNumber
	for n <= protocol.MaxNodeNumber && d.heldNumber(n) != (ObjectKey{}) {
		n++
	}
	if n == d.NextNumber || !n.Valid() {
		return d.NextNumber, nil
	}
	return n, d.Add(NumbersPassed{n})
}

// heldNumber is the object that has an address of what would have a number.
func (s *State) heldNumber(n protocol.NodeNumber) (k ObjectKey) {
	if s.held.Len() == 0 {
		return k
	}
	for _, p := range s.Overlay {
		if a, err := n.Overlay(p); err == nil {
			if by, ok := s.held.Find(a); ok {
				return by
			}
		}
	}
	return k
}
