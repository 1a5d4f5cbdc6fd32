package inline

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/rs/zerolog"
	"golang.zx2c4.com/wireguard/device"

	"causeway/tunnel/underlay"
)

// enqueue hands a handshake message to the control goroutine. It is called by
// readers and never blocks: junk is refused before it takes a place.
func (e *Engine) enqueue(from underlay.Source, m []byte) {
	if len(m) > initiationSize || !e.machine.validHandshake(m) {
		e.counts.badMAC.Add(1)
		return
	}
	msg := message{from: from, n: len(m)}
	copy(msg.data[:], m)
	select {
	case e.queue <- msg:
	default:
		e.counts.queueFull.Add(1)
	}
}

// runControl owns handshakes and timers until ctx ends. It alone sends what is
// not sent by the data path, and never while it holds mu: the underlay calls
// ResetPeer with locks of its own.
func (e *Engine) runControl(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var out []outgoing
	for {
		var m message
		select {
		case <-ctx.Done():
			return
		case m = <-e.queue:
		case <-e.events.wake:
		case <-e.changed:
		case <-timer.C:
		}
		now := time.Now()
		var next instant
		next, out = e.step(&m, now, out)
		if next == 0 {
			timer.Stop()
		} else {
			timer.Reset(time.Duration(next - e.machine.instant(now)))
		}
	}
}

// step handles a message, if there is one, all events and all timers that are
// due, and sends what comes of it. It returns the next deadline and, for the
// next call, the emptied slice.
func (e *Engine) step(m *message, t time.Time, out []outgoing) (instant, []outgoing) {
	e.mu.Lock()
	if m.n > 0 {
		e.handle(m, t)
	}
	e.events.take(func(p *peer, flags uint32) { e.machine.event(p, flags, t) })
	next := e.machine.advance(t)
	out, e.out = e.out, out[:0]
	e.mu.Unlock()
	for i := range out {
		e.perform(&out[i])
		out[i] = outgoing{}
	}
	return next, out
}

func (e *Engine) handle(m *message, t time.Time) {
	now := e.machine.instant(t)
	if len(e.queue) >= underLoadLength {
		if now >= e.loadTill {
			e.note(nil, "many handshakes at once, asking for cookies")
		}
		e.loadTill = now.add(underLoadTime)
	}
	e.machine.handle(t, m.from, m.data[:m.n], now < e.loadTill)
}

// poke makes the control goroutine look at timers and what is to be sent.
func (e *Engine) poke() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// outgoing is something that the machine wants to be sent: a handshake
// message, an answer, a keepalive of a session, or what is staged; or told.
type outgoing struct {
	peer    *peer
	to      underlay.Source
	msg     []byte
	session *session
	heard   bool
	note    string
}

// perform sends one outgoing.
func (e *Engine) perform(o *outgoing) {
	var err error
	switch {
	case o.note != "":
		ev := e.log.Debug()
		if o.peer != nil {
			ev = ev.Uint32("peer", uint32(o.peer.number))
		}
		ev.Str("detail", o.note).Msg("tunnel session")
	case o.peer == nil && o.to.Peer != 0:
		err = e.carrier.Send(o.to.Peer, o.msg, len(o.msg))
	case o.peer == nil:
		if a, ok := e.carrier.(Answerer); ok {
			err = a.Answer(o.to, o.msg)
		}
	case o.peer.gone.Load():
	case o.heard:
		e.roamed(o.peer, o.to)
	case o.session != nil:
		e.sendEmpty(o.peer, o.session)
	case o.msg != nil:
		err = e.sendTo(o.peer, o.msg)
	default:
		e.sendStaged(o.peer)
	}
	if err != nil {
		e.counts.sendErrors.Add(1)
	}
}

func (e *Engine) sendTo(p *peer, msg []byte) error {
	p.txBytes.Add(uint64(len(msg)))
	return e.carrier.Send(p.number, msg, len(msg))
}

func (e *Engine) sendStaged(p *peer) {
	s := p.current.Load()
	if s == nil {
		return
	}
	e.control.tick()
	for _, b := range p.unstage(&e.staged) {
		if c, ok := s.reserve(1); ok {
			e.control.add(s, c, b[:cap(b)], 0, len(b))
		}
	}
	e.control.flush()
}

func (e *Engine) sendEmpty(p *peer, s *session) {
	c, ok := s.reserve(1)
	if !ok {
		return
	}
	m := make([]byte, headerSize, overhead)
	binary.LittleEndian.PutUint32(m, device.MessageTransportType)
	binary.LittleEndian.PutUint32(m[4:], s.remote)
	binary.LittleEndian.PutUint64(m[8:], c)
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[4:], c)
	if err := e.sendTo(p, s.send.Seal(m, nonce[:], nil, nil)); err != nil {
		e.counts.sendErrors.Add(1)
	}
}

// send implements outlet.
func (e *Engine) send(p *peer, msg []byte) { e.out = append(e.out, outgoing{peer: p, msg: msg}) }

// answer implements outlet.
func (e *Engine) answer(to underlay.Source, msg []byte) {
	e.out = append(e.out, outgoing{to: to, msg: msg})
}

// flush implements outlet.
func (e *Engine) flush(p *peer) bool {
	p.mu.Lock()
	waiting := len(p.staged) > 0
	p.mu.Unlock()
	if waiting {
		e.out = append(e.out, outgoing{peer: p})
	}
	return waiting
}

// empty implements outlet.
func (e *Engine) empty(p *peer, s *session, now instant) {
	p.noteSent(now, false)
	e.out = append(e.out, outgoing{peer: p, session: s})
}

// note implements outlet.
func (e *Engine) note(p *peer, what string) {
	if e.log.GetLevel() <= zerolog.DebugLevel {
		e.out = append(e.out, outgoing{peer: p, note: what})
	}
}

// drop implements outlet.
func (e *Engine) drop(p *peer) { p.unstage(&e.staged) }

// heard implements outlet.
func (e *Engine) heard(p *peer, from underlay.Source) {
	if from.Peer == 0 && e.cfg.Roamed != nil {
		e.out = append(e.out, outgoing{peer: p, to: from, heard: true})
	}
}

// roamed reports, in plain mode, where a peer is.
func (e *Engine) roamed(p *peer, from underlay.Source) {
	if from.Peer != 0 || e.cfg.Roamed == nil {
		return
	}
	e.cfg.Roamed(p.number, from)
}

// allow implements outlet.
func (e *Engine) allow(from netip.Addr) bool { return e.limiter.Allow(from) }
