package onhost

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"causeway/agent/debug"
	"causeway/agent/repair"
	"causeway/netns"
)

// look finds what differs from the plan and mends what may be mended now. Keeper.mu is not held.
func (r *repairs) look(ctx context.Context, kinds ...netns.Kind) debug.RepairResult {
	r.k.mu.Lock()
	res, failed := r.lookLocked(ctx, kinds)
	again := failed || len(res.Mended) > 0 && r.k.hasErrors()
	r.k.mu.Unlock()
	if again {
		r.k.Reapply(ctx) // which tells what is not as it should be
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

// lookLocked is look; failed says that something could not be put back.
func (r *repairs) lookLocked(ctx context.Context, kinds []netns.Kind) (res debug.RepairResult, failed bool) {
	res.Mended, res.Stopped = []string{}, []string{}
	k := r.k
	if !slices.Contains(kinds, netns.Link) { // Drift always looks at it
		kinds = append(slices.Clone(kinds), netns.Link)
	}
	r.drain()
	begun := time.Now()
	r.takeSilent(begun) // of an apply that has just ended, while it is known who did it
	drifts, err := k.host.Drift(ctx, kinds...)
	var unread netns.Failures
	if err != nil {
		some := errors.As(err, &unread) && ctx.Err() == nil
		r.unread(ctx, kinds, err, unread, begun)
		res.Error = err.Error()
		// What cannot be compared may be gone: to apply it says so, and takes peers away that
		// nothing stands against.
		failed = ctx.Err() == nil && r.other.Allow()
		if !some {
			return res, failed
		}
	}
	rx, tx := k.traffic()
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
	now := time.Now()
	rx, tx = k.traffic()
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
	k.tunnel.SetInterface(!slices.ContainsFunc(drifts, func(d netns.Drift) bool {
		return d.Kind == netns.Link && !slices.Contains(res.Mended, d.Subject)
	}))
	r.looked(kinds, drifts, unread, begun, rx, tx)
	r.guard(now)
	r.tell()
	return res, failed
}

// unread notes that the host cannot be compared with the plan.
func (r *repairs) unread(ctx context.Context, kinds []netns.Kind, err error, unread netns.Failures, begun time.Time) {
	if ctx.Err() == nil {
		r.k.log.Warn().Err(err).Msg("the host's network cannot be compared with the plan")
	}
	for _, k := range kinds {
		if _, ok := r.dueAt[k]; ok && (len(unread) == 0 || ctx.Err() != nil || len(unread.Of(k)) > 0) {
			r.dueAt[k] = begun.Add(lookEvery)
		}
	}
}

// looked ends what drifts of kinds that were looked at do not show any more.
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
		if linkGone && k != netns.Link && k != netns.Nftables && k != netns.Sysctls && k != netns.Parts {
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

// isRight notes that a subject was found as planned.
func (r *repairs) isRight(subject string, e *episode, now time.Time, rx, tx uint64) {
	switch {
	case e.drifting && e.failure != "" && r.k.hasErrors(): // known, and no drift of others any more
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

// mend puts drifts back.
func (r *repairs) mend(ctx context.Context, l []netns.Drift) error {
	if !slices.ContainsFunc(l, func(d netns.Drift) bool { return d.Kind == netns.Link }) {
		return r.k.host.Mend(ctx, l)
	}
	made, err := r.k.tunnel.Reattach()
	if made {
		defer r.k.tellRemade()
	}
	if err != nil {
		return err
	}
	planned := r.k.Facts().Plan.Config
	if now := r.k.hostConfig(nil, nil, nil); now.Interface == planned.Interface && now.Index == planned.Index {
		return r.k.host.Mend(ctx, l)
	}
	// Another device, or another name while somebody else's link has ours: another plan.
	r.mending = true // what is put right on the way is known
	ack := r.k.apply(ctx)
	r.mending = false
	if len(ack.Errors) > 0 {
		return errors.New(strings.Join(ack.Errors, "; "))
	}
	return nil
}

// hasErrors reports whether the last apply left something undone.
func (k *Keeper) hasErrors() bool {
	return len(k.Facts().Errors) > 0
}
