package agent

import (
	"context"
	"errors"
	"fmt"
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

// episode is an incident of a subject, and how it stands.
type episode struct {
	kind      netns.Kind
	number    uint64
	drifting  bool
	stopped   bool      // given up, or fought over
	since     time.Time // of the drift that lasts
	about     bool      // since is when it was last seen right
	by        string
	rx, tx    uint64 // of the tunnel, then
	mended    time.Time
	failure   string // why it cannot be put back
	repairs   int
	first     time.Time
	sumLength time.Duration
	sumRx     uint64
	sumTx     uint64
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

// found notes that a subject is not as planned.
func (r *repairs) found(d netns.Drift, now time.Time, rx, tx uint64) *episode {
	e := r.episodes[d.Subject]
	t, eventful := r.told[d.Kind]
	if e != nil && e.drifting {
		if t.By != "" {
			e.by = t.By
		}
		return e
	}
	again := e != nil && now.Sub(e.mended) <= repair.Calm
	fight := again && e.stopped // its incident says so, and lasts
	if !again {
		e = &episode{kind: d.Kind}
		r.episodes[d.Subject] = e
	}
	e.drifting, e.stopped, e.since, e.about, e.rx, e.tx = true, fight, now, false, rx, tx
	switch {
	case eventful:
		e.since, e.rx, e.tx = t.At, t.rx, t.tx
	case !r.right[d.Kind].IsZero():
		e.since, e.about = r.right[d.Kind], true
	}
	if again && e.since.Before(e.mended) {
		e.since = e.mended
	}
	if e.since.After(now) {
		e.since = now
	}
	if t.By != "" || !again {
		e.by = t.By
	}
	if fight {
		return e
	}
	lines := driftLines(d)
	r.a.log.Warn().Str("subject", d.Subject).Strs("found", lines).Str("by", e.by).Msg("found changed on the host")
	if again {
		r.change(e, func(i *protocol.Incident) {
			i.State, i.Until, i.Found, i.Reason = protocol.IncidentOpen, time.Time{}, lines, e.reason()
		})
		return e
	}
	e.first = e.since
	number, err := r.log.Begin(protocol.Incident{Subject: d.Subject, Since: e.since.UTC(), Found: lines, Reason: e.reason(), Action: "it is about to be put back"})
	r.kept(err)
	e.number = number
	return e
}

func (r *repairs) kept(err error) {
	if err != nil {
		r.a.log.Warn().Err(err).Msg("an incident is kept in memory alone")
	}
}

func (r *repairs) change(e *episode, f func(*protocol.Incident)) {
	r.kept(r.log.Change(e.number, f))
}

func driftLines(d netns.Drift) (out []string) {
	for _, l := range d.Missing {
		out = append(out, "- "+l)
	}
	for _, l := range d.Extra {
		out = append(out, "+ "+l)
	}
	return out
}

// reason words who changed a subject.
func (e *episode) reason() string {
	if e.by == "" {
		return "another program changed it; the kernel does not tell which"
	}
	return "changed by " + e.by
}

// mended notes a repair.
func (r *repairs) mended(d netns.Drift, now time.Time, rx, tx uint64) {
	e := r.episodes[d.Subject]
	e.repairs++
	r.a.metrics.mended(string(d.Kind))
	if r.foughtOver(d.Subject, now) {
		e.add(now, rx, tx)
		e.drifting, e.failure, e.mended = false, "", now
		r.stop(d.Subject, e)
		return
	}
	r.over(d.Subject, e, now, rx, tx, "put back as planned")
}

// add counts a drift that is over.
func (e *episode) add(now time.Time, rx, tx uint64) {
	e.sumLength += max(0, now.Sub(e.since))
	e.sumRx, e.sumTx = e.sumRx+rx-min(rx, e.rx), e.sumTx+tx-min(tx, e.tx)
}

// over closes an episode's incident.
func (r *repairs) over(subject string, e *episode, now time.Time, rx, tx uint64, action string) {
	if e.drifting {
		e.add(now, rx, tx)
	}
	e.drifting, e.stopped, e.failure, e.mended = false, false, "", now
	if e.repairs > 1 {
		action = fmt.Sprintf("%s, %d times", action, e.repairs)
	}
	r.a.log.Info().Str("subject", subject).Dur("lasted", now.Sub(e.since)).Int("repairs", e.repairs).Msg("the host is as planned again")
	r.change(e, func(i *protocol.Incident) {
		i.State, i.Until, i.Action, i.Repairs = protocol.IncidentOver, now.UTC(), action, e.repairs
		i.Seconds, i.RxBytes, i.TxBytes = e.sumLength.Seconds(), e.sumRx, e.sumTx
		i.Felt = felt(e.kind, subject, e)
	})
}

func (r *repairs) failed(d netns.Drift, err error) {
	e := r.episodes[d.Subject]
	if e.failure == err.Error() {
		return
	}
	e.failure = err.Error()
	r.a.log.Warn().Err(err).Str("subject", d.Subject).Msg("a repair did not work, it is tried again and again")
	r.change(r.episodes[d.Subject], func(i *protocol.Incident) { i.Action = "it cannot be put back: " + err.Error() })
}

// stop gives a subject up, or goes on with it now and then.
func (r *repairs) stop(subject string, e *episode) {
	if e.stopped {
		return
	}
	e.stopped = true
	r.a.metrics.gaveUp(string(e.kind))
	r.a.log.Error().Str("subject", subject).Int("repairs", e.repairs).Str("by", e.by).Msg("something is changed again and again: find who does that, then run 'causeway-agent repair'")
	r.change(e, func(i *protocol.Incident) {
		i.State, i.Until, i.Repairs, i.Reason = protocol.IncidentStopped, time.Time{}, e.repairs, e.reason()
		i.Action = fmt.Sprintf("put back %d times in %s, each time undone; %s: find who does that, then run 'causeway-agent repair' on the node", e.repairs, time.Since(e.first).Round(time.Second), goesOn(subject))
		i.Felt = "it lasts: " + means(e.kind, subject)
	})
}

// tell sets the condition.
func (r *repairs) tell() {
	var l, failed []string
	for subject, e := range r.episodes {
		if e.drifting && e.failure != "" {
			failed = append(failed, fmt.Sprintf("%s: it cannot be put back: %s", subject, e.failure))
		} else if e.stopped {
			who := e.by
			if who == "" {
				who = "another program, which one the kernel does not tell"
			}
			l = append(l, fmt.Sprintf("%s: changed again and again by %s; put back %d times %s", subject, who, e.repairs, goesOn(subject)))
		}
	}
	slices.Sort(l)
	slices.Sort(failed)
	if len(l) > 0 {
		l[len(l)-1] += "; find who does that, then run 'causeway-agent repair' on the node"
	}
	r.a.board.Set(condRepair, strings.Join(append(failed, l...), "; "))
}

// felt words what a drift that is over meant.
func felt(k netns.Kind, subject string, e *episode) string {
	length := fmt.Sprintf("%.2f s", e.sumLength.Seconds())
	if e.about {
		length = "up to " + length + ", since when is not known exactly"
	}
	carried := fmt.Sprintf("the tunnel sent %d and received %d bytes meanwhile", e.sumTx, e.sumRx)
	if k == netns.Link {
		carried = fmt.Sprintf("%d bytes that came from other nodes meanwhile reached nobody", e.sumRx)
	}
	return "for " + length + ": " + means(k, subject) + "; " + carried
}

// means says what it means that a subject is not as planned.
func means(k netns.Kind, subject string) string {
	switch k {
	case netns.Link:
		return "no packet to or from other sites passed"
	case netns.Addresses:
		return "the node itself was not reached at its overlay address; pods were, if their routes stayed"
	case netns.Routes, netns.Rules:
		return "packets to other sites may have taken the host's own routes; those from there still arrived"
	case netns.Nftables:
		return "new connections may have begun with segments too large for the path, or with pods' addresses rewritten by other tools; those that stood went on. Others than the agent on this host could reach the hub's ports in the overlay, which take nobody without proof"
	}
	switch {
	case strings.HasSuffix(subject, "forward"), strings.HasSuffix(subject, "forwarding"):
		return "pods reached no other site and were reached by none; the node itself did"
	case strings.HasSuffix(subject, "rp_filter"), strings.HasSuffix(subject, "src_valid_mark"):
		return "the kernel may have dropped packets whose way back it takes for another"
	}
	return "it matters only while no agent runs"
}

// sessionLost is how long a control session may be missing without being an incident: a
// hub's restart is shorter.
const sessionLost = 3 * time.Second

// followSession makes incidents of times without a control session.
func (a *Agent) followSession(ctx context.Context) error {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	var number, rx, tx uint64
	var had bool // there was a session in this run
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		l := a.board.List()
		i := slices.IndexFunc(l, func(c protocol.Condition) bool { return c.Name == condControl })
		c := l[i]
		switch {
		case c.OK && number != 0:
			nrx, ntx := a.traffic()
			err := a.repairs.log.Change(number, func(i *protocol.Incident) {
				i.State, i.Until, i.Action, i.Seconds = protocol.IncidentOver, c.Since, "dialled the hub until it answered", max(0, c.Since.Sub(since).Seconds())
				i.RxBytes, i.TxBytes = nrx-min(nrx, rx), ntx-min(ntx, tx)
				i.Felt = fmt.Sprintf("for %.1f s: the node heard of no change and could not be looked at; paths that were up went on: the tunnel sent %d and received %d bytes meanwhile", i.Seconds, i.TxBytes, i.RxBytes)
			})
			a.repairs.kept(err)
			number = 0
		case c.OK:
			had = true
			rx, tx = a.traffic()
		case had && number == 0 && time.Since(c.Since) >= sessionLost:
			since = c.Since
			n, err := a.repairs.log.Begin(protocol.Incident{Subject: condControl, Since: since, Found: []string{"no control session with a hub"}, Reason: a.whyNoSession(l), Action: "the hub is dialled again and again"})
			a.repairs.kept(err)
			number = n
		}
	}
}

// whyNoSession is the cause of the condition that the session depends on, if that fails too.
func (a *Agent) whyNoSession(l []protocol.Condition) string {
	for _, name := range []string{condTunnel, condHub, condControl} {
		for _, c := range l {
			if c.Name == name && !c.OK {
				return c.Name + ": " + c.Cause
			}
		}
	}
	return "not known"
}
