package underlay

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"time"

	"causeway/protocol"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
)

// held is a handshake initiation that waits until its sender has proven its
// boot id. Otherwise news of the sender's restart could come after the engine
// has made a session of it, and throw that away.
type held struct {
	msg  []byte
	from Source
	at   time.Time
	// done: it was delivered. Copies, of other paths and sent again, are dropped for a while.
	done bool
}

const (
	heldFor = time.Second
	copyFor = time.Second
)

// event is something to do outside the lock, in order.
type event struct {
	restarted protocol.NodeNumber
	released  protocol.NodeNumber
	hub       protocol.NodeNumber // with bound
	bound     bool
	blocked   bool // whether UDP is blocked has changed
}

// reader is one socket's goroutine.
type reader struct {
	u    *Underlay
	recv Receiver
	now  time.Time

	run  []byte // gathered, to be delivered
	seg  int
	from Source
	who  *remote
	arrivals
}

func (u *Underlay) read(c *sock.Conn) error {
	r := &reader{u: u, recv: u.cfg.NewReader()}
	b := sock.NewBatch()
	for {
		messages, err := c.Read(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// An error of one datagram (ICMP), or a shortage that passes.
			u.drops.Add("receive_error", 1)
			time.Sleep(time.Millisecond)
			continue
		}
		r.now = time.Now()
		for i := range messages {
			if u.cfg.Plain {
				r.plain(&messages[i])
			} else {
				r.message(&messages[i])
			}
		}
		r.recv.Flush()
	}
}

func (r *reader) plain(m *sock.Message) {
	for o := 0; o < len(m.Data); o += m.Segment {
		d := m.Data[o:min(o+m.Segment, len(m.Data))]
		if t := protocol.ClassifyMessage(d); t == protocol.MessageUnknown || t == protocol.MessageProbe || protocol.MessageNumber(d) != 0 {
			r.u.drops.Add(DropMalformed, 1)
			r.deliver()
			continue
		}
		r.gather(nil, Source{Addr: m.From, Local: m.Local}, len(d), m.Data[o:], m.Segment)
	}
	r.deliver()
}

func (r *reader) message(m *sock.Message) {
	u := r.u
	source, peers := (*u.sources.Load())[m.From], *u.peers.Load()
	for o := 0; o < len(m.Data); o += m.Segment {
		d := m.Data[o:min(o+m.Segment, len(m.Data))]
		t := protocol.ClassifyMessage(d)
		if t == protocol.MessageUnknown {
			r.drop(DropMalformed)
			continue
		}
		if t == protocol.MessageProbe {
			r.deliver()
			r.arrivals.flush() // what came before it is counted in the answer
			r.probe(m.From, d)
			source, peers = (*u.sources.Load())[m.From], *u.peers.Load()
			continue
		}
		if source.remote == nil {
			r.drop(DropUnproven)
			continue
		}
		who, reason := sender(source, peers, protocol.MessageNumber(d))
		r.arrivals.add(source, who, t, len(d)) // it has come, whatever becomes of it
		if who == nil {
			r.drop(reason)
			continue
		}
		protocol.SetMessageNumber(d, 0)
		if !u.table.Received(r.now, who.number, d) {
			r.drop(DropCrossed)
			continue
		}
		from := Source{Peer: who.number, Addr: m.From}
		if t == protocol.MessageInitiation {
			r.deliver()
			r.hold(from, d)
			continue
		}
		r.gather(who, from, len(d), m.Data[o:], m.Segment)
	}
	r.arrivals.flush()
	r.deliver()
}

// sender is who sent a message with number n that came from a source; nil: nobody, for a reason.
func sender(from source, peers map[protocol.NodeNumber]*remote, n protocol.NodeNumber) (who *remote, reason string) {
	switch {
	case from.hub && n == 0:
		return from.remote, ""
	case from.hub:
		if who := peers[n]; who != nil && !who.hub {
			return who, ""
		}
		return nil, DropUnknownPeer
	case n == 0:
		return nil, DropPlain
	case n != from.number:
		return nil, DropUnproven
	}
	return from.remote, ""
}

// gather adds the n bytes at the start of rest to the run, or starts another.
// Whatever is not gathered ends the run, so what is gathered lies together.
func (r *reader) gather(who *remote, from Source, n int, rest []byte, segment int) {
	if len(r.run) > 0 && r.from != from {
		r.deliver()
	}
	if len(r.run) == 0 {
		r.run, r.seg, r.from, r.who = rest[:0], segment, from, who
	}
	r.run = r.run[:len(r.run)+n]
}

func (r *reader) drop(reason string) {
	r.u.drops.Add(reason, 1)
	r.deliver()
}

// deliver hands the run to the engine.
func (r *reader) deliver() {
	if len(r.run) == 0 {
		return
	}
	if r.who != nil {
		r.who.rx.Add(uint64(len(r.run)))
		if len(r.run) > protocol.MinTransportSize {
			r.u.touch(r.who)
		}
	}
	r.recv.Receive(r.from, r.run, min(r.seg, len(r.run)))
	r.run = nil
}

func (r *reader) probe(src netip.AddrPort, d []byte) {
	u := r.u
	u.mu.Lock()
	if reason := u.agent.Receive(r.now, src, d, &u.out); reason != probe.OK {
		u.drops.Add(string(reason), 1)
	}
	u.after(r)
}

// hold keeps an initiation until its sender has answered a question asked now.
func (r *reader) hold(from Source, d []byte) {
	u := r.u
	u.mu.Lock()
	h := u.held[from.Peer]
	same := h != nil && bytes.Equal(h.msg, d)
	if same && h.done && r.now.Sub(h.at) < copyFor {
		u.mu.Unlock()
		return
	}
	if !same || h.done || r.now.Sub(h.at) > heldFor {
		same = false
		u.held[from.Peer] = &held{msg: bytes.Clone(d), from: from, at: r.now}
	}
	u.agent.Hold(r.now, from.Peer, from.Addr, !same)
	u.agent.Tick(r.now, &u.out)
	u.after(r)
	u.poke()
}

// release delivers what was held.
func (r *reader) release(n protocol.NodeNumber) {
	u := r.u
	u.mu.Lock()
	h := u.held[n]
	if h == nil || h.done || r.now.Sub(h.at) > heldFor {
		u.mu.Unlock()
		u.drops.Add(DropNotYetProven, 1)
		return
	}
	h.done, h.at = true, r.now
	msg, from := bytes.Clone(h.msg), h.from
	u.mu.Unlock()
	if !u.table.Received(r.now, n, msg) { // we have sent one in the meantime
		u.drops.Add(DropCrossed, 1)
		return
	}
	if who := (*u.peers.Load())[n]; who != nil {
		who.rx.Add(uint64(len(msg)))
		u.touch(who)
	}
	r.recv.Receive(from, msg, len(msg))
}
