package probe

import (
	"sync/atomic"
	"time"

	"causeway/protocol"
)

// Tally counts WireGuard's messages that came and went over a path, by class. What a box on
// the way does to them need not be what it does to probes: the two ends' tallies, compared in
// the probes, tell. The zero value is ready; methods may be called concurrently.
type Tally struct {
	received, sent [protocol.DataClasses]atomic.Uint32
	large          atomic.Uint32 // runs sent that the path was not known to carry
}

// Received counts a run of messages of one type, n bytes in all, each segment bytes
// long, the last one possibly shorter.
func (t *Tally) Received(kind protocol.MessageType, n, segment int) {
	if t != nil {
		count(&t.received, kind, n, segment)
	}
}

// Sent is Received for what leaves.
func (t *Tally) Sent(kind protocol.MessageType, n, segment int) {
	if t != nil {
		count(&t.sent, kind, n, segment)
	}
}

// sentLarge is Sent for what is larger than the path is known to carry: it may get lost on the rest of it.
func (t *Tally) sentLarge(kind protocol.MessageType, n, segment int) {
	if t != nil {
		t.large.Add(1) // before it is counted; see path.snapshot
		count(&t.sent, kind, n, segment)
	}
}

// Counts is what was counted so far.
func (t *Tally) Counts() (c protocol.PathCounts) {
	for i := range protocol.DataClasses {
		c.Received[i], c.Sent[i] = t.received[i].Load()&protocol.CountMask, t.sent[i].Load()&protocol.CountMask
	}
	return c
}

func count(to *[protocol.DataClasses]atomic.Uint32, kind protocol.MessageType, n, segment int) {
	if kind == protocol.MessageProbe || n <= protocol.MinTransportSize || segment <= 0 {
		return // a keepalive, which passes where data does not
	}
	if whole := n / segment; whole > 0 {
		to[protocol.DataClass(kind, segment)].Add(uint32(whole))
	}
	if rest := n % segment; rest > protocol.MinTransportSize {
		to[protocol.DataClass(kind, rest)].Add(1)
	}
}

// overruns is when our own socket had no room for something that came. The zero value: never.
type overruns struct{ last time.Time }

// Overrun says that our own socket had no room for something that came.
func (o *overruns) Overrun(now time.Time) { o.last = now }

// blind reports whether what did not arrive here may have been lost here.
func (o *overruns) blind(now time.Time) bool { return !o.last.IsZero() && now.Sub(o.last) < overrunFor }
