package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
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
// happened. Its methods may be called concurrently, without applyMu.
type repairs struct {
	a     *Agent
	log   *repair.Log
	asked chan chan debug.RepairResult
	other *rate.Limiter

	mu       sync.Mutex // before applyMu
	machine  *repair.Machine
	told     map[netns.Kind]told // changes not looked at yet
	dueAt    map[netns.Kind]time.Time
	right    map[netns.Kind]time.Time // when a kind was last seen as planned
	episodes map[string]*episode      // by subject
	overAt   time.Time                // when a fight may be over; zero: there is none

	mending bool // with applyMu

	silentMu sync.Mutex // after all others
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
	r.silentMu.Lock()
	defer r.silentMu.Unlock()
	return slices.ContainsFunc(r.silent, func(s silent) bool { return s.Kind == k })
}

// noteMended takes what was mended on the way. Called with applyMu.
func (r *repairs) noteMended(l []netns.Drift) {
	if len(l) == 0 || r.mending {
		return
	}
	now := time.Now()
	rx, tx := r.a.traffic()
	r.silentMu.Lock()
	defer r.silentMu.Unlock()
	for _, d := range l {
		r.silent = append(r.silent, silent{d, now, rx, tx})
	}
}

// takeSilent makes incidents of what was mended on the way, once the kernel has had
// the time to tell who did it. r.mu is held.
func (r *repairs) takeSilent(now time.Time) {
	r.silentMu.Lock()
	var out []silent
	r.silent = slices.DeleteFunc(r.silent, func(s silent) bool {
		if now.Sub(s.at) < ripe {
			return false
		}
		out = append(out, s)
		return true
	})
	r.silentMu.Unlock()
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

func newRepairs(a *Agent, log *repair.Log) *repairs {
	return &repairs{a: a, machine: repair.NewMachine(neverGivenUp...), log: log, asked: make(chan chan debug.RepairResult), other: rate.NewLimiter(rate.Every(otherEvery), otherBurst),
		told: map[netns.Kind]told{}, dueAt: map[netns.Kind]time.Time{}, right: map[netns.Kind]time.Time{}, episodes: map[string]*episode{}}
}

// followHost mends what others change of ours, and applies again when something
// changed that the plan depends on, the hub list among it, when an apply failed and when
// the netmap grows too old.
func (a *Agent) followHost(ctx context.Context) error {
	r := a.repairs
	watch, err := a.host.Watch(ctx)
	if err != nil {
		a.log.Warn().Err(err).Msg("the host's network is looked at now and then alone")
	}
	blind := err != nil
	noted := make(chan struct{}, 1)
	if watch != nil {
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { // the loop below may be busy, and it matters when a change was told
			for {
				select {
				case <-ctx.Done():
					return
				case l, ok := <-watch:
					if !ok {
						return
					}
					r.note(l)
				}
				select {
				case noted <- struct{}{}:
				default:
				}
			}
		})
	}
	age, look, all, blocked, firewall := time.NewTicker(tick), time.NewTicker(lookEvery), time.NewTicker(lookAtAll), time.NewTicker(blockedTick), time.NewTicker(firewallTick)
	defer age.Stop()
	defer look.Stop()
	defer all.Stop()
	defer blocked.Stop()
	defer firewall.Stop()
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
		case <-a.wallDue:
			a.reapply(ctx)
		case <-look.C:
			a.time()
			a.board.Set(condClock, a.clock.Note())
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
			a.lookAtRules()
		case reply := <-r.asked:
			r.mu.Lock()
			r.machine.Asked()
			r.mu.Unlock()
			reply <- r.look(ctx, netns.Kinds...)
		case <-age.C:
			a.confirm(false)
			stored := !a.board.OK(condState) && a.saveAgain() // the hub was told that it is not
			a.mu.Lock()
			again := stored || len(a.errs) > 0 || a.expiredLocked() != a.expired
			held, revoked := a.held != nil, a.held != nil && a.held.Revoked
			a.mu.Unlock()
			a.board.Set(condNetmap, a.netmapCause(held, revoked))
			if again {
				a.reapply(ctx)
			}
		case <-firewall.C: // rules of others are too many to look at each change
			a.askFirewall()
		case <-blocked.C:
			a.takeNameBack(ctx)
			a.findPins(ctx)
			a.countPassing(ctx, time.Now())
			if !a.board.OK(condFirewall) {
				a.askFirewall()
			}
		}
	}
}

// ask has everything that is not as planned mended, what was given up too.
func (r *repairs) ask(ctx context.Context) debug.RepairResult {
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

// note takes what the kernel told.
func (r *repairs) note(l []netns.Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for _, c := range l {
		r.machine.Touched(now, func(subject string) bool { e := r.episodes[subject]; return e != nil && e.kind == c.Kind })
		r.lateWord(c, now)
		t, ok := r.told[c.Kind]
		if !ok {
			t = told{Change: c}
			t.rx, t.tx = r.a.traffic()
		}
		if c.By != "" {
			t.By = c.By
		}
		r.told[c.Kind] = t
		if _, ok := r.dueAt[c.Kind]; !ok && r.worthALook(c.Kind, now) {
			r.dueAt[c.Kind] = now.Add(settle)
		}
	}
}

// lateWord names who did what was seen and mended before the kernel's word of it had
// come. r.mu is held.
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
// of it that is known to differ was given up. r.mu is held.
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
	r.mu.Lock()
	defer r.mu.Unlock()
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
	r.mu.Lock()
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
	r.mu.Unlock()
	if len(kinds) > 0 {
		r.look(ctx, kinds...)
	}
	if slices.Contains(kinds, netns.Sysctls) {
		r.lookAtUses(ctx)
	}
	if slices.Contains(kinds, netns.Rules) {
		r.a.lookAtRules()
	}
	if again {
		r.a.reapply(ctx)
	}
}

// lookAtUses has all applied again, soon, when the host is used otherwise than planned: when
// somebody else turned forwarding on or off, or has sources checked strictly.
func (r *repairs) lookAtUses(ctx context.Context) {
	r.a.mu.Lock()
	planned := r.a.plan.Config
	r.a.mu.Unlock()
	if planned.Interface == "" {
		return
	}
	if now, err := r.a.host.Uses(ctx, planned); err == nil && !now.Equal(planned.Uses) {
		r.mu.Lock()
		r.dueAt[netns.Other] = time.Now()
		r.mu.Unlock()
	}
}

// first looks at what the kernel told of, before everything is applied anew: what
// others did is mended as such, and known, not silently.
func (r *repairs) first(ctx context.Context) {
	var kinds []netns.Kind
	r.mu.Lock()
	for k := range r.told {
		if k != netns.Other && r.worthALook(k, time.Now()) {
			kinds = append(kinds, k)
		}
	}
	r.mu.Unlock()
	if len(kinds) > 0 {
		r.mu.Lock()
		r.lookLocked(ctx, kinds)
		r.mu.Unlock()
	}
}

// look finds what differs from the plan and mends what may be mended now.
func (r *repairs) look(ctx context.Context, kinds ...netns.Kind) debug.RepairResult {
	r.mu.Lock()
	res, failed := r.lookLocked(ctx, kinds)
	r.mu.Unlock()
	if failed || len(res.Mended) > 0 && r.a.hasErrors() {
		r.a.reapply(ctx) // which tells what is not as it should be
	}
	return res
}

// why is what of an error concerns a drift; nil: it was mended.
func why(err error, d netns.Drift) error {
	var f netns.Failures
	if !errors.As(err, &f) {
		return err
	}
	var of netns.Failures
	for _, x := range f {
		switch {
		case x.Kind != d.Kind:
		case d.Kind == netns.Sysctls && x.Line != "" && !strings.Contains(x.Line, " "+d.Subject+"="):
		default:
			of = append(of, x)
		}
	}
	if len(of) == 0 {
		return nil
	}
	return of
}

// lookLocked is look; failed says that something could not be put back. r.mu is held.
func (r *repairs) lookLocked(ctx context.Context, kinds []netns.Kind) (res debug.RepairResult, failed bool) {
	res.Mended, res.Stopped = []string{}, []string{}
	a := r.a
	if !slices.Contains(kinds, netns.Link) { // Drift always looks at it
		kinds = append(slices.Clone(kinds), netns.Link)
	}
	a.applyMu.Lock()
	begun := time.Now()
	r.takeSilent(begun) // of an apply that has just ended, while it is known who did it
	drifts, err := a.host.Drift(ctx, kinds...)
	var unread netns.Failures
	if err != nil {
		some := errors.As(err, &unread) && ctx.Err() == nil
		r.unread(ctx, kinds, err, unread, begun)
		res.Error = err.Error()
		// What cannot be compared may be gone: to apply it says so, and takes peers away that
		// nothing stands against.
		failed = ctx.Err() == nil && r.other.Allow()
		if !some {
			a.applyMu.Unlock()
			return res, failed
		}
	}
	rx, tx := a.traffic()
	var mend []netns.Drift
	for _, d := range drifts {
		e := r.found(d, begun, rx, tx)
		at, ok := r.machine.Due(d.Subject, begun)
		switch {
		case !ok:
			r.stop(d.Subject, e)
			res.Stopped = append(res.Stopped, d.Subject)
		case at.After(begun):
			r.dueAt[d.Kind] = at
		default:
			mend = append(mend, d)
		}
	}
	if len(mend) > 0 {
		err = r.mend(ctx, mend)
	}
	a.applyMu.Unlock()
	now := time.Now()
	rx, tx = a.traffic()
	for _, d := range mend {
		if err := why(err, d); err != nil {
			r.machine.Failed(d.Subject, now)
			r.failed(d, err)
			r.dueAt[d.Kind] = now // when it is due is asked again
			if at, ok := r.machine.Due(d.Subject, now); ok {
				r.dueAt[d.Kind] = at
			}
			res.Error, failed = err.Error(), true
			continue
		}
		r.machine.Mended(d.Subject, now)
		r.mended(d, now, rx, tx)
		res.Mended = append(res.Mended, d.Subject)
	}
	a.tunnel.SetInterface(!slices.ContainsFunc(drifts, func(d netns.Drift) bool {
		return d.Kind == netns.Link && !slices.Contains(res.Mended, d.Subject)
	}))
	r.looked(kinds, drifts, unread, begun, rx, tx)
	r.guard(now)
	r.tell()
	return res, failed
}

// unread notes that the host cannot be compared with the plan. r.mu is held.
func (r *repairs) unread(ctx context.Context, kinds []netns.Kind, err error, unread netns.Failures, begun time.Time) {
	if ctx.Err() == nil {
		r.a.log.Warn().Err(err).Msg("the host's network cannot be compared with the plan")
	}
	for _, k := range kinds {
		if _, ok := r.dueAt[k]; ok && (len(unread) == 0 || ctx.Err() != nil || len(unread.Of(k)) > 0) {
			r.dueAt[k] = begun.Add(lookEvery)
		}
	}
}

// looked ends what drifts of kinds that were looked at do not show any more. r.mu is held.
func (r *repairs) looked(kinds []netns.Kind, drifts []netns.Drift, unread netns.Failures, begun time.Time, rx, tx uint64) {
	// What needs a link that is missing was not looked at.
	linkGone := slices.ContainsFunc(drifts, func(d netns.Drift) bool { return d.Kind == netns.Link })
	for _, k := range kinds {
		if len(unread.Of(k)) > 0 {
			continue
		}
		differs := slices.ContainsFunc(drifts, func(d netns.Drift) bool { return d.Kind == k })
		if !differs || !r.dueAt[k].After(begun) {
			delete(r.dueAt, k)
			if r.isSilent(k) {
				r.dueAt[k] = begun.Add(ripe)
			} else {
				delete(r.told, k)
			}
		}
		if linkGone && k != netns.Link && k != netns.Nftables && k != netns.Sysctls {
			continue
		}
		if !differs {
			r.right[k] = begun
		}
		for subject, e := range r.episodes {
			if e.kind == k && !slices.ContainsFunc(drifts, func(d netns.Drift) bool { return d.Subject == subject }) {
				r.isRight(subject, e, begun, rx, tx)
			}
		}
	}
}

// isRight notes that a subject was found as planned. r.mu is held.
func (r *repairs) isRight(subject string, e *episode, now time.Time, rx, tx uint64) {
	switch {
	case e.drifting && e.failure != "" && r.a.hasErrors(): // known, and no drift of others any more
	case r.foughtOver(subject, now):
		e.drifting = false // till it is undone again
	case e.drifting:
		r.machine.Right(subject)
		r.over(subject, e, now, rx, tx, "it was put back without the agent, or with a change of the netmap")
	case e.stopped:
		r.over(subject, e, e.mended, rx, tx, "put back as planned, and left alone")
	case now.Sub(e.mended) > repair.Calm:
		delete(r.episodes, subject)
	}
}

// mend puts drifts back. applyMu is held.
func (r *repairs) mend(ctx context.Context, l []netns.Drift) error {
	if !slices.ContainsFunc(l, func(d netns.Drift) bool { return d.Kind == netns.Link }) {
		return r.a.host.Mend(ctx, l)
	}
	made, err := r.a.tunnel.Reattach()
	if made {
		// The session's socket is bound to the device that was.
		defer r.a.redial(errRemade)
	}
	if err != nil {
		return err
	}
	r.a.mu.Lock()
	planned := r.a.plan.Config
	r.a.mu.Unlock()
	if now := r.a.hostConfig(nil, nil, nil); now.Interface == planned.Interface && now.Index == planned.Index {
		return r.a.host.Mend(ctx, l)
	}
	// Another device, or another name while somebody else's link has ours: another plan.
	r.mending = true // what is put right on the way is known
	ack := r.a.apply(ctx)
	r.mending = false
	if len(ack.Errors) > 0 {
		return errors.New(strings.Join(ack.Errors, "; "))
	}
	return nil
}

// hasErrors reports whether the last apply left something undone.
func (a *Agent) hasErrors() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.errs) > 0
}
