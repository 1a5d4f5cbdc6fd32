package service

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	svc "causeway/netns/service"
	"causeway/protocol"
)

// maxKeptSwitches is how many switches wait until a hub has them; beyond it the oldest go, and are counted.
const maxKeptSwitches = 256

// Switches keeps what an engine switched until a hub has it. Its methods may be called concurrently.
type Switches struct {
	changed chan struct{}

	mu      sync.Mutex
	waiting []protocol.ServiceSwitch // the oldest first
	left    uint64
	last    uint64            // number
	counts  map[string]uint64 // by service, since the agent runs
}

func newSwitches() *Switches {
	return &Switches{changed: make(chan struct{}, 1), counts: map[string]uint64{}}
}

// Changed gets something when there may be a report to send.
func (s *Switches) Changed() <-chan struct{} { return s.changed }

// Next is the next report to send; false: nothing waits. Whoever sends it sets its boot id.
func (s *Switches) Next() (r protocol.SwitchReport, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r = protocol.SwitchReport{Version: protocol.Version, LeftOut: s.left, Switches: slices.Clone(s.waiting[:min(len(s.waiting), protocol.MaxSwitches)])}
	return r, len(r.Switches) > 0
}

// Sent says that a hub has a report.
func (s *Switches) Sent(r protocol.SwitchReport) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left -= min(s.left, r.LeftOut)
	if n := len(r.Switches); n > 0 {
		last := r.Switches[n-1].Number
		s.waiting = slices.DeleteFunc(s.waiting, func(x protocol.ServiceSwitch) bool { return x.Number <= last })
	}
}

func (s *Switches) add(l ...protocol.ServiceSwitch) {
	if len(l) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range l {
		s.last++
		x.Number = s.last
		s.counts[x.Service]++
		s.waiting = append(s.waiting, x)
	}
	if over := len(s.waiting) - maxKeptSwitches; over > 0 {
		s.left += uint64(over)
		s.waiting = slices.Clone(s.waiting[over:])
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// count is how often each of these services was switched. Others are forgotten.
func (s *Switches) count(services []protocol.ServiceView) map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]uint64, len(services))
	for _, v := range services {
		out[v.Name] = s.counts[v.Name]
	}
	if len(s.counts) > 2*len(out)+maxKeptSwitches {
		s.counts = out
		out = make(map[string]uint64, len(s.counts))
		for k, n := range s.counts {
			out[k] = n
		}
	}
	return out
}

// answered is when an endpoint's node answered last; zero: it is here, or never did.
func (e *Engine) answered(x *endpoint) time.Time {
	if x == nil || x.local || x.node == 0 {
		return time.Time{}
	}
	_, _, last := e.reach.State(x.node)
	return last
}

// newsOf is what is declared otherwise of a service than when it was decided on last.
func newsOf(old *placed, now protocol.ServiceItem, same bool) protocol.SwitchWhy {
	if same {
		return old.news
	}
	was := old.ServiceItem
	was.Endpoints, now.Endpoints = nil, nil
	if old.news == protocol.SwitchDeclared || !reflect.DeepEqual(was, now) {
		return protocol.SwitchDeclared
	}
	return protocol.SwitchEndpoints
}

// turned notes why endpoints began to take new connections: which sites take them follows later, when their share has grown.
func (p *placed) turned(was []Endpoint) {
	for i, x := range p.endpoints {
		if !x.state.Use || was[i].Use {
			continue
		}
		switch {
		case was[i].Reach == "": // it is new
			x.turn = protocol.SwitchEndpoints
		case was[i].Reach != x.state.Reach:
			x.turn = protocol.SwitchBack
		default:
			x.turn = protocol.SwitchReady
		}
	}
}

// states are those of the endpoints, in their order.
func (p *placed) states() []Endpoint {
	out := make([]Endpoint, len(p.endpoints))
	for i, x := range p.endpoints {
		out[i] = x.state
	}
	return out
}

// reason is why the sites of a service are others than before (p.told): of all that can be said what weighs most. x is the backend
// that it is about; nil: none is.
func (p *placed) reason(sites []string, answered func(*endpoint) time.Time) (why protocol.SwitchWhy, site string, x *endpoint) {
	at := func(site string) (out []*endpoint) {
		for _, x := range p.endpoints {
			if x.Site == site {
				out = append(out, x)
			}
		}
		// Who answered last is who kept the site going.
		slices.SortStableFunc(out, func(a, b *endpoint) int { return answered(b).Compare(answered(a)) })
		return out
	}
	gone, came := without(p.told, sites), without(sites, p.told)
	for _, g := range gone {
		for _, x := range at(g) {
			if x.state.Use {
				continue
			}
			switch {
			case x.state.Reach == Dead.String():
				return protocol.SwitchDead, g, x
			case x.state.Readiness == protocol.NotReady && (x.local || x.state.Reach == Up.String()):
				return protocol.SwitchNotReady, g, x
			case !x.local && x.node != 0 && x.state.Reach != Up.String():
				return protocol.SwitchSuspect, g, x
			case x.state.Out:
				return protocol.SwitchEjected, g, x
			}
		}
	}
	if len(gone) > 0 && p.stopped {
		return protocol.SwitchLease, gone[0], nil
	}
	about := append(slices.Clone(gone), came...)
	if len(about) == 0 {
		return protocol.SwitchShare, "", nil
	}
	if p.news != "" {
		return p.news, about[0], nil
	}
	for _, c := range came {
		for _, x := range at(c) {
			if x.state.Use && x.turn != "" {
				return x.turn, c, x
			}
		}
	}
	return protocol.SwitchShare, about[0], nil
}

// without are those of a that are not in b.
func without(a, b []string) (out []string) {
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, x)
		}
	}
	return out
}

// noteMove notes that the sites of a service become others: what is told when the table is switched.
func (e *Engine) noteMove(p *placed, sites []string) {
	if !p.known { // that is its beginning
		return
	}
	why, site, x := p.reason(sites, e.answered)
	m := protocol.ServiceSwitch{Service: p.Name, From: fewSites(p.told), To: fewSites(sites), Site: site, Why: why, By: e.by(why, x), Answered: e.answered(x).UTC(), Doubts: e.frozen}
	if x != nil {
		m.Addr = x.Addr
	}
	e.moves = append(e.moves, m)
	if over := len(e.moves) - maxKeptSwitches; over > 0 { // of a table that cannot be switched
		e.moves = slices.Clone(e.moves[over:])
	}
}

// by is who decided.
func (e *Engine) by(why protocol.SwitchWhy, x *endpoint) string {
	switch why {
	case protocol.SwitchNotReady, protocol.SwitchReady:
		if name := e.names[x.node]; !x.local && name != "" {
			return "node " + name
		}
	case protocol.SwitchDeclared:
		return protocol.SwitchByOperator
	case protocol.SwitchEndpoints:
		return protocol.SwitchByHub
	}
	return protocol.SwitchByClient
}

// fewSites are as many as a switch names.
func fewSites(l []string) []string {
	return append([]string{}, l[:min(len(l), protocol.MaxSwitchSites)]...)
}

// doneMoves are those that were noted: the table was switched at a time.
func (e *Engine) doneMoves(done time.Time) []protocol.ServiceSwitch {
	moves := e.moves
	e.moves = nil
	for i := range moves {
		m := &moves[i]
		m.Time = done.UTC()
		if !m.Answered.IsZero() {
			m.Gap = gap(m.Answered, done)
		}
	}
	return moves
}

// released says of moves when flows were free to go elsewhere, and how many, all of them together.
func released(moves []protocol.ServiceSwitch, at time.Time, flows int) []protocol.ServiceSwitch {
	for i := range moves {
		if m := &moves[i]; !m.Answered.IsZero() {
			m.Released, m.Flows = gap(m.Answered, at), flows
		}
	}
	return moves
}

// gap is at least a millisecond, as 0 says that there is none.
func gap(from, to time.Time) protocol.Duration {
	return protocol.Duration(max(time.Millisecond, to.Sub(from).Round(time.Millisecond)))
}

// deaths are what is told of services whose backends died now, the sites of each once.
func (e *Engine) deaths(died []svc.Backend, done time.Time) (out []protocol.ServiceSwitch) {
	addrs := map[netip.Addr]bool{}
	for _, b := range died {
		addrs[b.Addr.Addr()] = true
	}
	for _, p := range e.placed {
		sites := map[string]*endpoint{}
		for _, x := range p.endpoints {
			if y := sites[x.Site]; addrs[x.Addr] && (y == nil || e.answered(y).Before(e.answered(x))) {
				sites[x.Site] = x
			}
		}
		for site, x := range sites {
			m := protocol.ServiceSwitch{Service: p.Name, Time: done.UTC(), From: fewSites(p.told), To: fewSites(p.told), Site: site, Why: protocol.SwitchDead, By: protocol.SwitchByClient, Addr: x.Addr, Answered: e.answered(x).UTC()}
			if !m.Answered.IsZero() {
				m.Gap = gap(m.Answered, done)
			}
			out = append(out, m)
			if len(out) == maxKeptSwitches {
				return out
			}
		}
	}
	slices.SortFunc(out, func(a, b protocol.ServiceSwitch) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Site, b.Site))
	})
	return out
}
