package service

import (
	"net/netip"
	"reflect"
	"slices"
	"time"

	"causeway/agent/items"
	svc "causeway/netns/service"
	"causeway/protocol"
)

// View is what is in force on the node that services depend on. It is never changed.
type View struct {
	Services []items.Service
	Site     string
	Own      []netip.Addr   // the node's overlay addresses
	Local    []netip.Prefix // pods and LANs at this node
	Peers    []protocol.Peer
	Outside  Outside
}

// endpoint is an address that serves, as this node sees it.
type endpoint struct {
	protocol.ServiceEndpoint
	node  protocol.NodeNumber // behind which it is; 0: none that is known, or this one
	local bool
	state Endpoint
	used  time.Time // since when it takes new connections; zero: it does not
	ramp  int
	turn  protocol.SwitchWhy // for which it began to take them
}

// Endpoint is how this node sees an address that serves.
type Endpoint struct {
	Reach     string             // of its node; local: it is here
	Readiness protocol.Readiness // as its node told last
	Use       bool               // it takes new connections
	Why       string             // not
	Out       bool               // what it did with connections is why
}

// placed are the services of a view with where their endpoints are.
type placed struct {
	items.Service
	since     time.Time // when this agent first saw it
	stopped   bool      // its lease is over here
	endpoints []*endpoint
	told      []string           // sites that were logged last
	known     bool               // it was decided on
	news      protocol.SwitchWhy // that is declared otherwise since then
	families  [2]familyOf        // IPv4, IPv6
	exposed   []protocol.ServiceExposedView
}

// familyOf is one family of a service: its slots as they were decided last.
type familyOf struct {
	vip   netip.Addr
	of    []*endpoint
	seen  []protocol.Candidate // that the slots were made of
	slots []int
}

// way finds behind which node an address is: by the longest prefix, as packets go.
type way struct {
	by   map[netip.Prefix]protocol.NodeNumber
	bits [2][]int // lengths that there are, the longest first
}

func newWay(v View) *way {
	w := &way{by: map[netip.Prefix]protocol.NodeNumber{}}
	seen := [2]map[int]bool{{}, {}}
	add := func(p netip.Prefix, n protocol.NodeNumber) {
		f := familyIndex(p.Addr())
		if _, there := w.by[p]; !there {
			w.by[p] = n
		}
		if !seen[f][p.Bits()] {
			seen[f][p.Bits()] = true
			w.bits[f] = append(w.bits[f], p.Bits())
		}
	}
	for _, a := range v.Own {
		add(netip.PrefixFrom(a, a.BitLen()), 0)
	}
	for _, p := range v.Local {
		add(p, 0)
	}
	for _, x := range v.Peers {
		for _, p := range x.Prefixes() {
			add(p, x.Number())
		}
	}
	for f := range w.bits {
		slices.SortFunc(w.bits[f], func(a, b int) int { return b - a })
	}
	return w
}

func familyIndex(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// find says behind which node an address is, or that it is here.
func (w *way) find(a netip.Addr) (n protocol.NodeNumber, local, found bool) {
	for _, bits := range w.bits[familyIndex(a)] {
		p, err := a.Prefix(bits)
		if err != nil {
			continue
		}
		if n, found = w.by[p]; found {
			return n, n == 0, true
		}
	}
	return 0, false, false
}

// place finds where the endpoints of a view's services are. What is known of those that stay is kept from before.
func place(now time.Time, v View, before []*placed) (out []*placed) {
	w := newWay(v)
	had := map[string]*placed{}
	for _, p := range before {
		had[p.Name] = p
	}
	for _, d := range v.Services {
		p := &placed{Service: d, since: now}
		p.families[0].vip, p.families[1].vip = d.VIP4, d.VIP6
		old := had[d.Name]
		if old != nil {
			same := reflect.DeepEqual(old.Service, d)
			p.since, p.told, p.stopped, p.known, p.news = old.since, old.told, old.stopped, old.known, newsOf(old, d.ServiceItem, same)
			if same {
				for i := range p.families {
					p.families[i].seen, p.families[i].slots = old.families[i].seen, old.families[i].slots
				}
			}
		}
		for _, e := range d.Endpoints {
			x := &endpoint{ServiceEndpoint: e}
			x.node, x.local, _ = w.find(e.Addr)
			if old != nil {
				if i := slices.IndexFunc(old.endpoints, func(o *endpoint) bool { return o.Addr == e.Addr }); i >= 0 {
					o := old.endpoints[i]
					x.used, x.ramp, x.state, x.turn = o.used, o.ramp, o.state, o.turn
				}
			}
			p.endpoints = append(p.endpoints, x)
			f := &p.families[familyIndex(e.Addr)]
			f.of = append(f.of, x)
		}
		out = append(out, p)
	}
	return out
}

// sight is what is known of nodes and backends at the moment.
type sight struct {
	now    time.Time
	site   string
	reach  func(protocol.NodeNumber) (s ReachState, never bool) // never: it has not answered since this agent runs
	path   func(protocol.NodeNumber) bool                       // the tunnel has a way there
	ready  func(service string, e *endpoint) protocol.Readiness
	out    func(svc.Backend) (why string) // it is to take no new connections for a while; may be nil
	frozen bool                           // this node doubts itself: nothing is dead, and who would have nobody keeps what he has
}

// firstTime is how long what comes to be usable is no news, after a service was declared or the agent began.
const firstTime = 5 * time.Second

// judge says which endpoints of a service take new connections. Where none does that is known to be reached and ready, those are taken
// of which nobody says the contrary.
func (p *placed) judge(s sight) {
	some := false
	for _, e := range p.endpoints {
		e.state = Endpoint{Readiness: s.ready(p.Name, e)}
		if e.state.Use, e.state.Why = e.usable(s); p.stopped {
			e.state.Use, e.state.Why = false, "no hub has heard this node for longer than the service's lease"
		}
		some = some || e.state.Use
	}
	p.eject(s)
	for _, e := range p.endpoints {
		if !some && !p.stopped && e.perhaps(s) {
			e.state.Use = true
		}
		switch {
		case !e.state.Use:
			e.used = time.Time{}
		case e.used.IsZero() && (p.SlowStart == 0 || s.now.Sub(p.since) < firstTime):
			e.used, e.ramp = s.now.Add(-time.Duration(p.SlowStart)), 100
		case e.used.IsZero():
			e.used, e.ramp = s.now, 1
		default:
			e.ramp = rampOf(s.now.Sub(e.used), time.Duration(p.SlowStart))
		}
	}
}

// rampStep is the grain of a share that grows, in percent.
const rampStep = 4

func rampOf(since, whole time.Duration) int {
	if since >= whole {
		return 100
	}
	return max(1, int(since*100/whole)/rampStep*rampStep)
}

func (e *endpoint) usable(s sight) (bool, string) {
	switch {
	case e.local:
		e.state.Reach = protocol.ReachLocal
	case e.node == 0:
		e.state.Reach = "none"
		return false, "no node that this one may talk to carries it"
	default:
		state, _ := s.reach(e.node)
		if e.state.Reach = state.String(); state != Up {
			return false, "its node is " + state.String()
		}
	}
	if e.state.Readiness != protocol.Ready {
		return false, "its node says: " + e.state.Readiness.String()
	}
	return true, ""
}

// perhaps reports whether nobody says that it is not usable.
func (e *endpoint) perhaps(s sight) bool {
	if e.state.Readiness == protocol.NotReady || !e.local && e.node == 0 {
		return false
	}
	if e.local {
		return true
	}
	state, never := s.reach(e.node)
	return state == Up || never && s.path(e.node)
}

// slotsOf decides the slots of one family. changed: they are others than before.
func (p *placed) slotsOf(f *familyOf, s sight) (changed bool) {
	l := make([]protocol.Candidate, len(f.of))
	for i, e := range f.of {
		l[i] = protocol.Candidate{Addr: e.Addr, Site: e.Site, Use: e.state.Use, Ramp: e.ramp}
	}
	if f.seen != nil && slices.Equal(l, f.seen) {
		return false
	}
	slots := p.Distribute(s.site, l)
	if slots == nil && f.slots != nil && s.frozen && !p.stopped && p.To == "" {
		return false
	}
	changed = f.seen == nil || !slices.Equal(slots, f.slots)
	f.seen, f.slots = l, slots
	return changed
}

// table is what the host's table has of all services.
func table(l []*placed) (out []svc.Service) {
	for _, p := range l {
		for i := range p.families {
			f := &p.families[i]
			if !f.vip.IsValid() {
				continue
			}
			for _, port := range p.Ports {
				s := svc.Service{VIP: f.vip, Proto: uint8(port.Proto()), Port: port.Port, Sticky: p.Sticky == protocol.StickyClient, Expose: p.met(port, f.vip)}
				for _, c := range f.slots {
					s.Slots = append(s.Slots, netip.AddrPortFrom(f.of[c].Addr, port.Target))
				}
				out = append(out, s)
			}
		}
	}
	return out
}

// backends are an endpoint's, one for each port of its service.
func (p *placed) backends(e *endpoint) (out []svc.Backend) {
	for _, port := range p.Ports {
		out = append(out, svc.Backend{Proto: uint8(port.Proto()), Addr: netip.AddrPortFrom(e.Addr, port.Target)})
	}
	return out
}

// doubtsItself reports whether a node sees less than half of the sites of its services: then it rather has lost the others than they
// themselves.
func doubtsItself(own string, l []*placed, reach func(protocol.NodeNumber) (ReachState, bool)) bool {
	sites := map[string]bool{own: true} // whether any node of it is there
	for _, p := range l {
		for _, e := range p.endpoints {
			if e.local || e.node == 0 {
				continue
			}
			s, _ := reach(e.node)
			sites[e.Site] = sites[e.Site] || e.Site == own || s != Suspect && s != Dead
		}
	}
	there := 0
	for _, is := range sites {
		if is {
			there++
		}
	}
	return 2*there < len(sites)
}

// sites are those that take new connections, by name.
func (p *placed) sites() (out []string) {
	for i := range p.families {
		f := &p.families[i]
		for _, c := range f.slots {
			if site := f.of[c].Site; !slices.Contains(out, site) {
				out = append(out, site)
			}
		}
	}
	slices.Sort(out)
	return out
}
