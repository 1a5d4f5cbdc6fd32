// Package probe decides over paths: Agent which paths lead to hubs and peers,
// Binder which addresses belong to which node. Both are state machines without
// I/O, goroutines or a clock: datagrams and the time go in, datagrams and
// decisions come out (Output). They are not safe for concurrent use.
//
// Who can send what is the threat model: anybody can forge, replay, reflect,
// delay and reorder datagrams from any source address. So nothing
// unauthenticated is answered, a source is a candidate until our own question
// over it was answered, and only the answer to a fresh nonce or cookie of our
// own moves anything. Whoever forwards every datagram in both directions,
// live, is a path like any NAT.
package probe

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"time"

	"causeway/protocol"
)

// Config is who we are.
type Config struct {
	Self       protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	KeyEpoch   uint32
	Boot       protocol.BootID
	// Private says how candidates in private ranges are tried.
	Private PrivateCandidates
	// Rand makes nonces; nil takes crypto/rand.
	Rand func() uint64
}

func (c *Config) fill() {
	if c.Rand == nil {
		c.Rand = func() uint64 {
			var b [8]byte
			rand.Read(b[:]) // never fails since Go 1.24
			return binary.BigEndian.Uint64(b[:])
		}
	}
}

// Send is a datagram to send.
type Send struct {
	To   netip.AddrPort
	From netip.Addr // that the question came to (Binder)
	Data []byte
}

// Output gathers what a call decided. The caller empties it by Reset.
type Output struct {
	Sends []Send
	// Restarted has proven another boot id than before.
	Restarted []protocol.NodeNumber
	// Released has proven its boot id by a question asked after Hold.
	Released []protocol.NodeNumber
	// Routes lists peers and hubs whose Route has changed (Agent), or nodes
	// whose Bound has (Binder).
	Routes []protocol.NodeNumber
	// Changed says that Sources (Agent) or the bindings (Binder) have changed.
	Changed bool
	// Again says that Tick has something to do before the time it named.
	Again bool
}

// Reset empties o.
func (o *Output) Reset() { *o = Output{Sends: o.Sends[:0]} }

// Reason says why a datagram was not acted on; empty: it was.
type Reason string

// Reasons.
const (
	OK              Reason = ""
	Malformed       Reason = "probe_malformed"
	Misaddressed    Reason = "probe_misaddressed"    // not for us, not of a kind for us, or numbers that do not agree
	UnknownSender   Reason = "probe_unknown_sender"  // no such node, or not from a hub's address
	Unauthenticated Reason = "probe_unauthenticated" // the MAC is wrong
	Forbidden       Reason = "probe_direct_forbidden"
	Replayed        Reason = "probe_replayed" // answers no question of ours, or was seen before
	Limited         Reason = "probe_limited"  // over 20 answers a second
)

// Answers to one peer: 20 a second.
const (
	answersPerSecond = 20
	answersBurst     = 20
)

// bucket is a token bucket. The zero value is full.
type bucket struct {
	used float64
	at   time.Time
}

func (b *bucket) take(now time.Time) bool {
	if d := now.Sub(b.at); d > 0 {
		b.used, b.at = max(0, b.used-d.Seconds()*answersPerSecond), now
	}
	if b.used+1 > answersBurst {
		return false
	}
	b.used++
	return true
}

// seen remembers the last nonces that were answered, so that a recorded
// question, sent again and again, does not use up its sender's answers.
type seen struct {
	nonces [64]uint64
	next   int
}

func (s *seen) add(n uint64) bool {
	for _, v := range s.nonces {
		if v == n {
			return false
		}
	}
	s.nonces[s.next], s.next = n, (s.next+1)%len(s.nonces)
	return true
}

// proof is what a peer or hub has proven of its boot id. Questions are
// numbered; an answer to an older question than the one that the present boot
// id rests on proves nothing new, however late it comes.
type proof struct {
	boot    protocol.BootID
	known   bool
	seq     uint64 // question that boot was last proven by
	holding bool
	holdSeq uint64 // a question after this one releases
}

// proven takes an answer to our own question number seq. It reports whether
// the answer is evidence at all.
func (p *proof) proven(n protocol.NodeNumber, boot protocol.BootID, seq uint64, out *Output) bool {
	if p.known && boot != p.boot {
		if seq <= p.seq {
			return false
		}
		out.Restarted = append(out.Restarted, n)
	}
	p.boot, p.known, p.seq = boot, true, max(p.seq, seq)
	if p.holding && seq > p.holdSeq {
		p.holding = false
		out.Released = append(out.Released, n)
	}
	return true
}
