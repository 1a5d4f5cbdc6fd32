// Package handshake sends WireGuard's handshake messages again until they are
// answered, and settles initiations that cross, for every engine alike. It
// knows them by type and index alone. wireguard-go by itself tries again after
// five seconds, and two of them that start together refuse each other's answer.
package handshake

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"causeway/protocol"
)

// Timing.
const (
	Every = 250 * time.Millisecond
	Times = 20
	// crossFor is how long our own initiation makes us drop the other side's:
	// not for good, ours might never get through.
	crossFor = 1500 * time.Millisecond
)

type pending struct {
	msg   []byte // 148 or 92 bytes, reserved bytes zero
	index uint32 // sender index: what an answer names as receiver
	first time.Time
	next  time.Time
	left  int
}

// Table holds the unanswered handshake messages to every peer. Its methods
// may be called concurrently; time is passed in.
type Table struct {
	self protocol.NodeNumber
	send func(to protocol.NodeNumber, msg []byte) // over every live path; may overwrite the reserved bytes
	wake func()

	mu          sync.Mutex
	initiations map[protocol.NodeNumber]*pending
	responses   map[protocol.NodeNumber]*pending
	open        atomic.Int32 // len(responses), for the fast path of transport messages
}

// New returns an empty table. send is called by Tick and Sent, with no lock
// held; wake when Tick is wanted earlier than it said.
func New(self protocol.NodeNumber, send func(protocol.NodeNumber, []byte), wake func()) *Table {
	return &Table{self: self, send: send, wake: wake, initiations: map[protocol.NodeNumber]*pending{}, responses: map[protocol.NodeNumber]*pending{}}
}

// Is reports whether b begins with a message that a Table takes: an initiation or a response.
func Is(b []byte) bool {
	if len(b) < protocol.MinTransportSize {
		return false
	}
	t := protocol.MessageType(b[0])
	return t == protocol.MessageInitiation || t == protocol.MessageResponse
}

// Sent takes a handshake message that an engine sends to a peer (types 1 and
// 2), sends it and keeps a copy.
func (t *Table) Sent(now time.Time, to protocol.NodeNumber, msg []byte) {
	p := &pending{msg: append([]byte(nil), msg...), index: binary.LittleEndian.Uint32(msg[4:]), first: now, next: now.Add(Every), left: Times}
	protocol.SetMessageNumber(p.msg, 0)
	t.mu.Lock()
	if protocol.MessageType(msg[0]) == protocol.MessageInitiation {
		t.initiations[to] = p
	} else {
		t.responses[to] = p
		// The engine has taken the other's initiation: ours has lost, if there is one.
		delete(t.initiations, to)
	}
	t.unlock()
	t.send(to, msg)
	t.wake()
}

// Received takes a message of a type other than probe that came from a peer,
// before the engine sees it, and reports whether the engine is to see it. For
// transport messages it costs a lock only while a response is unanswered.
func (t *Table) Received(now time.Time, from protocol.NodeNumber, msg []byte) bool {
	if protocol.MessageType(msg[0]) == protocol.MessageTransport && t.open.Load() == 0 {
		return true
	}
	t.mu.Lock()
	defer t.unlock()
	switch protocol.MessageType(msg[0]) {
	case protocol.MessageInitiation:
		// Crossed: the lower number's wins.
		p := t.initiations[from]
		return p == nil || t.self > from || now.Sub(p.first) >= crossFor
	case protocol.MessageResponse:
		t.answered(t.initiations, from, binary.LittleEndian.Uint32(msg[8:]))
	case protocol.MessageCookie:
		t.answered(t.initiations, from, binary.LittleEndian.Uint32(msg[4:]))
		t.answered(t.responses, from, binary.LittleEndian.Uint32(msg[4:]))
	case protocol.MessageTransport:
		t.answered(t.responses, from, binary.LittleEndian.Uint32(msg[4:]))
	}
	return true
}

func (t *Table) unlock() {
	t.open.Store(int32(len(t.responses)))
	t.mu.Unlock()
}

func (t *Table) answered(m map[protocol.NodeNumber]*pending, from protocol.NodeNumber, index uint32) {
	if p := m[from]; p != nil && p.index == index {
		delete(m, from)
	}
}

// Forget drops what is kept for a peer.
func (t *Table) Forget(n protocol.NodeNumber) {
	t.mu.Lock()
	defer t.unlock()
	delete(t.initiations, n)
	delete(t.responses, n)
}

// Hurry makes what is kept for a peer due now: a path has come up.
func (t *Table) Hurry(now time.Time, n protocol.NodeNumber) {
	t.mu.Lock()
	any := false
	for _, m := range []map[protocol.NodeNumber]*pending{t.initiations, t.responses} {
		if p := m[n]; p != nil {
			p.next, any = now, true
		}
	}
	t.unlock()
	if any {
		t.wake()
	}
}

// Tick sends again what is due, and returns when it wants to be called next;
// zero: when Sent or Hurry calls wake.
func (t *Table) Tick(now time.Time) time.Time {
	type out struct {
		to  protocol.NodeNumber
		msg []byte
	}
	var (
		due  []out
		next time.Time
	)
	t.mu.Lock()
	for _, m := range []map[protocol.NodeNumber]*pending{t.initiations, t.responses} {
		for n, p := range m {
			if !now.Before(p.next) {
				if p.left == 0 {
					delete(m, n)
					continue
				}
				p.left--
				p.next = now.Add(Every)
				due = append(due, out{n, append([]byte(nil), p.msg...)})
			}
			if next.IsZero() || p.next.Before(next) {
				next = p.next
			}
		}
	}
	t.unlock()
	for _, o := range due {
		t.send(o.to, o.msg)
	}
	return next
}
