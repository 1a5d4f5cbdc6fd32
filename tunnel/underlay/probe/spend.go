package probe

import (
	"net/netip"
	"time"

	"causeway/protocol"
)

// Questions to addresses that have proven nothing are what a hub can make an agent send, to
// anybody: it names the candidates, of peers that it may have made up. Each peer has a
// budget of them, each host that they go to has one, whoever names it, and the agent has one. An
// address that answers costs nothing. Any port may be a candidate: WireGuard on 443 is not rare,
// and a host gets no more for having many.
var (
	peerAllowance  = allowance{perSecond: 1, burst: 40}
	hostAllowance  = allowance{perSecond: 1, burst: 32}
	agentAllowance = allowance{perSecond: 300, burst: 400}
)

const (
	// maxSpent bounds the hosts that are remembered; those beyond share one budget.
	maxSpent = 4096
	// spentRetry is when a question that found no budget is tried again.
	spentRetry = time.Second
)

type allowance struct{ perSecond, burst float64 }

// meter is what was used of an allowance. The zero value has used nothing.
type meter struct {
	used float64
	at   time.Time
}

func (m *meter) unused(now time.Time, a allowance) bool {
	if d := now.Sub(m.at); d > 0 {
		m.used, m.at = max(0, m.used-d.Seconds()*a.perSecond), now
	}
	return m.used == 0
}

func (m *meter) left(now time.Time, a allowance) bool {
	m.unused(now, a)
	return m.used+1 <= a.burst
}

// spend is what an agent has asked of addresses that have proven nothing.
type spend struct {
	all   meter
	hosts map[netip.Addr]*meter
	rest  meter
}

// hostOf is what counts as one host: an IPv4 address, an IPv6 /64.
func hostOf(a netip.Addr) netip.Addr {
	if a.Is6() {
		p, _ := a.WithZone("").Prefix(64) // fails for no IPv6 address
		return p.Addr()
	}
	return a
}

// take reports whether p may be asked at addr, and counts it. Of the agent's own budget a
// quarter is for those who were not asked yet.
func (s *spend) take(now time.Time, p *meter, addr netip.Addr, first bool) bool {
	h, all := s.host(now, hostOf(addr)), agentAllowance
	if !first {
		all.burst *= 0.75
	}
	if !p.left(now, peerAllowance) || !h.left(now, hostAllowance) || !s.all.left(now, all) {
		return false
	}
	p.used, h.used, s.all.used = p.used+1, h.used+1, s.all.used+1
	return true
}

func (s *spend) host(now time.Time, a netip.Addr) *meter {
	if m := s.hosts[a]; m != nil {
		return m
	}
	if len(s.hosts) >= maxSpent {
		for k, m := range s.hosts {
			if m.unused(now, hostAllowance) {
				delete(s.hosts, k)
			}
		}
		if len(s.hosts) >= maxSpent {
			return &s.rest
		}
	}
	if s.hosts == nil {
		s.hosts = map[netip.Addr]*meter{}
	}
	m := &meter{at: now}
	s.hosts[a] = m
	return m
}

// proven gives a host its budget back, and the peer that is there.
func (s *spend) proven(p *meter, addr netip.Addr) {
	*p = meter{}
	delete(s.hosts, hostOf(addr))
}

// fit reports whether a may be a candidate. What is no host's address does no harm, but is
// none. This host's own addresses are for the caller to leave out: tests have nodes there.
func fit(a netip.AddrPort) bool {
	return a.Port() != 0 && (!protocol.Reserved(a.Addr()) || a.Addr().IsLoopback())
}
