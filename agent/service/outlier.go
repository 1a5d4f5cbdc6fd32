package service

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	svc "causeway/netns/service"
)

const (
	// signsPause is between two looks at what backends did with connections.
	signsPause = time.Second
	// failAfter is how many connections in a row a backend has to refuse or to leave without an answer until it is out.
	failAfter = 3
	// answerTime is how long an answer may take: a SYN goes out again after 1 s, and once more by 3 s.
	answerTime = 3 * time.Second
	// outMin is how long a backend is out at first; twice as long each time within relapseTime, up to outMax.
	outMin = 2 * time.Second
	outMax = time.Minute
	// clientTime is how long a client counts as one that uses a backend.
	clientTime = 10 * time.Second
	// signTime is how long what was counted last is known of whom a list leaves out.
	signTime = 2 * time.Minute
	// outShare is the part of a service's usable backends of a family that may be out at one time: a half, and never the last one.
	outShare = 2
)

// Outliers decides which backends take no new connections for a while, by what they did with those of this node's clients. It has no clock
// and no I/O, and is not safe for concurrent use.
//
// A connection that is answered is the end of a row. A client whose connections alone fail, by whatever it does, is to have nobody out
// whom others need: so a row takes two clients, or one that is the only one there.
type Outliers struct {
	of map[svc.Backend]*outlier
}

// outlier is a backend.
type outlier struct {
	clients  map[netip.Addr]*attempts
	answered time.Time // last
	until    time.Time // it is out
	why      string
	times    int // in a row, within relapseTime
}

// attempts are a client's with a backend.
type attempts struct {
	was     svc.Signs
	seen    time.Time // listed
	used    time.Time // had any new
	pending uint64    // that have no answer yet
	since   time.Time // nothing of this client's was answered or refused
	refused uint64    // in a row, as the next
	silent  uint64
}

// Failed are connections that failed since the last look.
type Failed struct{ Refused, Unanswered uint64 }

// Take takes what was counted by now. It returns what failed since, and who is out from now on.
func (o *Outliers) Take(now time.Time, signs map[svc.Sign]svc.Signs) (failed map[svc.Backend]Failed, out []svc.Backend) {
	if o.of == nil {
		o.of = map[svc.Backend]*outlier{}
	}
	failed = map[svc.Backend]Failed{}
	for s, n := range signs {
		b := o.of[s.Backend]
		if b == nil {
			b = &outlier{clients: map[netip.Addr]*attempts{}}
			o.of[s.Backend] = b
		}
		a := b.clients[s.Client]
		if a == nil {
			a = &attempts{}
			b.clients[s.Client] = a
		}
		tried, answered, refused := more(a.was.Tried, n.Tried), more(a.was.Answered, n.Answered), more(a.was.Refused, n.Refused)
		a.was, a.seen = n, now
		if tried+answered+refused > 0 {
			a.used = now
		}
		if answered > 0 {
			b.answered = now
		}
		if a.pending == 0 || answered+refused > 0 {
			a.since = now
		}
		a.pending = a.pending + tried - min(a.pending+tried, answered+refused)
		a.refused += refused
		if refused > 0 {
			f := failed[s.Backend]
			f.Refused += refused
			failed[s.Backend] = f
		}
	}
	for key, b := range o.of {
		if b.answered.Equal(now) {
			b.endRow()
		}
		for c, a := range b.clients {
			if a.pending > 0 && now.Sub(a.since) >= answerTime {
				f := failed[key]
				f.Unanswered += a.pending
				failed[key] = f
				if b.answered.Before(a.since) {
					a.silent += a.pending
				}
				a.pending = 0
			}
			if now.Sub(a.seen) > signTime {
				delete(b.clients, c)
			}
		}
		if b.judge(now) {
			out = append(out, key)
		}
		if len(b.clients) == 0 && now.Sub(b.until) > relapseTime {
			delete(o.of, key)
		}
	}
	return failed, out
}

// more is how much was counted since. Who counts less has begun anew.
func more(was, is uint64) uint64 {
	if is < was {
		return is
	}
	return is - was
}

// endRow has each client's row begin anew.
func (b *outlier) endRow() {
	for _, a := range b.clients {
		a.refused, a.silent = 0, 0
	}
}

// judge reports whether a backend is out from now on.
func (b *outlier) judge(now time.Time) bool {
	if now.Before(b.until) {
		b.endRow() // what began before is none of what comes after
		return false
	}
	users, failing := 0, 0
	var refused, silent uint64
	for _, a := range b.clients {
		if now.Sub(a.used) <= clientTime || a.pending+a.refused+a.silent > 0 {
			users++
		}
		if a.refused+a.silent > 0 {
			failing++
		}
		refused, silent = refused+a.refused, silent+a.silent
	}
	if refused+silent < failAfter || failing < 2 && users > 1 {
		return false
	}
	if now.Sub(b.until) > relapseTime {
		b.times = 0
	}
	b.times++
	b.until = now.Add(min(outMax, outMin<<min(b.times-1, 10)))
	b.why = fmt.Sprintf("it refused %d connections in a row", refused)
	if refused == 0 {
		b.why = fmt.Sprintf("it left %d connections in a row without an answer", silent)
	} else if silent > 0 {
		b.why = fmt.Sprintf("it refused %d connections in a row, or left them without an answer", refused+silent)
	}
	b.endRow()
	return true
}

// Out says why a backend is out, and until when; empty: it is not.
func (o *Outliers) Out(now time.Time, x svc.Backend) (why string, until time.Time) {
	if b := o.of[x]; b != nil && now.Before(b.until) {
		return b.why, b.until
	}
	return "", time.Time{}
}

// Count is how many are out.
func (o *Outliers) Count(now time.Time) (n int) {
	for _, b := range o.of {
		if now.Before(b.until) {
			n++
		}
	}
	return n
}

// eject takes those of a service's usable endpoints that are out, as far as the cap allows, those first that are first in the list.
func (p *placed) eject(s sight) {
	if s.out == nil {
		return
	}
	for i := range p.families {
		room := 0
		for _, e := range p.families[i].of {
			if e.state.Use {
				room++
			}
		}
		room /= outShare
		for _, e := range p.families[i].of {
			why := ""
			for _, b := range p.backends(e) {
				why = cmp.Or(why, s.out(b))
			}
			switch {
			case !e.state.Use || why == "":
			case room > 0:
				room--
				e.state.Use, e.state.Why, e.state.Out = false, why, true
			default:
				e.state.Why = why + ", and is used all the same: no more of its service may be out"
			}
		}
	}
}

// watchSigns looks what backends did, now and then, until ctx ends.
func (e *Engine) watchSigns(ctx context.Context) {
	tick := time.NewTicker(signsPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		signs, err := e.cfg.Table.Signs(ctx)
		if err != nil {
			continue // the table is written anew at the moment
		}
		select {
		case <-ctx.Done():
			return
		case e.signs <- signs:
		}
	}
}

// takeSigns takes what was counted, and reports whether anybody is out, or is not any more.
func (e *Engine) takeSigns(now time.Time, signs map[svc.Sign]svc.Signs) (changed bool) {
	failed, out := e.outliers.Take(now, signs)
	for i, p := range e.placed {
		for _, x := range p.endpoints {
			for _, b := range p.backends(x) {
				if n, some := failed[b]; some && i < maxSeries {
					e.count.failed.WithLabelValues(p.Name, x.Site, "refused").Add(float64(n.Refused))
					e.count.failed.WithLabelValues(p.Name, x.Site, "unanswered").Add(float64(n.Unanswered))
				}
				if slices.Contains(out, b) {
					why, until := e.outliers.Out(now, b)
					e.cfg.Log.Warn().Str("service", p.Name).Stringer("addr", b.Addr).Str("cause", why).Dur("retry_in", until.Sub(now)).Msg("a backend of a service is to take no new connections for a while")
				}
			}
		}
	}
	n := e.outliers.Count(now)
	changed = len(out) > 0 || n != e.outs
	e.outs = n
	return changed
}
