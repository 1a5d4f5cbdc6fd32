package underlay

import (
	"time"

	"causeway/protocol"
	"causeway/tunnel/underlay/handshake"
	"causeway/tunnel/underlay/probe"
)

// pokeEvery is how often ongoing traffic is told to the runner.
const pokeEvery = time.Second

// Send implements the engine's Carrier: a run of WireGuard messages, each
// segment bytes long (the last one may be shorter), goes to a peer or hub over
// its chosen path. The reserved bytes are overwritten. Handshake messages go
// over every live path and again until they are answered; those that come before
// Run has opened the sockets wait for it.
func (u *Underlay) Send(to protocol.NodeNumber, datagrams []byte, segment int) error {
	// The engine starts beside us, and what it begins with is refused only at a price:
	// it would try again after five seconds.
	if u.conns.Load() == nil && (u.cfg.Plain || !handshake.Is(datagrams)) {
		return ErrNotRunning
	}
	r := (*u.peers.Load())[to]
	if r == nil {
		return ErrUnknownPeer
	}
	if len(datagrams) < protocol.MinTransportSize {
		return nil
	}
	if segment <= 0 || segment > len(datagrams) {
		segment = len(datagrams)
	}
	r.tx.Add(uint64(len(datagrams)))
	if u.cfg.Plain {
		return u.sendPlain(r, datagrams, segment)
	}
	switch {
	case handshake.Is(datagrams):
		u.touch(r)
		for b := datagrams; len(b) > 0; b = b[min(segment, len(b)):] {
			u.table.Sent(time.Now(), to, b[:min(segment, len(b))])
		}
		return nil
	case protocol.MessageType(datagrams[0]) != protocol.MessageTransport || len(datagrams) > protocol.MinTransportSize:
		// A keepalive alone is no traffic: it would keep idle paths probed.
		u.touch(r)
	}
	route := r.route.Load()
	if route.Kind == protocol.PathNone {
		return ErrNoPath
	}
	if route.Size > 0 && segment > route.Size {
		return u.sendLarge(route, datagrams, segment)
	}
	return u.write(route.Hop, datagrams, segment)
}

// sendLarge sends what the path does not carry over a hub's stream. The
// route's MTU keeps most packets below that; there are still IPv6 packets of
// 1280 bytes, which no route may forbid, and packets made before the path
// changed. Without a stream they would be lost silently.
func (u *Underlay) sendLarge(route *probe.Route, datagrams []byte, segment int) error {
	if route.Stream.Addr.IsValid() {
		return u.write(route.Stream, datagrams, segment)
	}
	u.drops.Add(DropTooLarge, uint64((len(datagrams)+segment-1)/segment))
	if !u.streamNeeded.Swap(true) {
		u.poke()
	}
	return ErrTooLarge
}

// touch tells the runner, now and then, that there is traffic.
func (u *Underlay) touch(r *remote) {
	now := int64(time.Since(u.start))
	last := r.poked.Load()
	if r.hub || now-last < int64(pokeEvery) || !r.poked.CompareAndSwap(last, now) {
		return
	}
	select {
	case u.traffic <- r.number:
	default: // the runner is busy; the next datagram tells it
		r.poked.Store(last)
	}
}

// poke wakes the runner.
func (u *Underlay) poke() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// write numbers the datagrams and sends them.
func (u *Underlay) write(h probe.Hop, b []byte, segment int) error {
	for o := 0; o+4 <= len(b); o += segment {
		protocol.SetMessageNumber(b[o:], h.Number)
	}
	kind := protocol.MessageType(b[0])
	err := u.writeRaw(h.Addr, b, segment)
	if err == nil {
		h.Sent(kind, len(b), segment)
	}
	return err
}

// sendHandshake sends one handshake message over every live path. What does
// not get out is sent again by the table.
func (u *Underlay) sendHandshake(to protocol.NodeNumber, msg []byte) {
	r := (*u.peers.Load())[to]
	if r == nil {
		return
	}
	for _, h := range r.route.Load().Live {
		if err := u.write(h, msg, len(msg)); err != nil {
			u.cfg.Log.Debug().Uint32("peer", uint32(to)).Stringer("addr", h.Addr).Err(err).Msg("handshake message not sent")
		}
	}
}
