package inline

// sender is the way out for one queue of the TUN device: it looks up the peer
// of a packet, cuts and seals it and hands whole groups to the carrier.
type sender struct {
	sealer
	sp      superPacket
	refusal refusal
}

// readHead is free space before what is read, never used by a packet itself.
const readHead = 64

func newSender(e *Engine) *sender {
	s := &sender{sealer: sealer{e: e}}
	s.open = make([]*group, 0, maxGroups)
	s.free = make([]*group, 0, maxGroups)
	s.tick()
	return s
}

// tick takes the time and the MTU anew.
func (w *sender) tick() {
	w.now = w.e.now()
	w.mtu = int(w.e.mtu.Load())
}

// packet takes one packet of the device, n bytes at buf[start:], vnet is its
// virtio header or nil. buf goes on for at least padding bytes.
func (w *sender) packet(vnet, buf []byte, start, n int) {
	sp := &w.sp
	if err := sp.parse(vnet, buf, start, n); err != nil {
		w.e.counts.malformed.Add(1)
		return
	}
	p := w.e.routes.Load().destination(buf[start:], sp.v6)
	if p == nil {
		w.e.counts.noRoute.Add(1)
		if w.e.cfg.Unreachable {
			w.unreachable(buf[start:start+n], sp.v6)
		}
		return
	}
	if p.gone.Load() {
		return
	}
	s := p.current.Load()
	if s != nil && s.usable(w.now) {
		if first, ok := s.reserve(sp.count); ok {
			for i := range sp.count {
				at, n := sp.segment(i)
				w.add(s, first+uint64(i), buf, at, n)
			}
			return
		}
	}
	w.wait(p)
}

// wait stages the packet for p, which has no session.
func (w *sender) wait(p *peer) {
	for i := range min(w.sp.count, maxStagedPackets) {
		at, n := w.sp.segment(i)
		if !p.stage(w.sp.buf[at:at+n], &w.e.staged) {
			w.e.counts.unstaged.Add(1)
		}
	}
	// The session may have come meanwhile, and the control side may have
	// looked before this was staged.
	if s := p.current.Load(); (s != nil && s.usable(w.now)) || p.ask(w.now) {
		w.e.events.push(p, eventHandshake)
	}
}
