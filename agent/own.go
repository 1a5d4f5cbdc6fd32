package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"causeway/agent/held"
	"causeway/protocol"
)

// stay is something of the host's own that the last apply left outside the tunnel.
type stay struct {
	protocol.Own
	in    netip.Prefix // the range of the tunnel's that has it
	peer  string       // whose that is; empty: closed, no peer has it
	apart bool         // an address that the host relies on
}

// String is for people.
func (s stay) String() string {
	if s.peer == "" {
		return fmt.Sprintf("%s in %s, which is closed", s.Own, s.in)
	}
	return fmt.Sprintf("%s in %s of %s", s.Own, s.in, s.peer)
}

// stays lists what stays the host's own inside ranges of the tunnel, as the last apply left it.
func (a *Agent) stays() (out []stay) {
	a.mu.Lock()
	plan, apart, peers, book := a.plan, a.apart, a.result.Peers, a.book
	a.mu.Unlock()
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
		s := stay{Own: protocol.Own{Prefix: x.Prefix, Link: x.Link, Via: x.Via}, in: in, peer: owner[in]}
		if i := slices.IndexFunc(apart, func(k held.Exception) bool { return x.Link == "" && x.Prefix.IsSingleIP() && k.Addr == x.Prefix.Addr() }); i >= 0 {
			s.apart, s.Needs = true, []string{apart[i].What}
		}
		out = append(out, s)
	}
	return out
}

// stayOf is what of the host's own has an address that a range of the tunnel's has as well, the
// longest.
func (a *Agent) stayOf(x netip.Addr) *stay {
	var best *stay
	for _, s := range a.stays() {
		if s.Prefix.Contains(x) && (best == nil || s.Prefix.Bits() > best.Prefix.Bits()) {
			best = &s
		}
	}
	if best == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if q, ok := held.NewCover(a.plan.Routes).Of(netip.PrefixFrom(x, x.BitLen())); ok && q.Bits() > best.Prefix.Bits() {
		return nil // a peer has a longer one
	}
	return best
}

// takes is what the host would lose if accept: named r exactly.
func (a *Agent) takes(r netip.Prefix) []protocol.Own {
	a.mu.Lock()
	own := a.owned
	a.mu.Unlock()
	if own == nil || !r.IsValid() {
		return nil
	}
	return own.Takes(r)
}

// taken names what the host has lost to ranges that accept: names exactly.
func (a *Agent) taken() (out []string) {
	a.mu.Lock()
	own, routes := a.owned, a.result.Routes
	a.mu.Unlock()
	if own == nil {
		return nil
	}
	for _, n := range a.live.Now().Named {
		if l := own.Takes(n); len(l) > 0 && slices.Contains(routes, n) {
			out = append(out, protocol.OwnList(l))
		}
	}
	return out
}

// apartAdvice says how an address that stays outside the tunnel would come in.
func (a *Agent) apartAdvice(s stay) string {
	a.mu.Lock()
	own := a.owned
	a.mu.Unlock()
	if own != nil && own.Way(s.Prefix.Addr()) {
		return "no name in accept: takes it in"
	}
	return fmt.Sprintf("if it is the other site's: %s exactly in accept:, which takes %s from this host", s.in, protocol.OwnList(a.takes(s.in)))
}
