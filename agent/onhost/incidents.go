package onhost

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"causeway/agent/health"
	"causeway/agent/repair"
	"causeway/netns"
	"causeway/protocol"
)

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
	r.k.log.Warn().Str("subject", d.Subject).Strs("found", lines).Str("by", e.by).Msg("found changed on the host")
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
		r.k.log.Warn().Err(err).Msg("an incident is kept in memory alone")
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
	r.countMended(string(d.Kind))
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
	r.k.log.Info().Str("subject", subject).Dur("lasted", now.Sub(e.since)).Int("repairs", e.repairs).Msg("the host is as planned again")
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
	r.k.log.Warn().Err(err).Str("subject", d.Subject).Msg("a repair did not work, it is tried again and again")
	r.change(r.episodes[d.Subject], func(i *protocol.Incident) { i.Action = "it cannot be put back: " + err.Error() })
}

// stop gives a subject up, or goes on with it now and then.
func (r *repairs) stop(subject string, e *episode) {
	if e.stopped {
		return
	}
	e.stopped = true
	r.countGaveUp(string(e.kind))
	r.k.log.Error().Str("subject", subject).Int("repairs", e.repairs).Str("by", e.by).Msg("something is changed again and again: find who does that, then run 'causeway-agent repair'")
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
	r.k.board.Set(health.Repair, strings.Join(append(failed, l...), "; "))
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
	case k == netns.Parts:
		return "what was declared and this table enforces was not enforced"
	case strings.HasSuffix(subject, "forward"), strings.HasSuffix(subject, "forwarding"):
		return "pods reached no other site and were reached by none; the node itself did"
	case strings.HasSuffix(subject, "rp_filter"), strings.HasSuffix(subject, "src_valid_mark"):
		return "the kernel may have dropped packets whose way back it takes for another"
	}
	return "it matters only while no agent runs"
}
