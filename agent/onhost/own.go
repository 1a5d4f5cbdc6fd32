package onhost

import (
	"fmt"
	"net/netip"
	"slices"

	"causeway/agent/held"
	"causeway/protocol"
)

// Stay is something of the host's own that the last apply left outside the tunnel.
type Stay struct {
	protocol.Own
	In    netip.Prefix // the range of the tunnel's that has it
	Peer  string       // whose that is; empty: closed, no peer has it
	Apart bool         // an address that the host relies on
}

// String is for people.
func (s Stay) String() string {
	if s.Peer == "" {
		return fmt.Sprintf("%s in %s, which is closed", s.Own, s.In)
	}
	return fmt.Sprintf("%s in %s of %s", s.Own, s.In, s.Peer)
}

// Stays lists what stays the host's own inside ranges of the tunnel.
func (f Facts) Stays() (out []Stay) {
	plan, apart, peers, book := f.Plan, f.Apart, f.Result.Peers, f.Book
	if len(plan.Except) == 0 {
		return nil
	}
	ranges, owner := held.NewCover(plan.Routes, book.Prefixes()), map[netip.Prefix]string{}
	for _, p := range peers {
		for _, r := range p.Routes {
			owner[r] = p.Name
		}
	}
	for _, x := range plan.Except {
		in, ok := ranges.Of(x.Prefix)
		if !ok {
			continue
		}
		s := Stay{Own: protocol.Own{Prefix: x.Prefix, Link: x.Link, Via: x.Via}, In: in, Peer: owner[in]}
		if i := slices.IndexFunc(apart, func(k held.Exception) bool { return x.Link == "" && x.Prefix.IsSingleIP() && k.Addr == x.Prefix.Addr() }); i >= 0 {
			s.Apart, s.Needs = true, []string{apart[i].What}
		}
		out = append(out, s)
	}
	return out
}

// StayOf is what of the host's own has an address that a range of the tunnel's has as well, the
// longest.
func (f Facts) StayOf(x netip.Addr) *Stay {
	var best *Stay
	for _, s := range f.Stays() {
		if s.Prefix.Contains(x) && (best == nil || s.Prefix.Bits() > best.Prefix.Bits()) {
			best = &s
		}
	}
	if best == nil {
		return nil
	}
	if q, ok := held.NewCover(f.Plan.Routes).Of(netip.PrefixFrom(x, x.BitLen())); ok && q.Bits() > best.Prefix.Bits() {
		return nil // a peer has a longer one
	}
	return best
}

// Takes is what the host would lose if accept: named r exactly.
func (f Facts) Takes(r netip.Prefix) []protocol.Own {
	if f.Owned == nil || !r.IsValid() {
		return nil
	}
	return f.Owned.Takes(r)
}

// Taken names what the host has lost to ranges that accept: names exactly.
func (k *Keeper) Taken() (out []string) {
	f := k.Facts()
	own, routes := f.Owned, f.Result.Routes
	if own == nil {
		return nil
	}
	for _, n := range k.live.Now().Named {
		if l := own.Takes(n); len(l) > 0 && slices.Contains(routes, n) {
			out = append(out, protocol.OwnList(l))
		}
	}
	return out
}

// ApartAdvice says how an address that stays outside the tunnel would come in.
func (f Facts) ApartAdvice(s Stay) string {
	own := f.Owned
	if own != nil && own.Way(s.Prefix.Addr()) {
		return "no name in accept: takes it in"
	}
	return fmt.Sprintf("if it is the other site's: %s exactly in accept:, which takes %s from this host", s.In, protocol.OwnList(f.Takes(s.In)))
}
