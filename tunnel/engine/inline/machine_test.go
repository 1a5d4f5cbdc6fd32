package inline

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"causeway/protocol"
	"causeway/tunnel/underlay"
)

func TestHandshakeBothWays(t *testing.T) {
	for _, psk := range [][32]byte{{}, {7, 7, 7}} {
		p := newPair(t)
		p.pa.psk, p.pb.psk = psk, psk
		p.handshake()
		exchange(t, p.pa.current.Load(), p.pb.current.Load())
		exchange(t, p.pb.current.Load(), p.pa.current.Load())
		require.Equal(t, 1, p.a.empty_, "the initiator proves by a keepalive that it has the keys")
		require.Nil(t, p.pa.pending)
	}
}

func TestWrongPresharedKey(t *testing.T) {
	p := newPair(t)
	p.pa.psk = [32]byte{1}
	p.a.m.initiate(p.pa, p.now, false)
	p.deliver(p.b, 2, p.a.take()...)
	p.deliver(p.a, 3, p.b.take()...)
	require.Nil(t, p.pa.current.Load())
	require.NotNil(t, p.pa.pending, "it goes on waiting for a true answer")
	require.EqualValues(t, 1, p.a.counts.badHandshake.Load())
}

func TestUnknownPeerIsNotAnswered(t *testing.T) {
	p, q := newPair(t), newPair(t)
	q.pa.key = p.b.key.Public()
	q.pa.cookies = newCookies(q.pa.key)
	q.a.m.initiate(q.pa, q.now, false)
	p.deliver(p.b, 2, q.a.take()...)
	require.Empty(t, p.b.take())
	require.EqualValues(t, 1, p.b.counts.badHandshake.Load())
}

func TestInitiationReplay(t *testing.T) {
	p := newPair(t)
	p.a.m.initiate(p.pa, p.now, false)
	m := p.a.take()
	p.deliver(p.b, 2, m...)
	require.Len(t, p.b.take(), 1)
	p.advance(time.Second)
	p.deliver(p.b, 2, m...)
	require.Empty(t, p.b.take(), "the same timestamp is not answered again")
	require.EqualValues(t, 1, p.b.counts.replayed.Load())
}

func TestInitiationFlood(t *testing.T) {
	p := newPair(t)
	for range 3 { // as an attacker with the private key could
		p.pa.lastHandshake = 0
		p.a.m.initiate(p.pa, p.now, false)
		p.deliver(p.b, 2, p.a.take()...)
		p.now = p.now.Add(initiationInterval / 4)
	}
	require.Len(t, p.b.take(), 1)
}

func TestDamagedHandshakeMessages(t *testing.T) {
	p := newPair(t)
	p.a.m.initiate(p.pa, p.now, false)
	init := p.a.take()[0]
	for i := range len(init) - 16 { // mac2 is zero and not looked at
		bad := bytes.Clone(init)
		bad[i] ^= 1
		require.False(t, p.b.m.validHandshake(bad), "byte %d", i)
	}
	require.False(t, p.b.m.validHandshake(init[:len(init)-1]))
	// With a right mac1, which anybody can make, the Noise message decides.
	for _, i := range []int{8, 40, 41, 90, 115} {
		bad := bytes.Clone(init)
		bad[i] ^= 1
		newCookies(p.b.key.Public()).AddMacs(bad)
		p.deliver(p.b, 2, bad)
		require.Empty(t, p.b.take(), "byte %d", i)
	}
	p.deliver(p.b, 2, init)
	resp := p.b.take()[0]
	for _, i := range []int{12, 43, 44, 59} {
		bad := bytes.Clone(resp)
		bad[i] ^= 1
		newCookies(p.a.key.Public()).AddMacs(bad)
		p.deliver(p.a, 3, bad)
		require.Nil(t, p.pa.current.Load(), "byte %d", i)
	}
	p.deliver(p.a, 3, resp)
	require.NotNil(t, p.pa.current.Load(), "the true response still works")
	p.confirmB()
	exchange(t, p.pa.current.Load(), p.pb.current.Load())
}

// lowOrder are the points of order 8 and less, and their twins beyond p.
var lowOrder = []string{
	"0000000000000000000000000000000000000000000000000000000000000000",
	"0100000000000000000000000000000000000000000000000000000000000000",
	"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
	"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
}

func TestLowOrderPoints(t *testing.T) {
	for _, text := range lowOrder {
		point, err := hex.DecodeString(text)
		require.NoError(t, err)
		p := newPair(t)
		p.a.m.initiate(p.pa, p.now, false)
		init := p.a.take()[0]
		bad := bytes.Clone(init)
		copy(bad[8:], point)
		newCookies(p.b.key.Public()).AddMacs(bad)
		p.deliver(p.b, 2, bad)
		require.Empty(t, p.b.take(), text)

		p.deliver(p.b, 2, init)
		resp := p.b.take()[0]
		bad = bytes.Clone(resp)
		copy(bad[12:], point)
		newCookies(p.a.key.Public()).AddMacs(bad)
		p.deliver(p.a, 3, bad)
		require.Nil(t, p.pa.current.Load(), text)
		p.deliver(p.a, 3, resp)
		require.NotNil(t, p.pa.current.Load(), "a forged response must not spoil the handshake")
		p.confirmB()
		exchange(t, p.pb.current.Load(), p.pa.current.Load())

		// As a peer's static key it only means that there is never a session.
		low := newPeer(9, [32]byte(point))
		p.a.m.initiate(low, p.now, false)
		require.Empty(t, p.a.take())
	}
}

func TestCrossingInitiations(t *testing.T) {
	p := newPair(t)
	p.a.m.initiate(p.pa, p.now, false)
	p.b.m.initiate(p.pb, p.now, false)
	fromA, fromB := p.a.take(), p.b.take()
	p.deliver(p.b, 2, fromA...)
	p.deliver(p.a, 3, fromB...)
	fromA, fromB = p.a.take(), p.b.take()
	require.Equal(t, []uint32{typeResponse}, kinds(fromA))
	p.deliver(p.b, 2, fromA...)
	p.deliver(p.a, 3, fromB...)
	a, b := p.pa.current.Load(), p.pb.current.Load()
	require.NotNil(t, a)
	require.NotNil(t, b)
	// Each sends with its own; each holds the other's too.
	find := func(s *side, index uint32) *session { return s.m.index.lookup(index).session.Load() }
	exchange(t, a, find(p.b, a.remote))
	exchange(t, b, find(p.a, b.remote))
}

func TestRekeyKeepsPrevious(t *testing.T) {
	p := newPair(t)
	p.handshake()
	a1, b1 := p.pa.current.Load(), p.pb.current.Load()
	p.advance(rekeyAfterTime)
	require.True(t, a1.stale(p.a.m.instant(p.now)))
	require.False(t, b1.stale(p.b.m.instant(p.now)), "only the initiator asks for a new session")
	p.a.take()
	p.handshake()
	a2, b2 := p.pa.current.Load(), p.pb.current.Load()
	require.NotSame(t, a1, a2)
	exchange(t, a2, b2)
	require.NotNil(t, p.b.m.index.lookup(a1.remote), "what is under way still arrives")
	p.advance(10 * time.Second)
	p.handshake()
	require.Nil(t, p.b.m.index.lookup(a1.remote))
	require.Nil(t, p.a.m.index.lookup(b1.remote))
	require.LessOrEqual(t, p.a.m.index.used, 3)
}

func TestRetransmissionAndGivingUp(t *testing.T) {
	p := newPair(t)
	p.a.waits = 5
	p.a.m.event(p.pa, eventHandshake, p.now)
	begin := p.now
	var at []time.Duration
	for p.now.Sub(begin) < 3*time.Minute {
		if len(p.a.take()) > 0 {
			at = append(at, p.now.Sub(begin))
		}
		p.advance(100 * time.Millisecond)
	}
	require.Len(t, at, maxAttempts+2)
	for i, d := range at[1:] {
		gap := d - at[i]
		require.GreaterOrEqual(t, gap, rekeyTimeout)
		require.LessOrEqual(t, gap, rekeyTimeout+rekeyJitter+200*time.Millisecond)
	}
	require.Equal(t, 5, p.a.drops, "what waited is dropped")
	p.a.m.event(p.pa, eventHandshake, p.now)
	require.Len(t, p.a.take(), 1, "new traffic starts over")
}

func TestKeepaliveTimer(t *testing.T) {
	p := newPair(t)
	p.handshake()
	p.a.empty_ = 0
	p.pa.noteReceived(p.a.m.instant(p.now), true)
	p.a.m.event(p.pa, eventActivity, p.now)
	p.advance(keepaliveTimeout - time.Millisecond)
	require.Zero(t, p.a.empty_)
	p.advance(2 * time.Millisecond)
	require.Equal(t, 1, p.a.empty_)
	p.advance(time.Minute)
	require.Equal(t, 1, p.a.empty_, "a keepalive is not answered")

	// What was sent meanwhile makes it needless.
	p.pa.noteReceived(p.a.m.instant(p.now), true)
	p.a.m.event(p.pa, eventActivity, p.now)
	p.advance(time.Second)
	p.pa.noteSent(p.a.m.instant(p.now), true)
	p.pa.noteReceived(p.a.m.instant(p.now), false)
	p.advance(time.Minute)
	require.Equal(t, 1, p.a.empty_)
}

func TestSilentPeerMakesNewHandshake(t *testing.T) {
	p := newPair(t)
	p.handshake()
	p.advance(6 * time.Second)
	require.True(t, p.pa.noteSent(p.a.m.instant(p.now), true))
	p.a.m.event(p.pa, eventActivity, p.now)
	p.advance(keepaliveTimeout + rekeyTimeout - time.Millisecond)
	require.Empty(t, p.a.take())
	p.advance(rekeyJitter + 2*time.Millisecond)
	require.Equal(t, []uint32{typeInitiation}, kinds(p.a.take()))
}

// A timer that the data path starts while the control side watches another
// one must not be late.
func TestWatchedTimersAreNotLate(t *testing.T) {
	p := newPair(t)
	p.handshake()
	p.a.empty_ = 0
	p.pa.noteSent(p.a.m.instant(p.now), true)
	p.a.m.event(p.pa, eventActivity, p.now) // watches unanswered
	p.advance(time.Second)
	require.False(t, p.pa.noteReceived(p.a.m.instant(p.now), true))
	p.advance(keepaliveTimeout + time.Millisecond)
	require.Equal(t, 1, p.a.empty_)
}

func TestPersistentKeepalive(t *testing.T) {
	p := newPair(t)
	p.pa.keepalive = 25 * time.Second
	p.handshake()
	p.a.m.schedule(p.pa, p.a.m.instant(p.now))
	p.a.empty_ = 0
	p.advance(100*time.Second + time.Second)
	require.Equal(t, 4, p.a.empty_)
}

func TestKeysAreErased(t *testing.T) {
	p := newPair(t)
	p.handshake()
	key := aeadKey(p.pa.current.Load().send)
	require.NotNil(t, key, "the shape of x/crypto's AEAD has changed")
	require.NotEqual(t, [32]byte{}, *key)
	p.advance(eraseAfter + time.Second)
	require.Nil(t, p.pa.current.Load())
	require.Nil(t, p.pb.current.Load())
	require.Zero(t, p.a.m.index.used)
	for deadline := time.Now().Add(10 * time.Second); *key != [32]byte{}; {
		require.True(t, time.Now().Before(deadline), "the key is still in memory")
		runtime.GC()
		runtime.Gosched()
	}
}

func TestUnderLoad(t *testing.T) {
	p := newPair(t)
	from := underlay.Source{Peer: 2}
	p.a.m.event(p.pa, eventHandshake, p.now)
	init := p.a.take()[0]
	p.b.m.handle(p.now, from, init, true)
	reply := p.b.take()
	require.Equal(t, []uint32{typeCookie}, kinds(reply))
	require.Nil(t, p.pb.next.Load())
	damaged := bytes.Clone(reply[0])
	damaged[40] ^= 1
	p.deliver(p.a, 3, damaged)
	require.EqualValues(t, 1, p.a.counts.badHandshake.Load())
	p.deliver(p.a, 3, reply...)
	p.advance(rekeyTimeout + rekeyJitter)
	init = p.a.take()[0]
	require.NotEqual(t, make([]byte, 16), init[132:], "it has a mac2 now")
	// From elsewhere the cookie is worth nothing.
	p.b.m.handle(p.now, underlay.Source{Peer: 77}, init, true)
	require.Equal(t, []uint32{typeCookie}, kinds(p.b.take()))
	p.b.refuse = true
	p.b.m.handle(p.now, from, init, true)
	require.Empty(t, p.b.take())
	p.b.refuse = false
	p.b.m.handle(p.now, from, init, true)
	require.Equal(t, []uint32{typeResponse}, kinds(p.b.take()))
}

func TestCounterLimits(t *testing.T) {
	p := newPair(t)
	p.handshake()
	s := p.pa.current.Load()
	now := p.a.m.instant(p.now)
	require.False(t, s.stale(now))
	s.next.Store(rekeyAfterMessages)
	require.True(t, s.stale(now))
	require.True(t, s.usable(now))
	s.next.Store(rejectAfterMessages - 2)
	_, ok := s.reserve(3)
	require.False(t, ok)
	c, ok := s.reserve(2)
	require.True(t, ok)
	require.Equal(t, rejectAfterMessages-2, c)
	require.False(t, s.usable(now))
	_, ok = s.reserve(1)
	require.False(t, ok)

	accept := func(c uint64) bool { ok := []bool{true}; s.accept([]uint64{c}, ok); return ok[0] }
	require.True(t, accept(0))
	require.False(t, accept(0))
	require.True(t, accept(9000))
	require.False(t, accept(9000-8128-1), "behind the window")
	require.True(t, accept(9000-8128))
	require.True(t, accept(rejectAfterMessages-1))
	require.False(t, accept(rejectAfterMessages))
	require.False(t, accept(^uint64(0)))
}

func TestSessionAge(t *testing.T) {
	p := newPair(t)
	p.handshake()
	s := p.pa.current.Load()
	require.True(t, s.usable(p.a.m.instant(p.now.Add(rejectAfterTime-1))))
	require.False(t, s.usable(p.a.m.instant(p.now.Add(rejectAfterTime))))
}

func TestTimestampsRise(t *testing.T) {
	var last tai64n.Timestamp
	now := time.Now()
	for i := range 200 {
		s := timestamp(now.Add(-time.Duration(i)*time.Hour), last)
		require.True(t, s.After(last))
		last = s
	}
	require.Equal(t, tai64n.Now().String()[:16], timestamp(time.Now(), tai64n.Timestamp{}).String()[:16])
}

func TestIndexTable(t *testing.T) {
	x := newIndexTable()
	p := &peer{}
	var all []*entry
	for range 5000 {
		e := x.add(p)
		all = append(all, e)
	}
	for i, e := range all {
		require.Same(t, e, x.lookup(e.index))
		require.Nil(t, x.lookup(e.index^1<<31))
		if i%2 == 0 {
			x.remove(e)
			x.remove(e)
			require.Nil(t, x.lookup(e.index))
		}
	}
	require.Equal(t, 2500, x.used)
}

// Formats are the peer's too: sizes and places as wireguard-go's own types.
func TestMessageFormats(t *testing.T) {
	p := newPair(t)
	p.a.m.initiate(p.pa, p.now, false)
	m := p.a.take()[0]
	var msg device.MessageInitiation
	require.NoError(t, binary.Read(bytes.NewReader(m), binary.LittleEndian, &msg))
	require.EqualValues(t, 1, msg.Type)
	require.Equal(t, p.pa.pending.entry.index, msg.Sender)
	require.Equal(t, msg.MAC1[:], m[116:132])
	require.Zero(t, msg.MAC2)
}

// A peer that starts again with its clock set back by a day: its initiations
// look old until news of its restart has the engine forget it.
func TestRestartWithTheClockSetBack(t *testing.T) {
	p := newPair(t)
	p.handshake()
	back := p.now.Add(-24 * time.Hour)
	again := &side{t: t, key: p.a.key, number: p.a.number}
	again.m = newMachine(0, again.key, back, again, &again.counts)
	there := newPeer(3, p.b.key.Public())
	again.m.add(there, back)
	again.m.initiate(there, back, false)
	m := again.take()
	p.advance(time.Second)
	p.deliver(p.b, 2, m...)
	require.Empty(t, p.b.take())
	require.EqualValues(t, 1, p.b.counts.replayed.Load())

	e := &Engine{machine: p.b.m, numbers: map[protocol.NodeNumber]*peer{2: p.pb}}
	e.ResetPeer(2)
	p.deliver(p.b, 2, m...)
	answer := p.b.take()
	require.Len(t, answer, 1)
	again.m.handle(back, underlay.Source{Peer: 3}, answer[0], false)
	exchange(t, there.current.Load(), p.pb.next.Load())
}
