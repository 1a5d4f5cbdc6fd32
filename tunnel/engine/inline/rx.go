package inline

import (
	"encoding/binary"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"causeway/tunnel/underlay"
)

// maxRun is how many messages are opened before the replay window is locked.
const maxRun = 64

// reader takes what one reader of the underlay received. It implements
// underlay.Receiver.
type reader struct {
	e    *Engine
	sink sink

	// A run of messages of one session.
	session  *session
	from     underlay.Source
	n        int
	counters [maxRun]uint64
	ok       [maxRun]bool
	messages [maxRun][]byte // header and decrypted packet
	nonce    [12]byte

	// The last source that was looked up.
	routes  *routes
	source  key
	isV6    bool
	allowed *peer
}

// sink takes packets to the TUN device.
type sink interface {
	// add takes a packet: msg[headerSize:], with room for a header before
	// it. It may keep msg until flush.
	add(msg []byte, v6 bool)
	flush()
}

// Receive implements underlay.Receiver.
func (r *reader) Receive(from underlay.Source, buf []byte, segment int) {
	if segment <= 0 {
		return
	}
	e := r.e
	e.gate.RLock()
	defer e.gate.RUnlock()
	if !e.up {
		return
	}
	now := e.now()
	r.from = from
	for len(buf) > 0 {
		m := buf[:min(segment, len(buf)):min(segment, len(buf))]
		buf = buf[len(m):]
		if len(m) < overhead {
			e.counts.unknown.Add(1)
			continue
		}
		if binary.LittleEndian.Uint32(m) != device.MessageTransportType {
			e.enqueue(from, m)
			continue
		}
		index := binary.LittleEndian.Uint32(m[4:])
		if r.n == maxRun || (r.n > 0 && r.session.entry.index != index) {
			r.finish(now)
		}
		if r.n == 0 {
			if r.session = e.sessionOf(index, now); r.session == nil {
				e.counts.unknown.Add(1)
				continue
			}
		}
		c := binary.LittleEndian.Uint64(m[8:])
		binary.LittleEndian.PutUint64(r.nonce[4:], c)
		p, err := r.session.receive.Open(m[headerSize:headerSize], r.nonce[:], m[headerSize:], nil)
		r.counters[r.n], r.ok[r.n], r.messages[r.n] = c, err == nil, m[:headerSize+len(p)]
		r.n++
	}
	if r.n > 0 {
		r.finish(now)
	}
	r.session = nil
}

// sessionOf finds the session that a message is for.
func (e *Engine) sessionOf(index uint32, now instant) *session {
	en := e.machine.index.lookup(index)
	if en == nil {
		return nil
	}
	s := en.session.Load()
	if s == nil || now-s.created >= instant(rejectAfterTime) {
		return nil
	}
	return s
}

// finish delivers the run.
func (r *reader) finish(now instant) {
	s, p, n := r.session, r.session.peer, r.n
	r.n = 0
	s.accept(r.counters[:n], r.ok[:n])
	var bytes uint64
	good, data := false, false
	for i, ok := range r.ok[:n] {
		if !ok {
			r.e.counts.rejected.Add(1)
			continue
		}
		good = true
		m := r.messages[i]
		bytes += uint64(len(m) + overhead - headerSize)
		if len(m) > headerSize { // no keepalive
			data = true
			r.deliver(p, m)
		}
		r.messages[i] = nil
	}
	if !good {
		return
	}
	p.rxBytes.Add(bytes)
	r.e.roamed(p, r.from)
	if p.confirm(s) {
		p.completed.Store(time.Now().UnixNano())
		r.e.events.push(p, eventConfirmed)
	}
	if p.noteReceived(now, data) {
		r.e.events.push(p, eventActivity)
	}
	if s.initiator && now-s.created >= instant(refreshReceiving) && s == p.current.Load() && p.ask(now) {
		r.e.events.push(p, eventFresh)
	}
}

// deliver cuts off the padding, checks that the peer may send from the
// packet's source and to its destination, and hands it to the sink.
func (r *reader) deliver(p *peer, m []byte) {
	pkt := m[headerSize:]
	v6 := false
	total := 0
	switch pkt[0] >> 4 {
	case 4:
		if len(pkt) >= minIPv4 {
			total = int(binary.BigEndian.Uint16(pkt[2:]))
		}
		if total < minIPv4 {
			total = len(pkt) + 1
		}
	case 6:
		v6 = true
		total = len(pkt) + 1
		if len(pkt) >= minIPv6 {
			total = minIPv6 + int(binary.BigEndian.Uint16(pkt[4:]))
		}
	default:
		total = len(pkt) + 1
	}
	if total > len(pkt) {
		r.e.counts.malformed.Add(1)
		return
	}
	if owner := r.sourceOf(pkt, v6); owner != p && (owner == nil || !r.routes.mayShare(p, pkt, v6)) || p.gone.Load() {
		r.e.counts.spoofed.Add(1)
		return
	}
	if !r.e.cfg.AnyDestination && !r.e.local.Load().Holds(pkt) {
		r.e.counts.elsewhere.Add(1)
		return
	}
	r.sink.add(m[:headerSize+total:headerSize+total], v6)
}

// sourceOf looks up a packet's source; runs have the same again and again.
func (r *reader) sourceOf(pkt []byte, v6 bool) *peer {
	var k key
	if v6 {
		k = key6(pkt[8:])
	} else {
		k = key4(pkt[12:])
	}
	t := r.e.routes.Load()
	if t == r.routes && k == r.source && v6 == r.isV6 {
		return r.allowed
	}
	r.routes, r.source, r.isV6 = t, k, v6
	if v6 {
		r.allowed = t.v6.lookup(k)
	} else {
		r.allowed = t.v4.lookup(k)
	}
	return r.allowed
}

// Flush implements underlay.Receiver.
func (r *reader) Flush() {
	r.e.gate.RLock()
	defer r.e.gate.RUnlock()
	if r.e.up {
		r.sink.flush()
	}
}
