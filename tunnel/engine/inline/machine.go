package inline

import (
	"container/heap"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"causeway/protocol"
	"causeway/tunnel/underlay"
)

// machine is the control side: handshakes, sessions, cookies and timers of all
// peers. Bytes and times go in, calls of out come out; it has no I/O, no
// goroutine and (but for the age of cookies, inside wireguard's leaf
// packages) no clock. The caller serialises its methods. What the data path
// shares with it are the atomics of peer and session and the index table.
type machine struct {
	own    atomic.Pointer[[]*ownKey] // the one to begin with first
	number protocol.NodeNumber       // our own; zero: initiations that cross are not settled
	origin time.Time                 // of instants
	out    outlet
	index  *indexTable
	peers  map[protocol.WireGuardPublicKey]*peer
	timers timerHeap
	counts *counters
}

// outlet is what the machine does to the world. Nothing in it blocks, and what
// is sent may leave after the call has returned.
type outlet interface {
	// send sends a handshake message to a peer.
	send(p *peer, msg []byte)
	// answer sends a cookie reply back to where a message came from.
	answer(to underlay.Source, msg []byte)
	// flush sends what is staged for p, which has a usable session, and
	// reports whether there was anything.
	flush(p *peer) bool
	// empty sends a keepalive.
	empty(p *peer, s *session, now instant)
	// drop forgets what is staged for p.
	drop(p *peer)
	// heard says that an authenticated handshake message of p came from there.
	heard(p *peer, from underlay.Source)
	// note is for the log: something happened to p, or (nil) to the device.
	note(p *peer, what string)
	// allow limits handshakes from one source under load.
	allow(from netip.Addr) bool
}

func newMachine(number protocol.NodeNumber, key protocol.WireGuardPrivateKey, origin time.Time, out outlet, c *counters) *machine {
	m := &machine{
		number: number, origin: origin, out: out, counts: c,
		index: newIndexTable(), peers: map[protocol.WireGuardPublicKey]*peer{},
	}
	m.setKeys(key)
	return m
}

// ownKey is a key of the device. While one is being rotated there are two: who
// does not know the new one yet begins handshakes with the old one.
type ownKey struct {
	identity
	public  protocol.WireGuardPublicKey
	checker device.CookieChecker
}

// setKeys changes the device's own keys, of which there is at least one.
// Handshakes under way under one that goes end; sessions, which rest on keys
// of their own, are the caller's to end.
func (m *machine) setKeys(keys ...protocol.WireGuardPrivateKey) {
	var old []*ownKey
	if l := m.own.Load(); l != nil {
		old = *l
	}
	next := make([]*ownKey, len(keys))
	for i, k := range keys {
		public := k.Public()
		if j := slices.IndexFunc(old, func(o *ownKey) bool { return o.public == public }); j >= 0 {
			next[i] = old[j]
			continue
		}
		next[i] = &ownKey{identity: newIdentity(k), public: public}
		next[i].checker.Init(device.NoisePublicKey(public))
	}
	m.own.Store(&next)
	for _, p := range m.peers {
		p.own = nil // the first is tried first
		if p.pending != nil && !slices.Contains(next, p.pending.own) {
			m.dropPending(p)
			p.lastHandshake = 0
		}
	}
	for _, o := range old {
		if !slices.Contains(next, o) {
			clear(o.static.Private)
		}
	}
}

// addressed returns which of our keys an initiation or response is for, by its
// mac1; nil: none. Readers call it too.
func (m *machine) addressed(msg []byte) *ownKey {
	for _, o := range *m.own.Load() {
		if o.checker.CheckMAC1(msg) {
			return o
		}
	}
	return nil
}

// rekey gives a peer another key: it has rotated it. Its sessions go on until
// the next handshake, which begins at once if there is one to replace.
func (m *machine) rekey(p *peer, key protocol.WireGuardPublicKey, t time.Time) {
	if m.peers[p.key] == p {
		delete(m.peers, p.key)
	}
	m.peers[key] = p
	m.dropPending(p)
	p.key, p.cookies, p.lastHandshake = key, newCookies(key), 0
	if p.current.Load() != nil || p.keepalive > 0 {
		m.initiate(p, t, false)
	}
	m.schedule(p, m.instant(t))
}

func (m *machine) instant(t time.Time) instant { return instant(t.Sub(m.origin)) + 1 }

// add takes a peer up. One with a persistent keepalive is greeted at once.
func (m *machine) add(p *peer, t time.Time) {
	m.peers[p.key] = p
	if p.keepalive > 0 {
		m.keepalive(p, t)
		p.lastTx.Store(int64(m.instant(t)))
	}
	m.schedule(p, m.instant(t))
}

// remove ends a peer: its keys are gone when it returns.
func (m *machine) remove(p *peer) {
	p.gone.Store(true)
	m.erase(p)
	if p.heapIndex >= 0 {
		heap.Remove(&m.timers, p.heapIndex)
	}
	delete(m.peers, p.key)
}

// validHandshake is the cheap part of the checks, safe to be called by
// readers: right size, mac1 (initiation, response), an index of ours
// (response, cookie). What does not pass is not worth a place in the queue.
func (m *machine) validHandshake(msg []byte) bool {
	switch binary.LittleEndian.Uint32(msg) {
	case device.MessageInitiationType:
		return len(msg) == initiationSize && m.addressed(msg) != nil
	case device.MessageResponseType:
		return len(msg) == responseSize && m.index.lookup(binary.LittleEndian.Uint32(msg[8:])) != nil && m.addressed(msg) != nil
	case device.MessageCookieReplyType:
		return len(msg) == cookieSize && m.index.lookup(binary.LittleEndian.Uint32(msg[4:])) != nil
	}
	return false
}

// handle takes a message that passed validHandshake.
func (m *machine) handle(t time.Time, from underlay.Source, msg []byte, underLoad bool) {
	kind := binary.LittleEndian.Uint32(msg)
	if kind == device.MessageCookieReplyType {
		if e := m.index.lookup(binary.LittleEndian.Uint32(msg[4:])); e != nil && !e.peer.cookies.ConsumeReply(readCookie(msg)) {
			m.counts.badHandshake.Add(1)
		}
		return
	}
	own := m.addressed(msg)
	if own == nil { // the key went while the message waited
		return
	}
	if underLoad && !m.admit(own, from, msg) {
		return
	}
	if kind == device.MessageInitiationType {
		m.initiationReceived(t, own, from, msg)
	} else {
		m.responseReceived(t, from, msg)
	}
}

// admit asks for a cookie under load, and limits those that bring one.
func (m *machine) admit(own *ownKey, from underlay.Source, msg []byte) bool {
	src := sourceBytes(from)
	if !own.checker.CheckMAC2(msg, src) {
		if r, err := own.checker.CreateReply(msg, binary.LittleEndian.Uint32(msg[4:]), src); err == nil {
			m.counts.cookies.Add(1)
			m.out.answer(from, writeCookie(r))
		}
		return false
	}
	if !m.out.allow(sourceAddr(from)) {
		m.counts.limited.Add(1)
		return false
	}
	return true
}

// sourceBytes is what a cookie is bound to. A path's owner is proven by the
// underlay and stays the same over all its paths; without one it is the
// address.
func sourceBytes(s underlay.Source) []byte {
	if s.Peer != 0 {
		return binary.BigEndian.AppendUint32(nil, uint32(s.Peer))
	}
	b, _ := s.Addr.MarshalBinary()
	return b
}

// sourceAddr is sourceBytes for the rate limiter, which knows addresses only;
// 0.0.0.0/8 is no real one.
func sourceAddr(s underlay.Source) netip.Addr {
	if s.Peer != 0 {
		return netip.AddrFrom4([4]byte{0, byte(s.Peer >> 16), byte(s.Peer >> 8), byte(s.Peer)})
	}
	return s.Addr.Addr()
}

func (m *machine) initiationReceived(t time.Time, own *ownKey, from underlay.Source, msg []byte) {
	r, err := own.readInitiation(msg)
	p := m.peers[r.key]
	if err != nil || p == nil {
		m.counts.badHandshake.Add(1)
		return
	}
	now := m.instant(t)
	if !r.stamp.After(p.received) || !p.answeredAt.passed(now, initiationInterval) {
		m.counts.replayed.Add(1)
		return
	}
	if m.number != 0 && m.number < p.number && p.pending != nil && !p.lastHandshake.passed(now, crossing) {
		m.counts.crossed.Add(1)
		return
	}
	e := m.index.add(p)
	answer, keys, err := r.respond(p.psk, e.index)
	if err != nil {
		m.index.remove(e)
		m.counts.badHandshake.Add(1)
		return
	}
	p.received, p.answeredAt, p.lastHandshake, p.own = r.stamp, now, now, own
	p.rxBytes.Add(uint64(len(msg)))
	p.noteReceived(now, false)
	m.out.heard(p, from)
	p.cookies.AddMacs(answer)
	m.establish(p, e, &keys, now)
	p.noteSent(now, false)
	m.out.send(p, answer)
	m.schedule(p, now)
}

func (m *machine) responseReceived(t time.Time, from underlay.Source, msg []byte) {
	e := m.index.lookup(binary.LittleEndian.Uint32(msg[8:]))
	if e == nil || e.peer.pending == nil || e.peer.pending.entry != e {
		m.counts.badHandshake.Add(1)
		return
	}
	p := e.peer
	keys, err := p.pending.own.readResponse(p.pending, msg)
	if err != nil {
		m.counts.badHandshake.Add(1)
		return
	}
	now := m.instant(t)
	p.own = p.pending.own
	p.pending.erase()
	p.pending = nil // its index is the session's now
	p.rxBytes.Add(uint64(len(msg)))
	p.noteReceived(now, false)
	m.out.heard(p, from)
	s := m.establish(p, e, &keys, now)
	m.complete(p)
	p.completed.Store(t.UnixNano())
	m.out.note(p, "session begun")
	// The peer may use the session only after it has heard from us on it.
	if !m.out.flush(p) {
		m.out.empty(p, s, now)
	}
	m.schedule(p, now)
}

// establish makes a session of a finished handshake.
func (m *machine) establish(p *peer, e *entry, k *sessionKeys, now instant) *session {
	s := newSession(e, k, now)
	e.session.Store(s)
	for _, old := range p.begin(s) {
		if old != nil {
			m.index.remove(old.entry)
		}
	}
	p.eraseAt = now.add(eraseAfter)
	return s
}

// complete ends the attempts: both sides have the session.
func (m *machine) complete(p *peer) {
	p.retransmitAt, p.attempts, p.lastMinute = 0, 0, false
}

func (m *machine) dropPending(p *peer) {
	if p.pending != nil {
		p.pending.erase()
		m.index.remove(p.pending.entry)
		p.pending = nil
	}
}

// keyFor chooses which of our keys an initiation to p is under: the one of the
// last handshake with it, or the first; a second try takes another.
func (m *machine) keyFor(p *peer) *ownKey {
	l := *m.own.Load()
	i := max(0, slices.Index(l, p.own))
	return l[(i+p.attempts)%len(l)]
}

// initiate sends an initiation unless one was sent lately. A retry goes on
// counting attempts, a new reason starts over.
func (m *machine) initiate(p *peer, t time.Time, retry bool) {
	now := m.instant(t)
	if !retry {
		p.attempts = 0
	}
	if !p.lastHandshake.passed(now, rekeyTimeout) {
		if p.retransmitAt == 0 { // after a response of ours that nobody confirmed
			p.retransmitAt = p.lastHandshake.add(rekeyTimeout)
		}
		return
	}
	p.lastHandshake = now
	stamp := timestamp(t, p.sent)
	m.dropPending(p)
	e := m.index.add(p)
	own := m.keyFor(p)
	hs, msg, err := own.newInitiation(p.key, p.psk, e.index, stamp)
	if err != nil { // the peer's key is a low-order point
		m.index.remove(e)
		m.counts.badHandshake.Add(1)
		return
	}
	p.sent, p.pending = stamp, &initiation{hs, e, own}
	p.cookies.AddMacs(msg)
	p.noteSent(now, false)
	p.retransmitAt = now.add(rekeyTimeout + rand.N(rekeyJitter))
	m.out.send(p, msg)
}

// keepalive sends what is staged or an empty message; without a session it
// starts a handshake.
func (m *machine) keepalive(p *peer, t time.Time) {
	now := m.instant(t)
	s := p.current.Load()
	if s == nil || !s.usable(now) {
		m.initiate(p, t, false)
		return
	}
	if !m.out.flush(p) {
		m.out.empty(p, s, now)
	}
	if s.stale(now) {
		m.initiate(p, t, false)
	}
}

// event handles what the data path noted of p.
func (m *machine) event(p *peer, flags uint32, t time.Time) {
	if p.gone.Load() {
		m.out.drop(p)
		return
	}
	now := m.instant(t)
	if flags&eventConfirmed != 0 {
		m.complete(p)
		m.out.note(p, "session confirmed")
		m.dropPending(p)
		for _, s := range p.takeRetired() {
			m.index.remove(s.entry)
		}
	}
	if flags&eventFresh != 0 && !p.lastMinute {
		p.lastMinute = true
		flags |= eventHandshake
	}
	s := p.current.Load()
	usable := s != nil && s.usable(now)
	if flags&(eventConfirmed|eventHandshake) != 0 && usable {
		m.out.flush(p)
	}
	// A handshake may have completed since this was asked for.
	if flags&eventHandshake != 0 && (!usable || s.stale(now) || flags&eventFresh != 0) {
		m.initiate(p, t, false)
	}
	m.schedule(p, now)
}
