package service

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	svc "causeway/netns/service"
	"causeway/protocol"
)

// fencedCause is why a fenced backend is not ready.
const fencedCause = "its site is fenced: the service is switched away from it, or its lease is over"

// fence is what is done for services of mode single-writer. It is never changed.
type fence struct {
	backends map[svc.Backend]bool    // at this node, to which nothing comes by the tunnel
	left     map[svc.Left]bool       // flows that are at an end
	targets  map[target]bool         // of backends
	said     []protocol.ServiceFence // to the hub
}

// leased reports whether a service may be used at a site for no longer than a lease.
func leased(s protocol.Service, site string) bool {
	return s.Lease > 0 && s.Mode == protocol.ServiceSingleWriter && s.Writer == site
}

// contact is what an agent knows of when a hub heard it.
type contact struct {
	ago   time.Duration // since it said what a hub has heard
	heard bool          // false: nothing yet since it started
	runs  time.Duration // since it started
	bare  bool          // no earlier run left a table
}

// overdue reports whether the lease of a service's writer is over at this node: no hub has heard it for that long. An agent that has just
// started does not know; what an earlier one left stands until it does, for settleTime, and where nothing stands it is over.
func overdue(s protocol.Service, site string, c contact) bool {
	switch {
	case !leased(s, site):
		return false
	case !c.heard:
		return c.bare || c.runs > settleTime
	}
	return c.ago > time.Duration(s.Lease)
}

// knowsLeases reports whether a hub has heard this node since it started, where that matters.
func (e *Engine) knowsLeases() bool {
	if !slices.ContainsFunc(e.placed, func(p *placed) bool { return leased(p.Service.Service, e.view.Site) }) {
		return true
	}
	_, heard := e.cfg.Contact()
	return heard
}

// fenceOf is the fence that services need at a node of a site.
func fenceOf(l []*placed, site string) *fence {
	f := &fence{map[svc.Backend]bool{}, map[svc.Left]bool{}, map[target]bool{}, nil}
	for _, p := range l {
		if p.Mode != protocol.ServiceSingleWriter || p.Headless {
			continue
		}
		told := slices.Contains(p.Fenced, site)
		if len(p.Fenced) > 0 {
			f.said = append(f.said, protocol.ServiceFence{Service: p.Name, Epoch: p.Epoch})
		}
		for _, x := range p.endpoints {
			if x.local && (told || p.stopped) {
				f.targets[target{p.Name, x.Addr}] = true
				for _, b := range p.backends(x) {
					f.backends[b] = true
				}
			}
			if p.MayServe(x.Site) && !p.stopped {
				continue
			}
			p.leave(f, x.Addr)
		}
	}
	return f
}

// leave has flows of a service to a backend be at an end.
func (p *placed) leave(f *fence, backend netip.Addr) {
	for _, l := range p.flowsTo(backend) {
		f.left[l] = true
	}
}

// flowsTo are the flows of a service to a backend.
func (p *placed) flowsTo(backend netip.Addr) (out []svc.Left) {
	if vip := p.families[familyIndex(backend)].vip; vip.IsValid() {
		for _, port := range p.Ports {
			out = append(out, svc.Left{VIP: vip, Proto: uint8(port.Proto()), Port: port.Port, Backend: backend})
		}
	}
	return out
}

// news is what f has left and before had not.
func (f *fence) news(before *fence) (out []svc.Left) {
	for l := range f.left {
		if !before.left[l] {
			out = append(out, l)
		}
	}
	return out
}

// leases looks which services' leases are over, and reports whether any is that was not, or the reverse.
func (e *Engine) leases(now time.Time) (changed bool) {
	for _, p := range e.placed {
		if p.Lease == 0 && !p.stopped {
			continue
		}
		c := contact{runs: now.Sub(e.begun), bare: e.bare}
		c.ago, c.heard = e.cfg.Contact()
		if over := overdue(p.Service.Service, e.view.Site, c); over != p.stopped {
			p.stopped, changed = over, true
			e.cfg.Log.Warn().Str("service", p.Name).Bool("fenced", over).Msg("whether a service stops here, for no hub has heard this node for longer than its lease")
		}
	}
	return changed
}

// setFence has the host do what f says, before slots change: what a table that is written anew lets through has to be known by then.
func (e *Engine) setFence(f *fence) error {
	if maps.Equal(f.backends, e.fence.Load().backends) && maps.Equal(f.left, e.fence.Load().left) && e.cfg.Table.Fenced() {
		return nil
	}
	return e.cfg.Table.Fence(slices.Collect(maps.Keys(f.backends)), slices.Collect(maps.Keys(f.left)))
}

// fenced ends what is open to who may not serve, after slots were changed, and says so once the kernel does all of it: an agent that says
// so earlier has two sites write.
func (e *Engine) fenced(ctx context.Context, f *fence) {
	before := e.fence.Load()
	if news := f.news(before); len(news) > 0 {
		n, err := e.cfg.Table.End(ctx, news)
		e.cfg.Log.Info().Int("flows", n).Err(err).Msg("connections to backends that may not serve any more end")
		if err != nil {
			f.left, f.said, e.fresh = before.left, nil, true // again with the next decision
		}
	}
	if f.said != nil && !e.cfg.Table.Fenced() {
		f.said, e.fresh = nil, true // the host is not ready for it yet
	}
	e.fence.Store(f)
	if !slices.Equal(before.said, f.said) {
		e.cfg.Told()
	}
}

// Fences are services that this node keeps from serving at its site.
func (e *Engine) Fences() []protocol.ServiceFence {
	l := e.fence.Load().said
	return l[:min(len(l), protocol.MaxServiceFences)]
}

// withFence is what was found of backends here, where none that is fenced is ready.
func (f *fence) withFence(l map[target]readiness) map[target]readiness {
	for t := range f.targets {
		if r, asked := l[t]; asked {
			r.ready, r.cause = protocol.NotReady, fencedCause
			l[t] = r
		}
	}
	return l
}
