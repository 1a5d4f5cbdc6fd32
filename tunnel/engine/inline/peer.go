package inline

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"causeway/protocol"
)

// peer is one peer's state. It has no goroutine and no queue of its own, so
// that an idle one costs little.
type peer struct {
	number protocol.NodeNumber
	key    protocol.WireGuardPublicKey

	// For the data path, without a lock.
	current atomic.Pointer[session] // what is sent with
	next    atomic.Pointer[session] // ours as responder, not yet confirmed
	gone    atomic.Bool             // removed: nothing is sent or delivered any more
	rxBytes atomic.Uint64
	txBytes atomic.Uint64
	activity
	events eventLink

	mu       sync.Mutex // rotation of sessions, and staging: rare
	previous *session
	retired  []*session
	staged   [][]byte

	// The control side's, under its lock.
	psk           [32]byte
	own           *ownKey // of the last handshake; nil: none yet
	keepalive     time.Duration
	pending       *initiation // ours, waiting for its response
	cookies       *device.CookieGenerator
	received      tai64n.Timestamp // the latest initiation's
	sent          tai64n.Timestamp
	answeredAt    instant // when its last initiation was answered
	lastHandshake instant // when we last sent an initiation or response
	attempts      int
	lastMinute    bool // a new session was asked for while receiving
	retransmitAt  instant
	eraseAt       instant
	jitter        time.Duration
	scheduled     instant // deadline in the heap
	heapIndex     int     // -1: not in the heap
	completed     atomic.Int64
}

func newPeer(number protocol.NodeNumber, key protocol.WireGuardPublicKey) *peer {
	return &peer{number: number, key: key, heapIndex: -1, jitter: rand.N(rekeyJitter), cookies: newCookies(key)}
}

func newCookies(key protocol.WireGuardPublicKey) *device.CookieGenerator {
	g := &device.CookieGenerator{}
	g.Init(device.NoisePublicKey(key))
	return g
}

// activity is what the timers have to know of the data path. It is written
// once for each batch. tx sets what rx clears and the other way round.
type activity struct {
	unanswered atomic.Int64 // instant of the first data sent since anything was received
	unacked    atomic.Int64 // instant of the first data received since anything was sent
	another    atomic.Bool  // more data was received since
	lastTx     atomic.Int64
	lastRx     atomic.Int64
	asked      atomic.Int64 // when the data path last asked for a session
	watched    atomic.Bool  // the control side looks at these within keepaliveTimeout
}

// noteSent records that an authenticated message was sent. It returns true if
// the control side has to be told.
func (a *activity) noteSent(now instant, data bool) bool {
	a.lastTx.Store(int64(now))
	if a.unacked.Load() != 0 {
		a.unacked.Store(0)
		a.another.Store(false)
	}
	if data && a.unanswered.Load() == 0 {
		a.unanswered.Store(int64(now))
		return !a.watched.Load()
	}
	return false
}

// noteReceived records that an authenticated message was received.
func (a *activity) noteReceived(now instant, data bool) bool {
	a.lastRx.Store(int64(now))
	if a.unanswered.Load() != 0 {
		a.unanswered.Store(0)
	}
	if !data {
		return false
	}
	if a.unacked.Load() == 0 {
		a.unacked.Store(int64(now))
		return !a.watched.Load()
	}
	if !a.another.Load() {
		a.another.Store(true)
	}
	return false
}

// ask reports whether it is time to ask for a session again.
func (a *activity) ask(now instant) bool {
	last := a.asked.Load()
	return instant(last).passed(now, askInterval) && a.asked.CompareAndSwap(last, int64(now))
}

// Events that the data path has for the control side.
const (
	eventActivity  = 1 << iota // a timer has to be watched
	eventHandshake             // a session is needed, or a fresher one
	eventFresh                 // the same, as receiver
	eventConfirmed             // the peer confirmed our response
)

// eventLink is a peer's place in an eventStack.
type eventLink struct {
	flags atomic.Uint32
	below *peer
}

// eventStack collects peers with events. Pushing takes no lock, does not
// block, does not allocate and loses nothing.
type eventStack struct {
	top  atomic.Pointer[peer]
	wake chan struct{}
}

func newEventStack() *eventStack { return &eventStack{wake: make(chan struct{}, 1)} }

func (s *eventStack) push(p *peer, flags uint32) {
	if p.events.flags.Or(flags) != 0 {
		return // on the stack already
	}
	for {
		t := s.top.Load()
		p.events.below = t
		if s.top.CompareAndSwap(t, p) {
			break
		}
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take calls f for every peer with events.
func (s *eventStack) take(f func(*peer, uint32)) {
	for p := s.top.Swap(nil); p != nil; {
		below := p.events.below
		p.events.below = nil
		f(p, p.events.flags.Swap(0)) // from here on it may be pushed again
		p = below
	}
}

// stage keeps a copy of pkt until there is a session; the oldest goes when
// there are too many. total bounds what all peers keep. It reports whether
// nothing was lost.
func (p *peer) stage(pkt []byte, total *atomic.Int64) bool {
	if total.Add(int64(len(pkt))) > maxStagedBytes {
		total.Add(-int64(len(pkt)))
		return false
	}
	c := make([]byte, len(pkt), padded(len(pkt))) // room for zeros when it is sealed
	copy(c, pkt)
	p.mu.Lock()
	defer p.mu.Unlock()
	full := len(p.staged) >= maxStagedPackets
	if full {
		total.Add(-int64(len(p.staged[0])))
		p.staged = append(p.staged[:0], p.staged[1:]...)
	}
	p.staged = append(p.staged, c)
	return !full
}

// unstage returns what was staged.
func (p *peer) unstage(total *atomic.Int64) [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.staged
	p.staged = nil
	for _, b := range s {
		total.Add(-int64(len(b)))
	}
	return s
}
