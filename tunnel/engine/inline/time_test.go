package inline_test

import (
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/engine/inline"
)

// wire notes what passes on a network, and drops what block says.
type wire struct {
	mu    sync.Mutex
	block func(from protocol.NodeNumber, d []byte) bool
	seen  []event
}

type event struct {
	at   time.Time
	from protocol.NodeNumber
	to   protocol.NodeNumber
	kind byte // message type; 0: keepalive
}

func (w *wire) hook(from, to protocol.NodeNumber, d []byte) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := event{time.Now(), from, to, d[0]}
	if d[0] == 4 && len(d) == 32 {
		e.kind = 0
	}
	w.seen = append(w.seen, e)
	if w.block != nil && w.block(from, d) {
		return nil
	}
	return [][]byte{d}
}

func (w *wire) set(block func(protocol.NodeNumber, []byte) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.block, w.seen = block, nil
}

// times are when node from sent messages of a kind.
func (w *wire) times(from protocol.NodeNumber, kind byte) []time.Time {
	return w.when(func(e event) bool { return e.from == from && e.kind == kind })
}

// timesTo are when messages of a kind were sent to a node.
func (w *wire) timesTo(to protocol.NodeNumber, kind byte) []time.Time {
	return w.when(func(e event) bool { return e.to == to && e.kind == kind })
}

func (w *wire) when(is func(event) bool) (at []time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.seen {
		if is(e) {
			at = append(at, e.at)
		}
	}
	return at
}

type bubble struct {
	*wire
	x, y *enginetest.Node
}

// inBubble runs f with two engines in a bubble of virtual time, for the pairs
// where node 2 or node 3 is an inline engine.
func inBubble(t *testing.T, keepalive time.Duration, f func(t *testing.T, b *bubble)) {
	for _, c := range []struct {
		name string
		x, y enginetest.Factory
	}{
		{"inline with inline", inlineEngine, inlineEngine},
		{"inline with wireguard-go", inlineEngine, wireguardGo},
		{"wireguard-go with inline", wireguardGo, inlineEngine},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := enginetest.NewNetwork()
				b := &bubble{wire: &wire{}}
				net.SetHook(b.hook)
				b.x = enginetest.Start(t, net, c.x, 2, enginetest.Key(t), time.Hour)
				b.y = enginetest.Start(t, net, c.y, 3, enginetest.Key(t), time.Hour)
				require.NoError(t, b.y.Engine.SetPeers([]engine.Peer{b.x.Peer()}))
				p := b.y.Peer()
				p.Keepalive = keepalive
				require.NoError(t, b.x.Engine.SetPeers([]engine.Peer{p}))
				// Until an engine's Run has come so far it drops what it gets, and
				// nobody here sends a handshake again soon, as the underlay does.
				synctest.Wait()
				f(t, b)
			})
		})
	}
}

// send sends a numbered packet and reports whether it arrives within a second.
func (b *bubble) send(i int) bool {
	payload := binary.BigEndian.AppendUint32([]byte("packet"), uint32(i))
	b.x.Send(b.x.Addr4(), b.y.Addr4(), payload)
	deadline := time.After(time.Second)
	for {
		select {
		case p := <-b.y.TUN.Out:
			if string(enginetest.Payload(p)) == string(payload) {
				return true
			}
		case <-deadline:
			return false
		}
	}
}

// drain forgets what has arrived.
func (b *bubble) drain() (n int) {
	for {
		select {
		case <-b.y.TUN.Out:
			n++
		default:
			return n
		}
	}
}

// A flow goes on over many sessions and loses nothing.
func TestRekeyInMidFlow(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, b *bubble) {
		for i := range 700 {
			require.True(t, b.send(i), "packet %d", i)
			time.Sleep(time.Second)
		}
		starts := b.times(2, 1)
		if b.x.Engine.Name() != inline.Name {
			// wireguard-go arms the retry after it has sent: the answer, on a wire
			// without delay, may be there before, and the retry is made all the same.
			starts = slices.CompactFunc(starts, func(a, b time.Time) bool { return b.Sub(a).Abs() < 6*time.Second })
		}
		require.GreaterOrEqual(t, len(starts), 5, "a new session every two minutes")
		for i, at := range starts[1:] {
			gap := at.Sub(starts[i])
			require.InDelta(t, 120, gap.Seconds(), 4)
		}
		require.Empty(t, b.times(3, 1), "the responder does not ask")
	})
}

// Who received and has nothing to say sends one keepalive after 10 seconds.
func TestPassiveKeepalive(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, b *bubble) {
		require.True(t, b.send(1))
		time.Sleep(time.Minute) // what the handshake left
		b.set(nil)
		require.True(t, b.send(2))
		at := time.Now()
		time.Sleep(time.Minute)
		got := b.times(3, 0)
		require.Len(t, got, 1)
		require.InDelta(t, 10, got[0].Sub(at).Seconds(), 0.1)
		require.Empty(t, b.times(2, 0))
		require.Empty(t, b.times(2, 1), "the keepalive was the sign of life")
	})
}

// An unreachable peer is tried again every 5 seconds for 90, and is back with
// the next packet once it can be reached.
func TestDeadPeer(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, b *bubble) {
		require.True(t, b.send(1))
		time.Sleep(20 * time.Second)
		b.set(func(from protocol.NodeNumber, _ []byte) bool { return from == 3 })
		at := time.Now()
		b.send(2)
		time.Sleep(5 * time.Minute)
		tries := b.times(2, 1)
		require.InDelta(t, 15, tries[0].Sub(at).Seconds(), 0.5, "10 seconds for the keepalive, 5 for the way")
		require.InDelta(t, 20, len(tries), 1)
		for i, try := range tries[1:] {
			require.InDelta(t, 5.2, try.Sub(tries[i]).Seconds(), 0.35)
		}
		b.set(nil)
		b.drain()
		b.send(3)
		require.Eventually(t, func() bool { return b.send(4) }, time.Minute, time.Second)
	})
}

func TestPersistentKeepaliveOnTheWire(t *testing.T) {
	inBubble(t, 25*time.Second, func(t *testing.T, b *bubble) {
		time.Sleep(time.Second)
		require.NotEmpty(t, b.times(2, 1), "the session is made without traffic")
		b.set(nil)
		time.Sleep(101 * time.Second)
		require.InDelta(t, 4, len(b.times(2, 0)), 1)
	})
}

// Without new keys nothing passes after 180 seconds, and what waited arrives
// when handshakes pass again.
func TestSessionsEnd(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, b *bubble) {
		require.True(t, b.send(0))
		began := time.Now()
		b.set(func(_ protocol.NodeNumber, d []byte) bool { return d[0] != 4 })
		for i := 1; time.Since(began) < 179*time.Second; i++ {
			require.True(t, b.send(i), "after %s", time.Since(began))
			time.Sleep(time.Second)
		}
		time.Sleep(3 * time.Second)
		b.set(func(_ protocol.NodeNumber, d []byte) bool { return d[0] != 4 })
		for i := range 20 {
			require.False(t, b.send(1000+i))
		}
		require.Empty(t, b.times(2, 4), "data under a dead session")
		b.set(nil)
		time.Sleep(10 * time.Second)
		require.Equal(t, 20, b.drain(), "packets that waited")
	})
}

// Long after the keys are forgotten the peers find each other again.
func TestLongSilence(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, b *bubble) {
		require.True(t, b.send(1))
		time.Sleep(15 * time.Minute)
		b.set(nil)
		require.True(t, b.send(2))
		require.Len(t, b.times(2, 1), 1)
	})
}

// One that only receives renews the session too, if it began it.
func TestReceiverRenews(t *testing.T) {
	inBubble(t, 0, func(t *testing.T, b *bubble) {
		require.True(t, b.send(1)) // node 2 is the initiator
		time.Sleep(119 * time.Second)
		b.set(nil)
		began := time.Now()
		for time.Since(began) < 4*time.Minute {
			b.y.Send(b.y.Addr4(), b.x.Addr4(), []byte("to the initiator"))
			time.Sleep(time.Second)
		}
		require.NotEmpty(t, b.times(2, 1))
		require.NotEmpty(t, b.times(3, 4))
		n := 0
		for len(b.x.TUN.Out) > 0 {
			<-b.x.TUN.Out
			n++
		}
		require.Equal(t, 240, n)
	})
}
