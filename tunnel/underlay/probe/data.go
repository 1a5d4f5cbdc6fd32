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
	// chanceAtMost is the logarithm of the chance at which ordinary loss, that of probes and of
	// the other classes, may lose as many in a row.
	chanceAtMost = -6.0

	// A suspect path is left alone for suspectFirst, which doubles each time, up to
	// suspectMost. What goes well for forgiveAfter starts over.
	suspectFirst = 30 * time.Second
	suspectMost  = 30 * time.Minute
	forgiveAfter = 10 * time.Minute
	suspectShown = 10 * time.Second // after that time, until it is known whether it carries again

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
	class     [protocol.DataClasses]starving
	arrived   uint32 // handshakes
	window    window
}

// starving is what was lost of a class since anything of it arrived.
type starving struct {
	lost, intervals int
	since           time.Time // the first interval's end
}

// compare takes the counts of another moment. blind: there is another reason for what
// did not arrive.
func (f *flow) compare(now time.Time, sent, got protocol.DataCounts, blind bool) {
	var in, out [protocol.DataClasses]uint32
	anew := !f.known || blind
	for i := range in {
		in[i], out[i] = (sent[i]-f.sent[i])&protocol.CountMask, (got[i]-f.got[i])&protocol.CountMask
		anew = anew || out[i] > in[i]+resetFrom
	}
	if anew {
		*f = flow{known: true, sent: sent, got: got, arrived: f.arrived}
		f.window.add(now, sent, got)
		return
	}
	f.sent, f.got, f.arrived = sent, got, f.arrived+out[0]
	f.window.add(now, sent, got)
	for i := range in {
		switch c := &f.class[i]; {
		case out[i] > 0:
			*c = starving{}
		case in[i] > 0:
			if c.intervals == 0 {
				c.since = now
			}
			c.lost, c.intervals = c.lost+int(in[i]), c.intervals+1
		}
	}
}

// starved returns the first class from from on of which nothing arrives, and how much was
// lost of it. probes is the loss of probes.
func (f *flow) starved(now time.Time, from int, probes float64) (class, lost int, ok bool) {
	chance := max(probes, f.window.loss(now, func(i int) bool { return f.class[i].lost == 0 }))
	need := float64(starvedLost)
	if chance > 0 {
		need = max(need, chanceAtMost/math.Log10(min(chance, 0.99)))
	}
	for i := from; i < len(f.class); i++ {
		c := f.class[i]
		if float64(c.lost) >= need && c.intervals >= starvedIn && now.Sub(c.since) >= starvedFor {
			return i, c.lost, true
		}
	}
	return 0, 0, false
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

// since adds up what was sent and what arrived from at on, of the classes that are wanted,
// and the time that it took; nothing if there are no two samples.
func (w *window) since(at time.Time, wanted func(class int) bool) (sent, got, bytes int, took time.Duration) {
	first := -1
	for i, s := range w.samples {
		if !s.at.Before(at) {
			first = i
			break
		}
	}
	last := len(w.samples) - 1
	if first < 0 || first == last {
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

// loss is the part of the last seconds' messages that did not arrive.
func (w *window) loss(now time.Time, wanted func(class int) bool) float64 {
	sent, got, _, _ := w.since(now.Add(-windowFor), wanted)
	if sent == 0 || got >= sent {
		return 0
	}
	return float64(sent-got) / float64(sent)
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

// suspect reports whether the path is left alone because it carries no data, or little.
func (p *path) suspect(now time.Time) bool {
	return now.Before(p.doubt.until) || p.doubt.handshake != nil || now.Before(p.resting)
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
	if class, lost, ok := p.out.starved(now, from, probes); ok {
		p.accuse(now, fmt.Sprintf("probes are answered over it, but of the last %d %s that were sent none arrived", lost, protocol.DataClassName(class)))
		p.needHandshake(&p.out, class)
	} else if class, lost, ok := p.in.starved(now, from, probes); ok {
		p.accuse(now, fmt.Sprintf("probes are answered over it, but of the last %d %s that the hub sent none arrived here", lost, protocol.DataClassName(class)))
		p.needHandshake(&p.in, class)
	}
}

func (p *path) needHandshake(f *flow, class int) {
	if class == 0 {
		f.arrived, p.doubt.handshake = 0, f
	}
}
