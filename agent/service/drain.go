package service

import (
	"slices"
	"time"

	"causeway/protocol"
)

// maxDrains bounds the backends that are drained at one time; what is open to others ends by itself.
const maxDrains = 1 << 13

// drains are backends that a declaration took from their service (they are excluded, or in it no more), and when what is open to them
// ends: after the service's drain. It has no clock.
type drains map[target]*drain

type drain struct {
	at    time.Time
	ended bool // and is not ended again
}

// set takes over what is declared by now in place of what was before.
func (d drains) set(now time.Time, before, placed []*placed) {
	had, has := byName(before), byName(placed)
	for t, x := range d {
		if p := has[t.service]; p == nil || !p.drained(t) || x.ended && p.find(t) == nil {
			delete(d, t)
		}
	}
	for _, p := range placed {
		begin := func(x *endpoint) {
			if t := (target{p.Name, x.Addr}); p.drained(t) && d[t] == nil && len(d) < maxDrains {
				d[t] = &drain{at: now.Add(time.Duration(p.Drain))}
			}
		}
		for _, x := range p.endpoints {
			begin(x)
		}
		if old := had[p.Name]; old != nil {
			for _, x := range old.endpoints {
				begin(x)
			}
		}
	}
}

func byName(l []*placed) map[string]*placed {
	m := make(map[string]*placed, len(l))
	for _, p := range l {
		m[p.Name] = p
	}
	return m
}

func (p *placed) find(t target) *endpoint {
	if i := slices.IndexFunc(p.endpoints, func(x *endpoint) bool { return x.Addr == t.addr }); i >= 0 {
		return p.endpoints[i]
	}
	return nil
}

// drained reports whether a backend of this service, by now or before, was taken from it. Flows of a single-writer end by its switch.
func (p *placed) drained(t target) bool {
	if p.Headless || p.Mode == protocol.ServiceSingleWriter {
		return false
	}
	x := p.find(t)
	return x == nil || slices.Contains(p.Exclude, x.Site)
}

// next is when the next one ends; zero: none does.
func (d drains) next() (at time.Time) {
	for _, x := range d {
		if !x.ended && (at.IsZero() || x.at.Before(at)) {
			at = x.at
		}
	}
	return at
}

// due adds to a fence the flows that end by now.
func (d drains) due(now time.Time, l []*placed, f *fence) {
	if at := d.next(); at.IsZero() || now.Before(at) {
		return
	}
	has := byName(l)
	for t, x := range d {
		if p := has[t.service]; p != nil && !x.ended && !now.Before(x.at) {
			p.leave(f, t.addr)
		}
	}
}

// done notes those that ended by now, as far as the host was told.
func (d drains) done(now time.Time, l []*placed, f *fence) (some bool) {
	if at := d.next(); at.IsZero() || now.Before(at) {
		return false
	}
	has := byName(l)
	for t, x := range d {
		p := has[t.service]
		if p == nil || x.ended || now.Before(x.at) {
			continue
		}
		told := true
		for _, k := range p.flowsTo(t.addr) {
			told = told && f.left[k]
		}
		x.ended = told
		some = some || told
	}
	return some
}
