package probe

import (
	"fmt"
	"math"
	"time"

	"causeway/protocol"
)

// A path whose probes are answered may carry no data all the same: a filter knows
// WireGuard's messages by their first bytes, their size, their rate or one 5-tuple. So both
// ends count WireGuard's messages on each path, answers say what arrived (and a hub what it
// sent), and what was sent before a question is compared with what had arrived before its
// answer. A path on which a class of messages is sent and none of it arrives is suspect.
const (
	// starvedLost of a class have to be lost in a row, in at least starvedIn intervals
	// between answers and over starvedFor: a burst that was lost as one is no evidence.
	starvedLost = 5
	starvedIn   = 2
	starvedFor  = 600 * time.Millisecond
	// lastOfIt is how many count at most of those that were lost beside some that arrived: when a
	// filter comes, much of what is under way is lost, and TCP sends little after that.
	lastOfIt = 2
	// chanceAtMost is the logarithm of the chance at which ordinary loss, that of probes, of what was
	// sent before and of classes that arrive meanwhile, may lose as many in a row.
	chanceAtMost = -6.0
	// ordinaryUntil is how long before the end of the first interval in which nothing arrived loss
	// was ordinary: the interval before has some of what was lost.
	ordinaryUntil = time.Second

	// A suspect path is left alone for suspectFirst, which doubles each time, up to
	// suspectMost. What goes well for forgiveAfter starts over.
	suspectFirst = 30 * time.Second
	suspectMost  = 30 * time.Minute
	forgiveAfter = 10 * time.Minute
	suspectShown = 10 * time.Second // after that time, until it is known whether it carries again

	// toldFor is how long the other end's word counts that it left a path: it says so in each
	// question, one a second.
	toldFor = 3 * time.Second

	// overrunFor is how long counts say nothing after the receiver's socket had no room.
	overrunFor = 3 * time.Second

	// resetFrom: a count that grew by so much more than was sent began anew.
	resetFrom = 1 << 16
)

// flow compares what went into one direction of a path with what came out of it. The zero
// value has compared nothing.
type flow struct {
	known     bool
	sent, got protocol.DataCounts // at the last comparison
	large     uint32              // likewise
	class     [protocol.DataClasses]starving
	last      [protocol.DataClasses]time.Time // end of the last interval in which something arrived
	arrived   uint32                          // handshakes
	window    window
}

// starving is what was lost of a class since anything of it arrived.
type starving struct {
	lost, intervals int
	since           time.Time // the first interval's end
}

// compare takes the counts of another moment. What is lost of the largest class says nothing where large
// has grown: runs were sent that the path does not carry (Route.Stream). blind: there is another reason
// for what did not arrive.
func (f *flow) compare(now time.Time, sent, got protocol.DataCounts, large uint32, blind bool) {
	var in, out [protocol.DataClasses]uint32
	anew := !f.known
	for i := range in {
		in[i], out[i] = (sent[i]-f.sent[i])&protocol.CountMask, (got[i]-f.got[i])&protocol.CountMask
		anew = anew || out[i] > in[i]+resetFrom
	}
	if anew {
		*f = flow{known: true, sent: sent, got: got, large: large, arrived: f.arrived}
		f.window.add(now, sent, got)
		return
	}
	oversize := large != f.large
	f.sent, f.got, f.large, f.arrived = sent, got, large, f.arrived+out[0]
	f.window.add(now, sent, got)
	if oversize {
		f.window.forgive()
		f.class[protocol.DataClasses-1] = starving{}
		in[protocol.DataClasses-1] = out[protocol.DataClasses-1]
	}
	if blind {
		f.class = [protocol.DataClasses]starving{}
		f.window.forgive()
		return
	}
	for i := range in {
		switch c := &f.class[i]; {
		case out[i] > 0:
			*c = starving{}
			f.last[i] = now
			if in[i] > out[i] { // perhaps the last of it
				*c = starving{lost: int(min(in[i]-out[i], lastOfIt)), intervals: 1, since: now}
			}
		case in[i] > 0:
			if c.intervals == 0 {
				c.since = now
			}
			c.lost, c.intervals = c.lost+int(in[i]), c.intervals+1
		}
	}
}

// starved reports whether nothing arrives of one of the classes from from on, or of all of them that
// are sent, and says what of it was lost. probes is the loss of probes.
func (f *flow) starved(now time.Time, from int, probes float64) (lost string, class int, ok bool) {
	var all starving
	for i := from; i < len(f.class); i++ {
		c := f.class[i]
		if c.intervals == 0 {
			continue
		}
		if f.proves(now, c, probes) {
			return fmt.Sprintf("%d %s", c.lost, protocol.DataClassName(i)), i, true
		}
		if all.intervals == 0 || c.since.Before(all.since) {
			all.since = c.since
		}
		all.lost, all.intervals = all.lost+c.lost, max(all.intervals, c.intervals)
	}
	for i := from; i < len(f.class); i++ {
		if f.last[i].After(all.since) {
			return "", 0, false
		}
	}
	return fmt.Sprintf("%d packets of any size", all.lost), len(f.class), f.proves(now, all, probes)
}

// proves reports whether c is no ordinary loss.
func (f *flow) proves(now time.Time, c starving, probes float64) bool {
	if c.lost < starvedLost || c.intervals < starvedIn || now.Sub(c.since) < starvedFor {
		return false
	}
	before := f.window.loss(now.Add(-windowFor), c.since.Add(-ordinaryUntil), every)
	meanwhile := f.window.loss(c.since, now, func(i int) bool { return f.last[i].After(c.since) })
	chance := max(probes, before, meanwhile)
	return chance <= 0 || float64(c.lost) >= chanceAtMost/math.Log10(min(chance, 0.99))
}

// window remembers counts of the last seconds, oldest first.
type window struct{ samples []sample }

type sample struct {
	at        time.Time
	sent, got protocol.DataCounts
}

const (
	windowFor   = 10 * time.Second
	windowEvery = 500 * time.Millisecond // between two samples
)

func (w *window) add(now time.Time, sent, got protocol.DataCounts) {
	s := sample{now, sent, got}
	if n := len(w.samples); n >= 2 && now.Sub(w.samples[n-2].at) < windowEvery {
		w.samples[n-1] = s
	} else {
		w.samples = append(w.samples, s)
	}
	for len(w.samples) > 2 && now.Sub(w.samples[1].at) > windowFor {
		w.samples = append(w.samples[:0], w.samples[1:]...)
	}
}

// forgive makes nothing of what was sent until the last sample lost. What arrived has arrived.
func (w *window) forgive() {
	last := w.samples[len(w.samples)-1]
	for i := range w.samples {
		for c := range protocol.DataClasses {
			w.samples[i].sent[c] = last.sent[c] - (last.got[c] - w.samples[i].got[c])
		}
	}
}

// before is the time of the newest sample that is not after at, or of the first.
func (w *window) before(at time.Time) (t time.Time) {
	for i, s := range w.samples {
		if i == 0 || !s.at.After(at) {
			t = s.at
		}
	}
	return t
}

// since is between until the last sample.
func (w *window) since(at time.Time, wanted func(class int) bool) (sent, got, bytes int, took time.Duration) {
	if len(w.samples) == 0 {
		return 0, 0, 0, 0
	}
	return w.between(at, w.samples[len(w.samples)-1].at, wanted)
}

// between adds up what was sent and what arrived between two moments, of the classes that are
// wanted, and the time that it took; nothing if there are no two samples.
func (w *window) between(from, to time.Time, wanted func(class int) bool) (sent, got, bytes int, took time.Duration) {
	first, last := -1, -1
	for i, s := range w.samples {
		if first < 0 && !s.at.Before(from) {
			first = i
		}
		if !s.at.After(to) {
			last = i
		}
	}
	if first < 0 || last <= first {
		return 0, 0, 0, 0
	}
	a, b := w.samples[first], w.samples[last]
	for i := range protocol.DataClasses {
		if wanted(i) {
			g := int((b.got[i] - a.got[i]) & protocol.CountMask)
			sent, got = sent+int((b.sent[i]-a.sent[i])&protocol.CountMask), got+g
			bytes += g * [protocol.DataClasses]int{148, 100, 600, 1400}[i]
		}
	}
	return sent, got, bytes, b.at.Sub(a.at)
}

// loss is the part of the messages between two moments that did not arrive.
func (w *window) loss(from, to time.Time, wanted func(class int) bool) float64 {
	sent, got, _, _ := w.between(from, to, wanted)
	return max(0, lossOf(sent, got))
}

// suspicion is why a path that answers is not used. The zero value is none.
type suspicion struct {
	why   string
	since time.Time
	until time.Time
	times int
	// handshake is the direction in which handshakes did not arrive: they are rare, so that the path
	// stays suspect until one has. Copies go over every path that answers.
	handshake *flow
}

// accused reports whether the path is left alone by what was found here.
func (p *path) accused(now time.Time) bool {
	return now.Before(p.doubt.until) || p.doubt.handshake != nil
}

// suspect reports whether the path is left alone because it carries no data, or little.
func (p *path) suspect(now time.Time) bool {
	return p.accused(now) || now.Before(p.resting) || now.Before(p.told)
}

// whyLeft says for a person why a path is suspect.
func (p *path) whyLeft(now time.Time) string {
	switch {
	case p.accused(now):
		return p.doubt.why
	case now.Before(p.told):
		return "the other end says that nothing of what it sent over it arrived"
	}
	return "much of what was sent over it was lost, and another path is tried"
}

// accuse makes p suspect. What happens while it is adds no doubling.
func (p *path) accuse(now time.Time, why string) {
	d := &p.doubt
	already := now.Before(d.until) || d.handshake != nil
	switch {
	case already:
	case d.times > 0 && now.Sub(d.until) >= forgiveAfter:
		*d = suspicion{since: now, times: 1}
	default:
		d.since = now
		d.times++
	}
	d.why = why
	d.until = now.Add(min(suspectFirst<<min(d.times-1, 10), suspectMost))
	// Whoever accuses it again brings new evidence.
	p.out.class, p.in.class = [protocol.DataClasses]starving{}, [protocol.DataClasses]starving{}
}

// judgeData looks whether the path carries what is sent over it, from a class on.
func (p *path) judgeData(now time.Time, from int) {
	if p.stream {
		return // TCP brings all that it took
	}
	if f := p.doubt.handshake; f != nil && f.arrived > 0 {
		p.doubt.handshake = nil
	}
	probes := p.loss(now)
	if lost, class, ok := p.out.starved(now, from, probes); ok {
		p.accuse(now, fmt.Sprintf("probes are answered over it, but of the last %s that were sent none arrived", lost))
		p.needHandshake(&p.out, class)
	} else if lost, class, ok := p.in.starved(now, from, probes); ok {
		p.accuse(now, fmt.Sprintf("probes are answered over it, but of the last %s that the hub sent none arrived here", lost))
		p.needHandshake(&p.in, class)
	}
}

func (p *path) needHandshake(f *flow, class int) {
	if class == 0 {
		f.arrived, p.doubt.handshake = 0, f
	}
}
