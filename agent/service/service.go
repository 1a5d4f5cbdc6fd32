// Package service has a node's clients reach services where they are served: it asks backends beside the node whether they are ready
// (health.go), asks other nodes' agents inside the tunnel, so that an answer has come the way that data takes (words.go, reach.go),
// decides who takes connections (decide.go; protocol.Distribute has the shares), and switches the host's table (netns/service).
//
// No hub is in the way of a switch: who is declared and where comes by the netmap, all else from agent to agent.
package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	svc "causeway/netns/service"
	"causeway/protocol"
)

// Table is the host's table.
type Table interface {
	// Switch has the table lead services where these say, and reset flows to dead backends.
	Switch(services []svc.Service, dead []svc.Backend) error
	// Note looks for what Release may have to free soon, and takes its time.
	Note(context.Context) error
	// Fence keeps what the tunnel brings from backends here, and ends flows that left.
	Fence([]svc.Backend, []svc.Left) error
	// End forgets flows that left.
	End(context.Context, []svc.Left) (int, error)
	// Stands reports whether an earlier agent left its table.
	Stands() bool
	// Fenced reports whether the kernel does what Fence said.
	Fenced() bool
	// Release frees what is only begun to these backends, and UDP, so that it goes elsewhere.
	Release(context.Context, []svc.Backend) (int, error)
	// Prod has clients that wait for dead backends find that they are reset.
	Prod(context.Context, []svc.Backend) (int, error)
	// Lacks says what does not work on this kernel.
	Lacks() []string
	// Signs are what backends did with connections.
	Signs(context.Context) (map[svc.Sign]svc.Signs, error)
	// Flows counts open flows.
	Flows(context.Context) (map[svc.Of]svc.Count, error)
}

// Config is what an Engine is made of.
type Config struct {
	View  func() *View // what is in force; the same pointer while it is the same
	Table Table
	Heard func() map[protocol.NodeNumber]uint64 // bytes that came from each node
	Path  func(protocol.NodeNumber) bool        // the tunnel has a way to a node
	News  <-chan struct{}                       // gets something when View may be another
	Told  func()                                // readiness or fences changed, which the hub is to hear
	// Contact is how long ago this agent said something that a hub has heard since; false: it has not happened yet.
	Contact func() (time.Duration, bool)
	Tracked func() (n, most int, ok bool) // Tracked of the host
	Moved   func()                        // what Usable says changed
	Fault   func(cause string)            // why services do not work; empty: they do
	Note    func(text string)             // they do, but not all that was declared
	Log     zerolog.Logger
}

// Engine switches services. Its methods may be called concurrently.
type Engine struct {
	cfg      Config
	prober   *prober
	talker   *talker
	count    *counters
	switches *Switches
	calls    chan func() // what others ask, which Run answers
	runs     atomic.Bool
	used     atomic.Pointer[map[target]bool] // endpoints of headless services that take new connections
	fence    atomic.Pointer[fence]

	// What follows is Run's alone.
	view     *View
	placed   []*placed
	reach    Reach
	words    map[protocol.NodeNumber]*heardWords
	drains   drains
	address  map[protocol.NodeNumber]netip.Addr // at which a node is asked
	names    map[protocol.NodeNumber]string
	begun    time.Time
	bare     bool // no earlier run left anything
	settled  bool // each node was judged once: until then the table stays as an earlier run left it
	frozen   bool
	starting bool     // some endpoint has not all of its share yet
	fresh    bool     // what is declared is new: the table is to be written
	faults   [3]error // of listening, of switching, and of what the host has room for
	roomAt   time.Time
	dead     map[svc.Backend]bool
	ready    map[target]readiness
	moves    []protocol.ServiceSwitch // that the table is to be switched for, and are to be told of then
	signs    chan map[svc.Sign]svc.Signs
	outliers Outliers
	outs     int       // backends that are out
	noted    time.Time // when Note was called last
	noting   atomic.Bool
	works    sync.WaitGroup // what the loop does not wait for
}

// New makes an engine.
func New(cfg Config) *Engine {
	e := &Engine{cfg: cfg, prober: newProber(), talker: newTalker(), count: newCounters(), switches: newSwitches(), calls: make(chan func()), signs: make(chan map[svc.Sign]svc.Signs), words: map[protocol.NodeNumber]*heardWords{}, drains: drains{}, dead: map[svc.Backend]bool{}}
	e.used.Store(&map[target]bool{})
	e.fence.Store(&fence{})
	return e
}

const (
	// settleTime is how long who never answered keeps this agent from its first switch.
	settleTime = 3 * time.Second
	// mostTold bounds the services that one decision is logged of.
	mostTold = 20
	// rampPause is between two steps of shares that grow.
	rampPause = 500 * time.Millisecond
	// notePause is between two looks for flows that may have to go elsewhere.
	notePause = 500 * time.Millisecond
)

// Run works until ctx ends. The table stays as it is then.
func (e *Engine) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer e.works.Wait()
	defer stop()
	defer e.talker.close()
	e.begun, e.bare = time.Now(), !e.cfg.Table.Stands()
	e.runs.Store(true)
	defer e.runs.Store(false)
	e.works.Go(func() { e.watchSigns(ctx) })
	var ramp time.Time
	timer := time.NewTimer(0)
	for {
		due := false // something is decided anew
		select {
		case <-ctx.Done():
			return nil
		case h := <-e.talker.answers:
			due = e.hear(h)
		case <-e.prober.changed:
			due = true
		case l := <-e.signs:
			due = e.takeSigns(time.Now(), l)
		case <-e.cfg.News:
		case f := <-e.calls:
			f()
		case <-timer.C:
		}
		for more := true; more; { // what has come counts before what has not is judged
			select {
			case h := <-e.talker.answers:
				due = e.hear(h) || due
			default:
				more = false
			}
		}
		now := time.Now()
		if v := e.cfg.View(); v != e.view {
			e.look(ctx, v)
			due = true
		}
		next, changed := e.tick(ctx, now)
		changed = e.leases(now) || changed
		if (e.starting || e.fresh) && now.Sub(ramp) >= rampPause {
			ramp, due = now, true
		}
		ends := e.drains.next()
		if !ends.IsZero() && !now.Before(ends) {
			due = true
		}
		if due || changed {
			e.decide(ctx, now)
		}
		for _, at := range []time.Time{e.drains.next(), e.lookForRoom(now)} {
			if at.After(now) && at.Before(next) {
				next = at
			}
		}
		timer.Reset(time.Until(next))
	}
}

// look takes over what is declared.
func (e *Engine) look(ctx context.Context, v *View) {
	e.view = v
	before, now := e.placed, time.Now()
	e.placed, e.fresh = place(now, *v, before), true
	e.drains.set(now, before, e.placed)
	v.Outside.meet(v.Site, e.placed)
	nodes, targets := map[protocol.NodeNumber]bool{}, map[target]protocol.ServiceHealth{}
	for _, p := range e.placed {
		for _, x := range p.endpoints {
			if x.local {
				targets[target{p.Name, x.Addr}] = p.Health
			} else if x.node != 0 {
				nodes[x.node] = true
			}
		}
	}
	e.prober.set(ctx, targets)
	peers := make(map[netip.Addr]protocol.NodeNumber, len(v.Peers))
	e.address, e.names = map[protocol.NodeNumber]netip.Addr{}, map[protocol.NodeNumber]string{}
	var asked []protocol.NodeNumber
	for _, p := range v.Peers {
		if nodes[p.Number()] {
			e.names[p.Number()] = p.Name
		}
		for _, a := range p.Overlay {
			peers[a] = p.Number()
			if nodes[p.Number()] && !e.address[p.Number()].IsValid() && slices.ContainsFunc(v.Own, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
				e.address[p.Number()] = a
				asked = append(asked, p.Number())
			}
		}
	}
	e.talker.peers.Store(&peers)
	e.reach.Set(time.Now(), asked)
	for n := range e.words {
		if !e.reach.Known(n) {
			delete(e.words, n)
		}
	}
	own := v.Own
	if len(v.Services) == 0 {
		own = nil
	}
	e.faults[0] = e.talker.open(ctx, own)
	e.tellFaults()
}

func (e *Engine) tellFaults() {
	text := ""
	if err := errors.Join(e.faults[:]...); err != nil {
		text = protocol.OneLine(strings.ReplaceAll(err.Error(), "\n", "; "), 512)
	}
	var notes []string
	if note := unmet(e.placed); note != "" {
		notes = append(notes, note)
	}
	if lacks := e.cfg.Table.Lacks(); len(lacks) > 0 {
		notes = append(notes, "this host's kernel lacks something: "+strings.Join(lacks, "; "))
	}
	if text == "" && len(notes) > 0 {
		e.cfg.Note(protocol.OneLine(strings.Join(notes, "; "), 1024))
		return
	}
	e.cfg.Fault(text)
}

// hear takes an answer, and reports whether it says anything new.
func (e *Engine) hear(h heard) (changed bool) {
	if !e.reach.Known(h.node) {
		return false
	}
	before, _, _ := e.reach.State(h.node)
	if h.answer.Seq != 0 {
		e.reach.Answer(h.at, h.node, h.answer.Seq)
	}
	after, _, _ := e.reach.State(h.node)
	if before != after {
		e.tell(h.node, before, after)
	}
	w := e.words[h.node]
	if w == nil {
		w = &heardWords{}
		e.words[h.node] = w
	}
	news, more := w.take(h.answer)
	for _, page := range more {
		e.talker.ask(e.address[h.node], protocol.ServiceAsk{Digest: w.digest, Page: page})
	}
	return news || before != after
}

// tick asks who is due, and reports whether anybody's state changed.
func (e *Engine) tick(ctx context.Context, now time.Time) (next time.Time, changed bool) {
	before := make([]ReachState, len(e.reach.order))
	for i, n := range e.reach.order {
		before[i] = e.reach.peers[n].state
	}
	var heard map[protocol.NodeNumber]uint64
	asks, next := e.reach.Tick(now, func(n protocol.NodeNumber) uint64 {
		if heard == nil {
			heard = e.cfg.Heard()
		}
		return heard[n]
	})
	for _, a := range asks {
		q := protocol.ServiceAsk{Seq: a.Seq}
		if w := e.words[a.Node]; w != nil {
			q.Digest = w.digest
		}
		e.talker.ask(e.address[a.Node], q)
	}
	doubtful := false
	for i, n := range e.reach.order {
		p := e.reach.peers[n]
		doubtful = doubtful || p.state == Up && p.lost >= doubtfulAfter
		if p.state != before[i] {
			e.tell(n, before[i], p.state)
			changed = true
		}
	}
	if doubtful && now.Sub(e.noted) >= notePause && !e.noting.Swap(true) {
		e.noted = now
		e.works.Go(func() {
			defer e.noting.Store(false)
			_ = e.cfg.Table.Note(ctx) // what it missed Release finds
		})
	}
	if !e.settled {
		e.settled = now.Sub(e.begun) > settleTime || e.knowsAll()
		changed = changed || e.settled
	}
	return next, changed
}

// knowsAll reports whether each node and each backend here was judged.
func (e *Engine) knowsAll() bool {
	for _, n := range e.reach.order {
		if w := e.words[n]; e.reach.peers[n].state == Unknown || w != nil && w.words == nil {
			return false
		}
	}
	for _, r := range e.prober.all() {
		if r.ready == protocol.ReadyUnknown {
			return false
		}
	}
	return e.knowsLeases()
}

func (e *Engine) tell(n protocol.NodeNumber, before, after ReachState) {
	e.count.reach.WithLabelValues(after.String()).Inc()
	ev := e.cfg.Log.Info()
	if after == Suspect || after == Dead {
		ev = e.cfg.Log.Warn()
	}
	ev.Uint32("peer", uint32(n)).Str("was", before.String()).Str("reach", after.String()).Msg("a node with backends of services is reached otherwise")
}

// decide makes the table as what is known says.
func (e *Engine) decide(ctx context.Context, now time.Time) {
	f := fenceOf(e.placed, e.view.Site)
	e.drains.due(now, e.placed, f)
	e.ready = f.withFence(e.prober.all())
	e.publish()
	e.settled = e.settled || len(f.backends) > 0 // what is to be blocked waits for nobody
	if !e.settled {
		return
	}
	if e.faults[1] = e.setFence(f); e.faults[1] != nil {
		e.tellFaults()
		e.cfg.Log.Error().Err(e.faults[1]).Msg("cannot fence services")
		e.fresh = true
		return
	}
	reach := func(n protocol.NodeNumber) (ReachState, bool) {
		s, _, last := e.reach.State(n)
		return s, last.IsZero()
	}
	if doubts := doubtsItself(e.view.Site, e.placed, reach); doubts != e.frozen {
		e.frozen = doubts
		e.cfg.Log.Warn().Bool("doubts", doubts).Msg("whether this node sees less than half of the sites of its services, and so resets nothing")
	}
	s := sight{now: now, site: e.view.Site, reach: reach, path: e.cfg.Path, ready: e.readiness, frozen: e.frozen,
		out: func(b svc.Backend) string { why, _ := e.outliers.Out(now, b); return why }}
	told, moved := 0, e.fresh
	e.starting = false
	var left []svc.Backend // what takes no new connections any more
	dead := map[svc.Backend]bool{}
	for _, p := range e.placed {
		used := make([]bool, len(p.endpoints))
		for i, x := range p.endpoints {
			used[i] = !x.used.IsZero()
		}
		was := p.states()
		p.judge(s)
		p.turned(was)
		for i := range p.families {
			moved = p.slotsOf(&p.families[i], s) || moved
		}
		if sites := p.sites(); !slices.Equal(sites, p.told) {
			e.noteMove(p, sites)
			p.told = sites
			if told++; told <= mostTold {
				e.cfg.Log.Info().Str("service", p.Name).Strs("sites", sites).Msg("new connections of a service go to these sites")
			}
		}
		p.known, p.news = true, ""
		for i, x := range p.endpoints {
			e.starting = e.starting || x.state.Use && x.ramp < 100
			if used[i] && !x.state.Use && !p.Headless {
				left = append(left, p.backends(x)...)
			}
			if x.node == 0 || p.OnDead == protocol.OnDeadKeep || p.Headless {
				continue
			}
			if state, _ := reach(x.node); state == Dead {
				for _, b := range p.backends(x) {
					if !e.frozen || e.dead[b] {
						dead[b] = true
					}
				}
			}
		}
	}
	var died []svc.Backend
	for b := range dead {
		if !e.dead[b] {
			died = append(died, b)
		}
	}
	all := make([]svc.Backend, 0, len(dead))
	for b := range dead {
		all = append(all, b)
	}
	begun := time.Now()
	if moved || !maps.Equal(dead, e.dead) {
		e.faults[1] = e.cfg.Table.Switch(table(e.placed), all)
		e.tellFaults()
		if err := e.faults[1]; err != nil {
			e.cfg.Log.Error().Err(err).Msg("cannot switch services")
			e.fresh = true // the next decision tries again
			return
		}
	}
	e.dead, e.fresh = dead, false
	e.fenced(ctx, f)
	if e.drains.done(now, e.placed, e.fence.Load()) {
		e.fresh = true // and the next decision need not say so any more
	}
	done := time.Now()
	switched, moves := done.Sub(begun), e.doneMoves(done)
	e.noteUsed()
	if len(left) > 0 {
		e.works.Go(func() {
			begun := time.Now()
			n, err := e.cfg.Table.Release(ctx, left)
			e.switches.add(released(moves, time.Now(), n)...)
			e.count.released.Add(float64(n))
			e.cfg.Log.Info().Int("backends", len(left)).Int("flows", n).Dur("switched_in", switched).Dur("released_in", time.Since(begun)).Err(err).Msg("new connections go elsewhere")
		})
	} else {
		e.switches.add(moves...)
	}
	if len(died) > 0 {
		deaths := e.deaths(died, done)
		e.works.Go(func() {
			n, err := e.cfg.Table.Prod(ctx, died)
			for i := range deaths {
				deaths[i].Reset = n
			}
			e.switches.add(deaths...)
			e.count.prodded.Add(float64(n))
			e.cfg.Log.Warn().Int("backends", len(died)).Int("flows", n).Dur("switched_in", switched).Err(err).Msg("connections to dead backends are reset")
		})
	}
}

// Switches are what was switched, for the hub.
func (e *Engine) Switches() *Switches { return e.switches }

// Readiness is what was found of backends here, for the hub. Of more than it takes those that are not ready come first.
func (e *Engine) Readiness() (out []protocol.ServiceReadiness) {
	for t, r := range e.fence.Load().withFence(e.prober.all()) {
		out = append(out, protocol.ServiceReadiness{Service: t.service, Addr: t.addr, Ready: r.ready, Cause: r.cause, Since: r.since})
	}
	slices.SortFunc(out, func(a, b protocol.ServiceReadiness) int {
		return cmp.Or(cmp.Compare(b.Ready, a.Ready), cmp.Compare(a.Service, b.Service), a.Addr.Compare(b.Addr))
	})
	return out[:min(len(out), protocol.MaxServiceReadiness)]
}

// readiness is what an endpoint's node says of it.
func (e *Engine) readiness(service string, x *endpoint) protocol.Readiness {
	if x.local {
		return e.ready[target{service, x.Addr}].ready
	}
	if w := e.words[x.node]; w != nil {
		return w.words[wordKey{protocol.ServiceHash(service), x.Addr}]
	}
	return protocol.ReadyUnknown
}

// publish has other nodes hear what is known of backends here.
func (e *Engine) publish() {
	var words []protocol.ServiceWord
	for t, r := range e.ready {
		words = append(words, protocol.ServiceWord{Service: protocol.ServiceHash(t.service), Addr: t.addr, Ready: r.ready})
	}
	if p := newPages(words); p.digest != e.talker.words.Load().digest {
		e.talker.words.Store(p)
		e.cfg.Told()
	}
}

// noteUsed keeps which endpoints of services without an address are used, for who names them.
func (e *Engine) noteUsed() {
	used := map[target]bool{}
	for _, p := range e.placed {
		for _, x := range p.endpoints {
			if p.Headless && x.state.Use {
				used[target{p.Name, x.Addr}] = true
			}
		}
	}
	if !maps.Equal(used, *e.used.Load()) {
		e.used.Store(&used)
		e.cfg.Moved()
	}
}

// Usable reports whether an endpoint of a headless service takes new connections.
func (e *Engine) Usable(service string, addr netip.Addr) bool {
	return (*e.used.Load())[target{service, addr}]
}

// ask has Run answer a question, in between two decisions.
func (e *Engine) ask(ctx context.Context, f func()) error {
	if !e.runs.Load() {
		return nil // nothing is known yet
	}
	done := make(chan struct{})
	select {
	case e.calls <- func() { f(); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return fmt.Errorf("services are not looked after now: %w", ctx.Err())
	}
}

// viewOf is the services as this node sees them, or the one of that name.
func (e *Engine) viewOf(name string, now time.Time) (out protocol.ServicesView) {
	out = protocol.ServicesView{Services: []protocol.ServiceView{}, Doubts: e.frozen, Late: e.reach.Late}
	for _, p := range e.placed {
		if name != "" && name != protocol.ServicesCounted && p.Name != name {
			continue
		}
		v := protocol.ServiceView{Name: p.Name, Segment: p.Segment, VIP4: p.VIP4, VIP6: p.VIP6, Mode: p.Mode, Prefer: p.Prefer, Endpoints: make([]protocol.ServiceEndpointView, len(p.endpoints)), Exposed: p.exposed}
		slots := map[*endpoint]int{}
		for i := range p.families {
			for _, c := range p.families[i].slots {
				slots[p.families[i].of[c]]++
			}
		}
		for i, x := range p.endpoints {
			y := protocol.ServiceEndpointView{ServiceEndpoint: x.ServiceEndpoint, Reach: x.state.Reach, Ready: x.state.Readiness.String(), Use: x.state.Use, Why: x.state.Why, Starting: x.ramp,
				Slots: slots[x], Of: len(p.families[familyIndex(x.Addr)].slots)}
			if x.local {
				y.Cause = e.ready[target{p.Name, x.Addr}].cause
			} else if x.node != 0 {
				y.Node, y.RTT = e.names[x.node], e.reach.RTT(x.node)
				if _, _, last := e.reach.State(x.node); !last.IsZero() {
					y.Answered = max(1, now.Sub(last))
				}
			}
			v.Endpoints[i] = y
		}
		out.Services = append(out.Services, v)
	}
	return out
}

// View is all services as this node sees them, or the one of that name, with its connections; for protocol.ServicesCounted all, with
// theirs.
func (e *Engine) View(ctx context.Context, name string) (out protocol.ServicesView, err error) {
	out.Services = []protocol.ServiceView{}
	if err := e.ask(ctx, func() { out = e.viewOf(name, time.Now()) }); err != nil || name == "" {
		return out, err
	}
	if len(out.Services) == 0 && name != protocol.ServicesCounted {
		return out, fmt.Errorf("this node was told of no service %s", name)
	}
	flows, err := e.cfg.Table.Flows(ctx)
	if err != nil {
		return out, err
	}
	out.Counted = time.Now().UTC()
	open := openOf(flows)
	for i := range out.Services {
		v := &out.Services[i]
		for k := range v.Endpoints {
			x := &v.Endpoints[k]
			n := open.of(*v, x.Addr)
			x.Open, x.Half, x.Begun, x.Bytes, x.Counted = n.Open, n.Unreplied, n.Begun, n.Bytes, n.Counted
		}
		if name == protocol.ServicesCounted {
			v.Endpoints = slices.DeleteFunc(v.Endpoints, func(x protocol.ServiceEndpointView) bool {
				return x.Slots == 0 && x.Open+x.Half == 0 && x.Begun == 0
			})
		}
	}
	return out, nil
}
