package inline

import (
	"encoding/binary"

	"golang.zx2c4.com/wireguard/device"
)

// maxGroups bounds the open groups of one sender: 64 KB each.
const maxGroups = 16

// group gathers messages for one peer until they go out as one run: equal in
// size but for the last.
type group struct {
	peer    *peer
	session *session // of the last message
	n       int      // bytes used
	segment int
	count   int
	buf     [maxDatagrams + padding]byte
}

// sealer turns packets into messages, straight into the group of their peer.
// One goroutine uses it.
type sealer struct {
	e     *Engine
	now   instant // set by the owner now and then
	mtu   int
	nonce [12]byte
	save  [padding]byte
	open  []*group
	last  *group
	free  []*group
}

// padded is n rounded up to the padding.
func padded(n int) int { return (n + padding - 1) &^ (padding - 1) }

// add seals the packet buf[start:start+n] under counter c. Up to padding-1
// bytes behind it are used and put back.
func (w *sealer) add(s *session, c uint64, buf []byte, start, n int) {
	body := padded(n)
	if body > w.mtu { // padding does not exceed the MTU
		body = max(w.mtu, n)
	}
	size := overhead + body
	if size > maxDatagrams {
		w.e.counts.malformed.Add(1)
		return
	}
	g := w.groupOf(s.peer)
	if g.count > 0 && (size > g.segment || g.count == maxSegments || g.n+size > maxDatagrams) {
		w.send(g)
	}
	if g.count == 0 {
		g.segment = size
	}
	m := g.buf[g.n : g.n+size]
	binary.LittleEndian.PutUint32(m, device.MessageTransportType)
	binary.LittleEndian.PutUint32(m[4:], s.remote)
	binary.LittleEndian.PutUint64(m[8:], c)
	binary.LittleEndian.PutUint64(w.nonce[4:], c)
	if body > n {
		pad := buf[start+n : start+body]
		copy(w.save[:], pad)
		clear(pad)
		s.send.Seal(m[headerSize:headerSize], w.nonce[:], buf[start:start+body], nil)
		copy(pad, w.save[:])
	} else {
		s.send.Seal(m[headerSize:headerSize], w.nonce[:], buf[start:start+n], nil)
	}
	g.session = s
	g.n += size
	g.count++
	if size < g.segment || g.count == maxSegments { // nothing can follow
		w.send(g)
	}
}

// groupOf returns p's group.
func (w *sealer) groupOf(p *peer) *group {
	if w.last != nil && w.last.peer == p {
		return w.last
	}
	for _, g := range w.open {
		if g.peer == p {
			w.last = g
			return g
		}
	}
	var g *group
	switch {
	case len(w.open) == maxGroups: // the fullest one has least to gain by waiting
		for _, o := range w.open {
			if g == nil || o.count > g.count {
				g = o
			}
		}
		w.send(g)
	case len(w.free) > 0:
		g = w.free[len(w.free)-1]
		w.free = w.free[:len(w.free)-1]
		w.open = append(w.open, g)
	default:
		g = &group{}
		w.open = append(w.open, g)
	}
	g.peer = p
	w.last = g
	return g
}

// send sends what is in g.
func (w *sealer) send(g *group) {
	if g.count == 0 {
		return
	}
	p, s, n := g.peer, g.session, g.n
	segment := g.segment
	g.n, g.count, g.session = 0, 0, nil
	if p.gone.Load() {
		return
	}
	if err := w.e.carrier.Send(p.number, g.buf[:n], segment); err != nil {
		w.e.counts.sendErrors.Add(1)
	}
	p.txBytes.Add(uint64(n))
	if p.noteSent(w.now, true) {
		w.e.events.push(p, eventActivity)
	}
	if s.stale(w.now) && p.ask(w.now) {
		w.e.events.push(p, eventHandshake)
	}
}

// flush sends all groups and lets go of them.
func (w *sealer) flush() {
	for i, g := range w.open {
		w.send(g)
		g.peer = nil
		w.free = append(w.free, g)
		w.open[i] = nil
	}
	w.open, w.last = w.open[:0], nil
}

// short reports whether a group could gain much by waiting a moment.
func (w *sealer) short() bool {
	for _, g := range w.open {
		if g.count > 0 && g.count < maxSegments/2 {
			return true
		}
	}
	return false
}
