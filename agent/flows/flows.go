// Package flows tells what passes and what is refused: counters of the wall's rules, refused flows of the last
// minutes, and, where operators want it, a log of the flows through the node's tunnel for the hub.
//
//	w := flows.New(cfg)
//	go w.Run(ctx)
//
// What it hears of the kernel is package look's. What is refused is always heard of, at a bounded rate. What
// passes is heard of only while a flow log is declared: conntrack tells of each connection of the host then.
package flows

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go4.org/netipx"

	"causeway/netns/look"
	"causeway/netns/policy"
	"causeway/protocol"
)

// View is what is in force at the node.
type View struct {
	Wall    *policy.Part // nil: all is open
	Logging bool         // a flow log is declared
	Own     []netip.Addr // its overlay addresses
	Hubs    []netip.Addr
	Overlay []netip.Prefix
	Local   []netip.Prefix // what is behind the node
	Remote  []netip.Prefix // what is routed into the tunnel
}

// Config is what a Watcher is made of.
type Config struct {
	View func() View
	// Blind hears why rules are judged by the headers of packets alone; empty: they are not. note is what else there is to
	// know of the wall.
	Blind func(cause, note string)
	// Counted reads the wall's counters: policy.Counted.
	Counted func() (policy.Counts, error)
	Now     func() time.Time
	Log     zerolog.Logger
}

// Times and bounds.
const (
	tick         = time.Second
	reportEvery  = 10 * time.Second
	retryEvery   = 30 * time.Second
	passedAgain  = time.Hour   // after which a flow that goes on is told of again
	refusedAgain = time.Minute // the same of a refused one
	maxKeys      = 4096        // flows that are told apart
	maxWaiting   = 64          // reports that wait for a hub
	maxEvents    = 5000        // flows that are looked at in a second
	mostTold     = 75          // flows of a report: they are below MaxFlowReport with the longest names
)

// Watcher hears of flows. Its methods may be called concurrently.
type Watcher struct {
	cfg     Config
	counts  counters
	changed chan struct{}

	mu      sync.Mutex
	view    View
	ends    *ends
	refused refusals
	keys    map[key]*logged
	second  int64 // that events were last counted in
	events  int
	leftOut uint64
	owed    []protocol.Flow // by rules that do not open them any more
	waiting []protocol.FlowReport
	sent    time.Time // when the last report was made
}

// key is what flows are told apart by.
type key struct {
	from, to              netip.Addr
	proto                 uint8
	port                  uint16
	refused, here, midway bool
}

// logged is a flow that is logged: what was not told of yet.
type logged struct {
	count       uint64
	first, last time.Time
	rule        string
	wall        *policy.Part // that rule is of
	told        time.Time
	toldRule    string
}

// flow is what is told of it.
func (l *logged) flow(k key) protocol.Flow {
	return protocol.Flow{From: k.from, To: k.to, Proto: k.proto, Port: k.port, Rule: l.rule, Refused: k.refused, Here: k.here, Midway: k.midway,
		Count: l.count, First: l.first.UTC().Truncate(time.Millisecond), Last: l.last.UTC().Truncate(time.Millisecond)}
}

// New opens nothing.
func New(cfg Config) *Watcher {
	return &Watcher{cfg: cfg, changed: make(chan struct{}, 1), keys: map[key]*logged{}, refused: refusals{}}
}

// Run listens until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	begun, refused := ear{open: look.HearBegun}, ear{open: look.HearRefused}
	defer begun.stop()
	defer refused.stop()
	t := time.NewTicker(tick)
	defer t.Stop()
	var notTracked direction
	var cause, note string
	for {
		now, v := w.cfg.Now(), w.cfg.View()
		w.see(v)
		begun.want(ctx, &wg, v.Logging, now, w.cfg.Log, func(h look.Heard) { w.heard(h, false) })
		refused.want(ctx, &wg, v.Wall != nil, now, w.cfg.Log, func(h look.Heard) { w.heard(h, true) })
		why, news := notTracked.look(now, v.Wall != nil, w.Counts)
		if news {
			cause = why
		}
		if x := untold(v.Wall); news || x != note {
			note = x
			w.cfg.Blind(cause, note)
		}
		w.report(now)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// untold says that ends of what a wall closed last may not know it.
func untold(wall *policy.Part) string {
	if wall == nil || wall.Untold() == nil {
		return ""
	}
	return "a connection that a policy closed and whose end here only waits may end with that end's next packet alone: " + protocol.OneLine(wall.Untold().Error(), 200)
}

// ear is a listener that is there while it is wanted.
type ear struct {
	open  func() (*look.Listener, error)
	end   context.CancelFunc // nil: it is not there
	over  chan struct{}
	tried time.Time
	told  bool
}

func (e *ear) stop() {
	if e.end != nil {
		e.end()
		<-e.over
		e.end = nil
	}
}

func (e *ear) want(ctx context.Context, wg *sync.WaitGroup, wanted bool, now time.Time, log zerolog.Logger, each func(look.Heard)) {
	if e.end != nil {
		select {
		case <-e.over: // by itself
			e.end()
			e.end = nil
		default:
		}
	}
	switch {
	case !wanted:
		e.stop()
		e.tried = time.Time{}
		return
	case e.end != nil || now.Sub(e.tried) < retryEvery:
		return
	}
	e.tried = now
	l, err := e.open()
	if err != nil {
		if !e.told {
			log.Warn().Err(err).Msg("flows are not heard of")
		}
		e.told = true
		return
	}
	e.told = false
	lctx, end := context.WithCancel(ctx)
	over := make(chan struct{})
	e.end, e.over = end, over
	wg.Go(func() {
		defer close(over)
		if err := l.Run(lctx, each); err != nil {
			log.Warn().Err(err).Msg("flows are not heard of")
		}
	})
}

// see takes over what is in force.
func (w *Watcher) see(v View) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.view = v
	if v.Wall == nil {
		clear(w.refused)
	}
	if !v.Logging {
		clear(w.keys)
		w.waiting, w.owed, w.leftOut = nil, nil, 0
	}
	if (v.Logging || v.Wall != nil) && !w.ends.of(v) {
		w.ends = newEnds(v)
	}
}

// heard takes one flow.
func (w *Watcher) heard(h look.Heard, refused bool) {
	now := w.cfg.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := now.Unix(); s != w.second {
		w.second, w.events = s, 0
	}
	if w.events++; w.events > maxEvents {
		w.leftOut++
		return
	}
	k, ok := w.ends.key(h, refused)
	if !ok {
		return
	}
	if refused {
		w.refused.add(k, now)
	}
	if w.view.Logging {
		w.log(k, now)
	}
}

// log notes a flow. w.mu is held.
func (w *Watcher) log(k key, now time.Time) {
	l := w.keys[k]
	if l == nil {
		if len(w.keys) >= maxKeys {
			w.leftOut++
			return
		}
		l = &logged{}
		w.keys[k] = l
	}
	if l.count == 0 || l.wall != w.view.Wall {
		rule := w.rule(k)
		if l.count > 0 && rule != l.rule {
			if len(w.owed) < maxKeys {
				w.owed = append(w.owed, l.flow(k))
			}
			l.count = 0
		}
		l.rule, l.wall = rule, w.view.Wall
	}
	if l.count++; l.count == 1 {
		l.first = now
	}
	l.last = now
}

// rule is the one that opens a flow. w.mu is held.
func (w *Watcher) rule(k key) string {
	if k.refused || w.view.Wall == nil {
		return ""
	}
	name, _ := w.view.Wall.Opens(k.from, k.to, policy.Proto(k.proto), k.port)
	return ruleName(name)
}

// ruleName is POLICY/RULE of what the table calls POLICY.RULE.
func ruleName(s string) string { return strings.Replace(s, ".", "/", 1) }

// again is after how long a flow that goes on is told of again.
func (k key) again() time.Duration {
	if k.refused {
		return refusedAgain
	}
	return passedAgain
}

// report makes a report of what is due, and forgets what has ended.
func (w *Watcher) report(now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.sent) < reportEvery {
		return
	}
	w.sent = now
	var due []key
	for k, l := range w.keys {
		switch {
		case l.count > 0 && (now.Sub(l.told) >= k.again() || l.rule != l.toldRule):
			due = append(due, k)
		case l.count == 0 && now.Sub(l.last) >= 2*k.again(), l.count == 0 && len(w.keys) > maxKeys/2 && now.Sub(l.last) >= refusedAgain:
			delete(w.keys, k)
		}
	}
	if len(due)+len(w.owed) == 0 {
		return
	}
	slices.SortFunc(due, func(a, b key) int { return w.keys[a].first.Compare(w.keys[b].first) })
	r := protocol.FlowReport{Version: protocol.Version, Time: now.UTC(), LeftOut: w.leftOut}
	n := min(len(w.owed), mostTold)
	r.Flows, w.owed = append(r.Flows, w.owed[:n]...), w.owed[n:]
	for _, k := range due[:min(len(due), mostTold-n)] {
		l := w.keys[k]
		r.Flows = append(r.Flows, l.flow(k))
		l.count, l.told, l.toldRule = 0, now, l.rule
	}
	w.leftOut = 0
	if w.waiting = append(w.waiting, r); len(w.waiting) > maxWaiting {
		for _, f := range w.waiting[0].Flows {
			w.leftOut += f.Count
		}
		w.waiting = w.waiting[1:]
	}
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Changed fires when there may be a report to send.
func (w *Watcher) Changed() <-chan struct{} { return w.changed }

// Next is the report that waits for longest.
func (w *Watcher) Next() (protocol.FlowReport, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) == 0 {
		return protocol.FlowReport{}, false
	}
	return w.waiting[0], true
}

// Sent notes that a hub has a report.
func (w *Watcher) Sent(r protocol.FlowReport) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) > 0 && w.waiting[0].Time.Equal(r.Time) {
		w.waiting = w.waiting[1:]
	}
}

// Refused are the flows that were refused most in the last minutes, at most 64.
func (w *Watcher) Refused() []protocol.RefusedFlow {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refused.top(w.cfg.Now())
}

// Repeated are those of them that go on and on, as facts have them.
func (w *Watcher) Repeated() []protocol.RefusedFlow {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.refused.repeated(w.cfg.Now())
}

// ends tells which of a flow's two ends is this node's.
type ends struct {
	view          View
	local, remote *netipx.IPSet
}

// of reports whether the ends are those of a view.
func (e *ends) of(v View) bool {
	return e != nil && slices.Equal(e.view.Own, v.Own) && slices.Equal(e.view.Hubs, v.Hubs) && slices.Equal(e.view.Overlay, v.Overlay) &&
		slices.Equal(e.view.Local, v.Local) && slices.Equal(e.view.Remote, v.Remote)
}

func newEnds(v View) *ends {
	set := func(l []netip.Prefix, own bool) *netipx.IPSet {
		var b netipx.IPSetBuilder
		for _, p := range l {
			b.AddPrefix(p)
		}
		for _, a := range v.Own {
			if own {
				b.Add(a)
			} else {
				b.Remove(a)
			}
		}
		s, err := b.IPSet()
		if err != nil { // of prefixes that are valid there is none
			s = &netipx.IPSet{}
		}
		return s
	}
	return &ends{v, set(v.Local, true), set(v.Remote, false)}
}

// key is what a flow is told apart by, in the direction in which it begins; ok is false of what does not go through the tunnel
// and of Causeway's own.
func (e *ends) key(h look.Heard, refused bool) (k key, ok bool) {
	k = key{proto: h.Orig.Proto, refused: refused, midway: h.Midway}
	put := func(from, to netip.AddrPort, here bool) {
		k.from, k.to, k.port, k.here = from.Addr(), to.Addr(), to.Port(), here
	}
	local, remote := func(a netip.AddrPort) bool { return e.local.Contains(a.Addr()) }, func(a netip.AddrPort) bool { return e.remote.Contains(a.Addr()) && !e.local.Contains(a.Addr()) }
	switch {
	case remote(h.Orig.From) && local(h.Orig.To):
		put(h.Orig.From, h.Orig.To, false)
	case local(h.Reply.To) && remote(h.Reply.From):
		put(h.Reply.To, h.Reply.From, true)
	case refused: // of addresses that are nobody's, too
		put(h.Orig.From, h.Orig.To, h.Inwards == h.Answers)
	default:
		return k, false
	}
	if k.proto != 6 && k.proto != 17 && k.proto != 132 && k.proto != 33 && k.proto != 136 {
		k.port = 0
	}
	return k, k.to.IsGlobalUnicast() && k.from.IsGlobalUnicast() && !e.own(k)
}

// own reports whether a flow is no subject of any rule: see policy.Config.
func (e *ends) own(k key) bool {
	mine, other := k.to, k.from
	if k.here {
		mine, other = k.from, k.to
	}
	if !slices.Contains(e.view.Own, mine) {
		return false
	}
	if slices.Contains(e.view.Hubs, other) {
		return true
	}
	over := slices.ContainsFunc(e.view.Overlay, func(p netip.Prefix) bool { return p.Contains(other) })
	return over && (k.proto == 1 || k.proto == 58 || k.port >= protocol.OverlayPortFirst && k.port <= protocol.OverlayPortLast)
}

// refusals are what was refused in the last minutes.
type refusals map[key]*refusal

// refusal counts packets by minute.
type refusal struct {
	minutes     [10]uint32
	minute      int64 // of the newest
	first, last time.Time
}

const (
	maxRefusals = 1024
	topRefusals = 64
)

func (r *refusal) count(now time.Time) (n uint64) {
	r.move(now.Unix() / 60)
	for _, c := range r.minutes {
		n += uint64(c)
	}
	return n
}

// move forgets minutes that are over.
func (r *refusal) move(minute int64) {
	for ; r.minute < minute; r.minute++ {
		if minute-r.minute > int64(len(r.minutes)) {
			r.minute = minute - int64(len(r.minutes))
		}
		r.minutes[(r.minute+1)%int64(len(r.minutes))] = 0
	}
}

func (l refusals) add(k key, now time.Time) {
	k.midway = false
	r := l[k]
	if r == nil {
		if len(l) >= maxRefusals {
			least := slices.MinFunc(slices.Collect(maps.Keys(l)), func(a, b key) int { return cmp.Compare(l[a].count(now), l[b].count(now)) })
			delete(l, least)
		}
		r = &refusal{minute: now.Unix() / 60, first: now}
		l[k] = r
	}
	if now.Sub(r.last) >= protocol.RefusedWindow {
		r.first = now
	}
	r.move(now.Unix() / 60)
	r.minutes[r.minute%int64(len(r.minutes))]++
	r.last = now
}

// top are those with most packets, the most first.
func (l refusals) top(now time.Time) []protocol.RefusedFlow {
	out := []protocol.RefusedFlow{}
	for k, r := range l {
		n := r.count(now)
		if n == 0 {
			delete(l, k)
			continue
		}
		out = append(out, protocol.RefusedFlow{From: k.from, To: k.to, Proto: k.proto, Port: k.port, Count: n, Since: r.first.UTC().Truncate(time.Second)})
	}
	slices.SortFunc(out, func(a, b protocol.RefusedFlow) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), a.Since.Compare(b.Since), a.From.Compare(b.From), a.To.Compare(b.To), cmp.Compare(a.Port, b.Port))
	})
	return out[:min(len(out), topRefusals)]
}

func (l refusals) repeated(now time.Time) (out []protocol.RefusedFlow) {
	spans := make(map[key]time.Duration, len(l)) // whichever end is here
	for k, r := range l {
		k = key{from: k.from, to: k.to, proto: k.proto, port: k.port}
		spans[k] = max(spans[k], r.last.Sub(r.first))
	}
	for _, f := range l.top(now) {
		if f.Count < protocol.RefusedOften || len(out) == protocol.MaxRefused {
			break
		}
		if spans[key{from: f.From, to: f.To, proto: f.Proto, port: f.Port}] < protocol.RefusedSpan {
			continue
		}
		least := uint64(protocol.RefusedOften)
		for _, n := range []uint64{100, 1000, 10_000, 100_000} {
			if f.Count >= n {
				least = n
			}
		}
		f.Count = least
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b protocol.RefusedFlow) int { // which is most moves
		return cmp.Or(a.Since.Compare(b.Since), a.From.Compare(b.From), a.To.Compare(b.To), cmp.Compare(a.Port, b.Port))
	})
	return out
}
