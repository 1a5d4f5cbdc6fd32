package inline

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/device"

	"causeway/protocol"
	"causeway/tunnel/underlay"
)

// side is one machine in lock-step tests: no goroutine, no clock; the test
// carries messages and moves the time.
type side struct {
	t      *testing.T
	m      *machine
	key    protocol.WireGuardPrivateKey
	number protocol.NodeNumber
	counts counters
	sent   [][]byte // handshake messages and cookie replies
	empty_ int      // keepalives
	refuse bool     // what allow says
	staged int
	waits  int // packets that wait for a session
	drops  int
}

func (s *side) send(_ *peer, m []byte)                { s.sent = append(s.sent, m) }
func (s *side) answer(_ underlay.Source, m []byte)    { s.sent = append(s.sent, m) }
func (s *side) heard(*peer, underlay.Source)          {}
func (s *side) note(*peer, string)                    {}
func (s *side) allow(netip.Addr) bool                 { return !s.refuse }
func (s *side) drop(*peer)                            { s.drops += s.waits; s.waits = 0 }
func (s *side) empty(p *peer, _ *session, at instant) { s.empty_++; p.noteSent(at, false) }
func (s *side) flush(p *peer) bool {
	n := s.waits
	s.staged, s.waits = s.staged+n, 0
	return n > 0
}

// take returns the messages sent since the last take.
func (s *side) take() [][]byte {
	m := s.sent
	s.sent = nil
	return m
}

// pair is two machines that know each other, and the time.
type pair struct {
	*testing.T
	a, b   *side
	pa, pb *peer // b as a sees it, a as b sees it
	now    time.Time
}

func newPair(t *testing.T) *pair {
	start := time.Now()
	mk := func(n protocol.NodeNumber) *side {
		k, err := protocol.NewWireGuardPrivateKey()
		require.NoError(t, err)
		s := &side{t: t, key: k, number: n}
		s.m = newMachine(0, k, start, s, &s.counts)
		return s
	}
	p := &pair{T: t, a: mk(2), b: mk(3), now: start}
	p.pa, p.pb = newPeer(3, p.b.key.Public()), newPeer(2, p.a.key.Public())
	p.a.m.add(p.pa, p.now)
	p.b.m.add(p.pb, p.now)
	return p
}

// deliver hands messages to a side as its readers would.
func (p *pair) deliver(to *side, from protocol.NodeNumber, msgs ...[]byte) {
	for _, m := range msgs {
		if to.m.validHandshake(m) {
			to.m.handle(p.now, underlay.Source{Peer: from}, m, false)
		}
	}
}

// advance moves the time and runs the timers on the way, on both sides.
func (p *pair) advance(d time.Duration) {
	end := p.now.Add(d)
	for {
		next := time.Time{}
		for _, s := range []*side{p.a, p.b} {
			if at := s.m.advance(p.now); at != 0 {
				if t := s.m.origin.Add(time.Duration(at - 1)); next.IsZero() || t.Before(next) {
					next = t
				}
			}
		}
		if next.IsZero() || next.After(end) {
			break
		}
		if next.After(p.now) {
			p.now = next
		}
	}
	p.now = end
	p.a.m.advance(p.now)
	p.b.m.advance(p.now)
}

// handshake runs one from a to b to the end, with the first message.
func (p *pair) handshake() {
	p.Helper()
	p.a.m.initiate(p.pa, p.now, false)
	p.deliver(p.b, 2, p.a.take()...)
	p.deliver(p.a, 3, p.b.take()...)
	s := p.pa.current.Load()
	require.NotNil(p, s)
	p.confirmB()
}

// confirmB acts for b's reader when a's first message arrives.
func (p *pair) confirmB() {
	p.Helper()
	require.True(p, p.pb.confirm(p.pb.next.Load()))
	p.b.m.event(p.pb, eventConfirmed, p.now)
}

// exchange seals with one session and opens with the other.
func exchange(t *testing.T, from, to *session) {
	t.Helper()
	c, ok := from.reserve(1)
	require.True(t, ok)
	var n [12]byte
	binary.LittleEndian.PutUint64(n[4:], c)
	x := from.send.Seal(nil, n[:], []byte("data"), nil)
	got, err := to.receive.Open(nil, n[:], x, nil)
	require.NoError(t, err)
	require.Equal(t, "data", string(got))
	require.Equal(t, from.remote, to.entry.index)
}

// kinds are the types of messages.
func kinds(msgs [][]byte) (k []uint32) {
	for _, m := range msgs {
		k = append(k, binary.LittleEndian.Uint32(m))
	}
	return k
}

const (
	typeInitiation = device.MessageInitiationType
	typeResponse   = device.MessageResponseType
	typeCookie     = device.MessageCookieReplyType
)
