package onhost

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"causeway/agent/debug"
	"causeway/agent/repair"
	"causeway/netns"
	"causeway/protocol"
)

const (
	// settle is how long changes are gathered before they are looked at: a
	// container's start is a dozen of them.
	settle = 100 * time.Millisecond
	// ripe is how long it may take until the kernel has told who did what was mended on
	// the way.
	ripe = 300 * time.Millisecond
	// lookEvery is how often settings of the kernel are read, as no event tells of
	// some of them.
	lookEvery = time.Second
	// lookAtAll is how often everything is looked at unasked.
	lookAtAll = time.Minute
	// otherEvery bounds how often others' changes make us apply again.
	otherEvery = 2 * time.Second
	otherBurst = 3
)

// repairs watches what the agent has set up on its host, mends it, and keeps what
// happened. Keeper.mu guards all but what others write into: asked and heard.
type repairs struct {
	k     *Keeper
	log   *repair.Log
	asked chan chan debug.RepairResult
	heard heard
	other *rate.Limiter

	countMended, countGaveUp func(kind string)

	machine  *repair.Machine
	told     map[netns.Kind]told // changes not looked at yet
	dueAt    map[netns.Kind]time.Time
	right    map[netns.Kind]time.Time // when a kind was last seen as planned
	episodes map[string]*episode      // by subject
	overAt   time.Time                // when a fight may be over; zero: there is none
	mending  bool                     // an apply puts a drift back, which is known
	silent   []silent
}

// silent is a drift that was mended on the way, as a netmap was applied.
type silent struct {
	netns.Drift
	at     time.Time
	rx, tx uint64
}

// isSilent reports whether something of a kind was mended on the way and is no
// incident yet.
func (r *repairs) isSilent(k netns.Kind) bool {
	return slices.ContainsFunc(r.silent, func(s silent) bool { return s.Kind == k })
}

// noteMended takes what was mended on the way.
func (r *repairs) noteMended(l []netns.Drift) {
	if len(l) == 0 || r.mending {
		return
	}
	now := time.Now()
	rx, tx := r.k.traffic()
	for _, d := range l {
		r.silent = append(r.silent, silent{d, now, rx, tx})
	}
}

// takeSilent makes incidents of what was mended on the way, once the kernel has had
// the time to tell who did it.
func (r *repairs) takeSilent(now time.Time) {
	var out []silent
	r.silent = slices.DeleteFunc(r.silent, func(s silent) bool {
		if now.Sub(s.at) < ripe {
			return false
		}
		out = append(out, s)
		return true
	})
	for _, s := range out {
		r.found(s.Drift, s.at, s.rx, s.tx)
		r.machine.Mended(s.Subject, s.at)
		r.mended(s.Drift, s.at, s.rx, s.tx)
	}
}

// told is a change, and what the tunnel had carried when it came.
type told struct {
	netns.Change
	rx, tx uint64
}

func newRepairs(k *Keeper, cfg Config) *repairs {
	return &repairs{k: k, machine: repair.NewMachine(neverGivenUp), log: cfg.Incidents, countMended: cfg.Mended, countGaveUp: cfg.GaveUp, asked: make(chan chan debug.RepairResult), other: rate.NewLimiter(rate.Every(otherEvery), otherBurst),
		told: map[netns.Kind]told{}, dueAt: map[netns.Kind]time.Time{}, right: map[netns.Kind]time.Time{}, episodes: map[string]*episode{}}
}

// Run mends what others change of ours, and applies again when something changed that the plan
// depends on.
func (k *Keeper) Run(ctx context.Context) error {
	r := k.repairs
	watch, err := k.host.Watch(ctx)
	if err != nil {
		k.log.Warn().Err(err).Msg("the host's network is looked at now and then alone")
	}
	blind := err != nil
	noted := make(chan struct{}, 1)
	if watch != nil {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { r.listen(ctx, watch, noted) }) // the loop below may be busy, and it matters when a change was told
	}
	look, all, name := time.NewTicker(lookEvery), time.NewTicker(lookAtAll), time.NewTicker(blockedTick)
	defer look.Stop()
	defer all.Stop()
	defer name.Stop()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	for {
		due.Reset(r.next())
		select {
		case <-ctx.Done():
			return nil
		case <-noted: // something may be due sooner
		case <-due.C:
			r.lookAtDue(ctx)
		case <-look.C:
			kinds := []netns.Kind{netns.Sysctls}
			if blind {
				kinds = netns.Kinds
			}
			r.look(ctx, kinds...)
			if blind {
				r.lookAtUses(ctx)
			}
		case <-all.C:
			r.look(ctx, netns.Kinds...)
			r.lookAtUses(ctx)
			k.lookAtRules()
		case reply := <-r.asked:
			k.mu.Lock()
			r.machine.Asked()
			k.mu.Unlock()
			reply <- r.look(ctx, netns.Kinds...)
		case <-name.C:
			k.takeNameBack(ctx)
			k.countPassing(ctx, time.Now())
		}
	}
}

// listen takes what the kernel tells, and says so.
func (r *repairs) listen(ctx context.Context, watch <-chan []netns.Change, noted chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case l, ok := <-watch:
			if !ok {
				return
			}
			r.heard.add(l, r.k.traffic)
		}
		select {
		case noted <- struct{}{}:
		default:
		}
	}
}

// Repair has everything that is not as planned mended, what was given up too. Run does it.
func (k *Keeper) Repair(ctx context.Context) debug.RepairResult {
	r := k.repairs
	reply := make(chan debug.RepairResult, 1)
	select {
	case <-ctx.Done():
		return debug.RepairResult{Error: "the agent is busy or not up yet; try again"}
	case r.asked <- reply:
	}
	select {
	case <-ctx.Done():
		return debug.RepairResult{Error: "not done yet; see 'causeway-agent health'"}
	case res := <-reply:
		return res
	}
}

// drain looks through what the kernel has told since.
func (r *repairs) drain() {
	for _, c := range r.heard.take() {
		r.machine.Touched(c.last, func(subject string) bool { e := r.episodes[subject]; return e != nil && e.kind == c.Kind })
		r.lateWord(c.Change, c.first)
		t, ok := r.told[c.Kind]
		if !ok {
			t = c.told
		}
		if c.By != "" {
			t.By = c.By
		}
		r.told[c.Kind] = t
		if _, ok := r.dueAt[c.Kind]; !ok && r.worthALook(c.Kind, c.first) {
			r.dueAt[c.Kind] = c.first.Add(settle)
		}
	}
}

// lateWord names who did what was seen and mended before the kernel's word of it had
// come.
func (r *repairs) lateWord(c netns.Change, now time.Time) {
	if c.By == "" {
		return
	}
	for _, e := range r.episodes {
		if e.kind == c.Kind && e.by == "" && !e.drifting && now.Sub(e.mended) <= ripe {
			e.by = c.By
			r.change(e, func(i *protocol.Incident) { i.Reason = e.reason() })
		}
	}
}

// worthALook reports whether a change of a kind is a reason to look: not while all
// of it that is known to differ was given up.
func (r *repairs) worthALook(k netns.Kind, now time.Time) bool {
	given := false
	for subject, e := range r.episodes {
		if e.kind != k || !e.drifting {
			continue
		}
		if _, ok := r.machine.Due(subject, now); ok {
			return true
		}
		given = true
	}
	return !given
}

// next is how long nothing is due.
func (r *repairs) next() time.Duration {
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	r.drain()
	d := time.Hour
	for _, at := range r.dueAt {
		d = min(d, time.Until(at))
	}
	if !r.overAt.IsZero() {
		d = min(d, time.Until(r.overAt))
	}
	return max(0, d)
}

func (r *repairs) lookAtDue(ctx context.Context) {
	now := time.Now()
	var kinds []netns.Kind
	again := false
	r.k.mu.Lock()
	for k, at := range r.dueAt {
		switch {
		case at.After(now):
		case k != netns.Other:
			kinds = append(kinds, k)
		case !r.other.Allow():
			r.dueAt[k] = now.Add(otherEvery)
		default:
			delete(r.told, k)
			delete(r.dueAt, k)
			again = true
		}
	}
	if !r.overAt.IsZero() && !r.overAt.After(now) {
		kinds = append(kinds, netns.Nftables, netns.Routes, netns.Rules)
	}
	r.k.mu.Unlock()
	if len(kinds) > 0 {
		r.look(ctx, kinds...)
	}
	if slices.Contains(kinds, netns.Sysctls) {
		r.lookAtUses(ctx)
	}
	if slices.Contains(kinds, netns.Rules) {
		r.k.lookAtRules()
	}
	if again {
		r.k.Reapply(ctx)
	}
}

// lookAtUses has all applied again, soon, when the host is used otherwise than planned: when
// somebody else turned forwarding on or off, or has sources checked strictly.
func (r *repairs) lookAtUses(ctx context.Context) {
	planned := r.k.Facts().Plan.Config
	if planned.Interface == "" {
		return
	}
	if now, err := r.k.host.Uses(ctx, planned); err == nil && !now.Equal(planned.Uses) {
		r.k.mu.Lock()
		r.dueAt[netns.Other] = time.Now()
		r.k.mu.Unlock()
	}
}

// first looks at what the kernel told of, before everything is applied anew: what
// others did is mended as such, and known, not silently.
func (r *repairs) first(ctx context.Context) {
	r.drain()
	var kinds []netns.Kind
	for k := range r.told {
		if k != netns.Other && r.worthALook(k, time.Now()) {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) > 0 {
		r.lookLocked(ctx, kinds)
	}
}

// tellRemade says that the tunnel's device is another.
func (k *Keeper) tellRemade() {
	select {
	case k.remade <- struct{}{}:
	default:
	}
}

// traffic sums what all peers and hubs sent and received.
func (k *Keeper) traffic() (rx, tx uint64) { return repair.Traffic(k.tunnel.Paths()) }
