// Package held keeps the ranges that were ever routed into the tunnel on a host, so
// that none of them falls back to the host's default route by a hub's word: where no
// peer has one any more it is closed, until a peer has it again or the host's own
// operator lets it go. It keeps beside them which addresses stay outside the tunnel
// because the host used them when a range arrived.
//
// A Book is a value; Follow computes the next one from a netmap that was checked,
// Load and Save keep it on disk.
package held

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"causeway/protocol"

	"go4.org/netipx"
)

const (
	// MaxRanges bounds what is kept, routed and closed, and so what a hub can have
	// routed at all: more than any cluster announces.
	MaxRanges = 32768
	// MaxClosed bounds what is closed: from then on nothing new is routed, rather than
	// anything forgotten.
	MaxClosed = 8192
	// mergeAbove is how many closed ranges keep the form they came in; more are put
	// together where they lie side by side.
	mergeAbove = 1024
	// MaxExceptions bounds the addresses outside the tunnel.
	MaxExceptions = 256
)

// Range is a prefix that was routed into the tunnel.
type Range struct {
	Prefix netip.Prefix `json:"prefix"`
	Closed time.Time    `json:"closed,omitzero"` // since when no peer has it; zero: one has it
}

// Exception is an address that the host used as it was when a range came that has it.
type Exception struct {
	Addr netip.Addr `json:"addr"`
	What string     `json:"what"` // for example: resolver of /etc/resolv.conf
}

// Book is all that is kept. Its slices are replaced, never changed in place.
type Book struct {
	Ranges     []Range     `json:"ranges"` // sorted, none twice
	Exceptions []Exception `json:"exceptions,omitempty"`
}

// Prefixes are those of all ranges.
func (b Book) Prefixes() []netip.Prefix {
	out := make([]netip.Prefix, len(b.Ranges))
	for i, r := range b.Ranges {
		out[i] = r.Prefix
	}
	return out
}

// Closed are the ranges that no peer has, sorted.
func (b Book) Closed() (out []Range) {
	for _, r := range b.Ranges {
		if !r.Closed.IsZero() {
			out = append(out, r)
		}
	}
	return out
}

// Room is how many ranges more may be routed.
func (b Book) Room() int {
	if len(b.Closed()) >= MaxClosed {
		return 0
	}
	return max(0, MaxRanges-len(b.Ranges))
}

// Cover answers which of some prefixes has another one in it.
type Cover struct {
	has  map[netip.Prefix]bool
	bits [2][]int // lengths that occur, the longest first; IPv4, IPv6
}

// NewCover takes masked prefixes.
func NewCover(lists ...[]netip.Prefix) *Cover {
	c := &Cover{has: map[netip.Prefix]bool{}}
	for _, l := range lists {
		for _, p := range l {
			c.has[p] = true
			if i := family(p.Addr()); !slices.Contains(c.bits[i], p.Bits()) {
				c.bits[i] = append(c.bits[i], p.Bits())
			}
		}
	}
	for i := range c.bits {
		slices.SortFunc(c.bits[i], func(a, b int) int { return b - a })
	}
	return c
}

func family(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// Of is the longest of the prefixes that has all of p, which may be p itself.
func (c *Cover) Of(p netip.Prefix) (netip.Prefix, bool) {
	for _, n := range c.bits[family(p.Addr())] {
		if n > p.Bits() {
			continue
		}
		if q := netip.PrefixFrom(p.Addr(), n).Masked(); c.has[q] {
			return q, true
		}
	}
	return netip.Prefix{}, false
}

// Has reports whether p is one of the prefixes.
func (c *Cover) Has(p netip.Prefix) bool { return c.has[p] }

// Follow is the book after routes were routed into the tunnel and nothing else. own
// are ranges that this node has itself, letGo those that its operator wants open
// where no peer has them.
func (b Book) Follow(routes, own, letGo []netip.Prefix, now time.Time) Book {
	live := NewCover(routes)
	whole := spans(routes)
	open := NewCover(own, letGo)
	next := Book{Exceptions: b.Exceptions, Ranges: make([]Range, 0, len(b.Ranges)+len(routes))}
	for _, p := range routes {
		next.Ranges = append(next.Ranges, Range{Prefix: p})
	}
	var closed []Range
	for _, r := range b.Ranges {
		if live.Has(r.Prefix) || whole.have(r.Prefix) {
			continue // peers have all of it: what they leave is closed then
		}
		if _, ok := open.Of(r.Prefix); ok {
			continue
		}
		if r.Closed.IsZero() {
			r.Closed = now.UTC().Truncate(time.Second)
		}
		closed = append(closed, r)
	}
	next.Ranges = append(next.Ranges, tidy(closed)...)
	slices.SortFunc(next.Ranges, func(a, b Range) int { return a.Prefix.Compare(b.Prefix) })
	next.Ranges = slices.CompactFunc(next.Ranges, func(a, b Range) bool { return a.Prefix == b.Prefix })
	return next
}

// tidy puts ranges together where there are very many: neighbours, and what lies in
// another one. Since when is the earliest of what was put together.
func tidy(l []Range) []Range {
	if len(l) <= mergeAbove {
		return l
	}
	prefixes := Book{Ranges: l}.Prefixes()
	var b netipx.IPSetBuilder
	for _, p := range prefixes {
		b.AddPrefix(p)
	}
	if set, err := b.IPSet(); err == nil {
		prefixes = nil
		for _, p := range set.Prefixes() {
			prefixes = append(prefixes, parts(p)...)
		}
	}
	c := NewCover(prefixes)
	out := map[netip.Prefix]Range{}
	for _, r := range l {
		wide, _ := c.Of(r.Prefix)
		if o, there := out[wide]; !there || r.Closed.Before(o.Closed) {
			out[wide] = Range{Prefix: wide, Closed: r.Closed}
		}
	}
	merged := make([]Range, 0, len(out))
	for _, r := range out {
		merged = append(merged, r)
	}
	return merged
}

// parts are the widest prefixes of p that a route may have.
func parts(p netip.Prefix) (out []netip.Prefix) {
	if p.Bits() >= protocol.LeastPrefixBits {
		return []netip.Prefix{p}
	}
	for i := range 1 << (protocol.LeastPrefixBits - p.Bits()) {
		b := p.Addr().AsSlice()
		b[0] |= byte(i << (8 - protocol.LeastPrefixBits))
		a, _ := netip.AddrFromSlice(b)
		out = append(out, netip.PrefixFrom(a, protocol.LeastPrefixBits))
	}
	return out
}

// spanList are the runs of addresses of some prefixes, sorted and apart.
type spanList []netipx.IPRange

func spans(l []netip.Prefix) spanList {
	var b netipx.IPSetBuilder
	for _, p := range l {
		b.AddPrefix(p)
	}
	set, err := b.IPSet()
	if err != nil {
		return nil
	}
	return set.Ranges()
}

// have reports whether all of p is there.
func (s spanList) have(p netip.Prefix) bool {
	r := netipx.RangeOfPrefix(p)
	i, found := slices.BinarySearchFunc(s, r.From(), func(x netipx.IPRange, a netip.Addr) int { return x.From().Compare(a) })
	if !found {
		i--
	}
	return i >= 0 && i < len(s) && s[i].Contains(r.From()) && s[i].Contains(r.To())
}

// ErrNotClosed says that nothing of a prefix is closed.
var ErrNotClosed = errors.New("nothing of it is held closed")

// Release takes the closed ranges that lie in p out; a part of one cannot be let go.
func (b Book) Release(p netip.Prefix) (Book, []Range, error) {
	var out []Range
	next := Book{Exceptions: b.Exceptions}
	var around []string
	live := false
	for _, r := range b.Ranges {
		in := p.Bits() <= r.Prefix.Bits() && p.Contains(r.Prefix.Addr())
		switch {
		case in && !r.Closed.IsZero():
			out = append(out, r)
			continue
		case !in && r.Prefix.Overlaps(p) && !r.Closed.IsZero():
			around = append(around, r.Prefix.String())
		case r.Prefix.Overlaps(p):
			live = true
		}
		next.Ranges = append(next.Ranges, r)
	}
	switch {
	case len(around) > 0:
		return b, nil, fmt.Errorf("%s is a part of %s, which is held closed as a whole; release that", p, strings.Join(around, ", "))
	case len(out) > 0:
		return next, out, nil
	case live:
		return b, nil, fmt.Errorf("%s: %w: a peer has it now; see 'causeway-agent netmap'", p, ErrNotClosed)
	}
	return b, nil, fmt.Errorf("%s: %w; see 'causeway-agent status'", p, ErrNotClosed)
}

// Close adds prefixes as closed, of which it is not known whether a peer has them.
func (b Book) Close(l []netip.Prefix, now time.Time) Book {
	have := NewCover(b.Prefixes())
	next := Book{Exceptions: b.Exceptions, Ranges: slices.Clone(b.Ranges)}
	for _, p := range l {
		if !have.Has(p) && len(next.Ranges) < MaxRanges {
			next.Ranges = append(next.Ranges, Range{Prefix: p, Closed: now.UTC().Truncate(time.Second)})
		}
	}
	slices.SortFunc(next.Ranges, func(a, b Range) int { return a.Prefix.Compare(b.Prefix) })
	next.Ranges = slices.CompactFunc(next.Ranges, func(a, b Range) bool { return a.Prefix == b.Prefix })
	return next
}

// Except are the addresses of used that stay outside the tunnel: those that did when
// they were used before, and those that nothing of the tunnel had so far. What the
// tunnel has already is meant to go there.
func (b Book) Except(used []Exception) []Exception {
	had := NewCover(b.Prefixes())
	var out []Exception
	for _, u := range used {
		_, inside := had.Of(netip.PrefixFrom(u.Addr, u.Addr.BitLen()))
		if !inside || slices.ContainsFunc(b.Exceptions, func(e Exception) bool { return e.Addr == u.Addr }) {
			out = append(out, u)
		}
	}
	return out
}

// Remember is the book with these exceptions beside those it has, without the ones
// that nothing of the tunnel has any more.
func (b Book) Remember(now []Exception) Book {
	has := NewCover(b.Prefixes())
	all := map[netip.Addr]Exception{}
	for _, e := range slices.Concat(b.Exceptions, now) {
		if _, ok := has.Of(netip.PrefixFrom(e.Addr, e.Addr.BitLen())); ok {
			all[e.Addr] = e
		}
	}
	next := Book{Ranges: b.Ranges}
	for _, e := range all {
		next.Exceptions = append(next.Exceptions, e)
	}
	slices.SortFunc(next.Exceptions, func(a, b Exception) int { return cmp.Or(a.Addr.Compare(b.Addr)) })
	next.Exceptions = next.Exceptions[:min(len(next.Exceptions), MaxExceptions)]
	return next
}

// Equal reports whether both say the same.
func (b Book) Equal(c Book) bool {
	return slices.Equal(b.Ranges, c.Ranges) && slices.Equal(b.Exceptions, c.Exceptions)
}
