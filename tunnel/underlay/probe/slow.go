package probe

import (
	"fmt"
	"time"
)

// A path that loses much of what is sent over it and little of its probes is policed, or
// filtered in part. Whether another one carries more nobody can know without trying: the
// traffic goes over it for trialFor. Back it comes unless the other carried trialGain times as
// much; then the next trial is later, and later.
const (
	slowLoss  = 0.10 // of data, and at least twice that of probes
	slowSent  = 400  // messages, so that chance does not make it of a loss of 5 %
	slowLeast = 4 * time.Second

	trialFor   = 6 * time.Second
	trialLast  = 3 * time.Second // of it that count: TCP has found its rate
	trialGain  = 2
	trialAgain = 2 * time.Minute // after one without gain, doubled each time
	trialMost  = time.Hour
)

// trial is that of the traffic to one peer or hub. The zero value has tried nothing.
type trial struct {
	slow  *path // left for the time of the trial; nil: none is under way
	began time.Time
	rate  float64 // bytes a second that slow carried
	loss  float64
	next  time.Time // not before
	fails int
}

func every(int) bool { return true }

// slow reports whether a flow loses much more than probes do, in both halves of a window, and
// what it carries in the second.
func (f *flow) slow(now time.Time, probes float64) (rate, loss float64, ok bool) {
	most := max(slowLoss, 2*probes)
	for _, d := range []time.Duration{windowFor / 2, windowFor} {
		sent, got, _, took := f.window.since(now.Add(-d), every)
		sent2, got2, bytes, took2 := f.window.since(now.Add(-d/2), every)
		if took < slowLeast || took2 == 0 || sent < slowSent || lossOf(sent-sent2, got-got2) < most || lossOf(sent2, got2) < most {
			continue
		}
		return float64(bytes) / took2.Seconds(), lossOf(sent, got), true
	}
	return 0, 0, false
}

func lossOf(sent, got int) float64 {
	if sent <= 0 {
		return 0
	}
	return 1 - float64(got)/float64(sent)
}

// rate is what a path carried since then, in bytes a second.
func (p *path) rate(since time.Time) (r float64) {
	for _, f := range []*flow{&p.out, &p.in} {
		if _, _, bytes, took := f.window.since(since, every); took > 0 {
			r += float64(bytes) / took.Seconds()
		}
	}
	return r
}

// carried is rate since a moment at which nothing went over the path yet: what was counted before the
// first sample after it counts, too. A transfer may be over by then.
func (p *path) carried(since, now time.Time) (r float64) {
	for _, f := range []*flow{&p.out, &p.in} {
		_, _, bytes, _ := f.window.since(f.window.before(since), every)
		r += float64(bytes) / now.Sub(since).Seconds()
	}
	return r
}

// tryOther begins and ends trials. chosen carries the traffic now; other reports whether
// there is a path that could instead, or has it made.
func (t *trial) tryOther(now time.Time, chosen *path, other func() bool) {
	if s := t.slow; s != nil {
		if now.Sub(t.began) < trialFor {
			return
		}
		t.slow = nil
		if chosen != nil && chosen != s && chosen.alive(now) {
			// A transfer may be over before the trial is.
			if r := max(chosen.rate(now.Add(-trialLast)), chosen.carried(t.began, now)); r >= trialGain*t.rate {
				s.accuse(now, fmt.Sprintf("%.0f %% of what was sent over it were lost and few of its probes: it carried %.1f Mbit/s, another path %.1f", 100*t.loss, t.rate/125000, r/125000))
				t.fails, t.next = 0, time.Time{}
				return
			}
		}
		t.next = now.Add(min(trialAgain<<min(t.fails, 10), trialMost))
		t.fails++
		return
	}
	if chosen == nil || !chosen.alive(now) || chosen.suspect(now) || now.Before(t.next) {
		return
	}
	probes := chosen.loss(now)
	rate, loss, ok := chosen.out.slow(now, probes)
	if !ok {
		rate, loss, ok = chosen.in.slow(now, probes)
	}
	if ok && other() {
		t.slow, t.began, t.rate, t.loss = chosen, now, rate, loss
		chosen.resting = now.Add(trialFor)
	}
}
