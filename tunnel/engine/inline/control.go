package inline

import (
	"context"
	"encoding/binary"
	"net/netip"
	"time"

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

// runControl owns handshakes and timers until ctx ends.
func (e *Engine) runControl(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-e.queue:
			e.handle(&m)
		case <-e.events.wake:
		case <-e.changed:
		case <-timer.C:
		}
		e.mu.Lock()
		now := time.Now()
		e.events.take(func(p *peer, flags uint32) { e.machine.event(p, flags, now) })
		next := e.machine.advance(now)
		e.mu.Unlock()
		if next == 0 {
			timer.Stop()
		} else {
			timer.Reset(time.Duration(next - e.machine.instant(now)))
		}
	}
}

func (e *Engine) handle(m *message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := time.Now()
	now := e.machine.instant(t)
	if len(e.queue) >= underLoadLength {
		e.loadTill = now.add(underLoadTime)
	}
	e.machine.handle(t, m.from, m.data[:m.n], now < e.loadTill)
}

// poke makes the control goroutine look at the timers again.
func (e *Engine) poke() {
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// send implements outlet.
func (e *Engine) send(p *peer, msg []byte) {
	p.txBytes.Add(uint64(len(msg)))
	if err := e.carrier.Send(p.number, msg, len(msg)); err != nil {
		e.counts.sendErrors.Add(1)
	}
}

// answer implements outlet.
func (e *Engine) answer(to underlay.Source, msg []byte) {
	var err error
	if to.Peer != 0 {
		err = e.carrier.Send(to.Peer, msg, len(msg))
	} else if a, ok := e.carrier.(Answerer); ok {
		err = a.Answer(to, msg)
	}
	if err != nil {
		e.counts.sendErrors.Add(1)
	}
}

// flush implements outlet.
func (e *Engine) flush(p *peer, now instant) bool {
	staged := p.unstage(&e.staged)
	s := p.current.Load()
	if len(staged) == 0 || s == nil {
		return false
	}
	e.control.tick()
	for _, b := range staged {
		if c, ok := s.reserve(1); ok {
			e.control.add(s, c, b[:cap(b)], 0, len(b))
		}
	}
	e.control.flush()
	return true
}

// empty implements outlet.
func (e *Engine) empty(p *peer, s *session, now instant) {
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
	m = s.send.Seal(m, nonce[:], nil, nil)
	p.noteSent(now, false)
	e.send(p, m)
}

// drop implements outlet.
func (e *Engine) drop(p *peer) { p.unstage(&e.staged) }

// heard implements outlet. In plain mode it reports where a peer is.
func (e *Engine) heard(p *peer, from underlay.Source) {
	if from.Peer != 0 || e.cfg.Roamed == nil {
		return
	}
	if last := p.addr.Load(); last != nil && *last == from.Addr {
		return
	}
	p.addr.Store(&from.Addr)
	e.cfg.Roamed(p.number, from.Addr)
}

// allow implements outlet.
func (e *Engine) allow(from netip.Addr) bool { return e.limiter.Allow(from) }
