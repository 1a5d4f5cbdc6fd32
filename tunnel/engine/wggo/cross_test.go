package wggo

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/underlay"
)

func handshakeMessage(kind byte, sender, receiver uint32) []byte {
	m := make([]byte, map[byte]int{1: 148, 2: 92}[kind])
	m[0] = kind
	binary.LittleEndian.PutUint32(m[4:], sender)
	if kind == 2 {
		binary.LittleEndian.PutUint32(m[8:], receiver)
	}
	return m
}

// A response is the device's once, by whatever paths it comes; a resent one may be taken later,
// as the first may have been lost on the way to the device.
func TestCopiesOfResponses(t *testing.T) {
	var c cross
	now := time.Unix(1000, 0)
	c.leaves(now, handshakeMessage(1, 7, 0))
	forged, good := handshakeMessage(2, 9, 7), handshakeMessage(2, 9, 7)
	forged[50] = 1
	require.Equal(t, deliver, c.comes(now, forged, true), "the device knows it for what it is")
	require.Equal(t, deliver, c.comes(now, good, true), "and it keeps nobody else's away")
	c = cross{}
	c.leaves(now, handshakeMessage(1, 7, 0))
	require.Equal(t, deliver, c.comes(now, good, true))
	require.Equal(t, ignore, c.comes(now, good, true))
	require.Equal(t, ignore, c.comes(now.Add(crossing/2), good, true))
	require.Equal(t, deliver, c.comes(now.Add(crossing), good, true))
	require.Equal(t, deliver, c.comes(now, handshakeMessage(2, 9, 8), true), "of no initiation of ours")
	require.Equal(t, deliver, c.comes(now, good[:91], true))

	// What they sent before they answered ours is theirs no more.
	require.Equal(t, ignore, c.comes(now, handshakeMessage(1, 5, 0), false))
	require.Equal(t, deliver, c.comes(now.Add(crossing), handshakeMessage(1, 5, 0), false))
	c.forget()
	require.Equal(t, deliver, c.comes(now, handshakeMessage(1, 5, 0), false), "the peer has restarted")
}

// Each side has an initiation under way when it takes the other's, because that was in its
// queue already: a session comes of it without WireGuard's retry after 5 s, whoever has
// something to send.
func TestBothAnswer(t *testing.T) {
	for _, speaks := range []protocol.NodeNumber{2, 3} {
		engines := map[protocol.NodeNumber]*Engine{}
		factory := func(c enginetest.Config) (engine.Engine, error) {
			e, err := New(Config{Number: c.Number, PrivateKey: c.PrivateKey, TUN: c.TUN, Carrier: c.Carrier, Log: c.Log, AnyDestination: c.AnyDestination})
			engines[c.Number] = e
			return e, err
		}
		net := enginetest.NewNetwork()
		x := enginetest.Start(t, net, factory, 2, enginetest.Key(t), 0)
		y := enginetest.Start(t, net, factory, 3, enginetest.Key(t), 0)
		// Initiations wait until there is one each way; responses until there are two.
		held := map[byte]map[protocol.NodeNumber][]byte{1: {}, 2: {}}
		ready := map[byte]chan struct{}{1: make(chan struct{}), 2: make(chan struct{})}
		net.SetHook(func(from, _ protocol.NodeNumber, d []byte) [][]byte {
			l := held[d[0]]
			if l == nil || len(l) == 2 {
				return [][]byte{d}
			}
			l[from] = d
			if len(l) == 2 {
				close(ready[d[0]])
			}
			return nil
		})
		enginetest.Join(t, x, y)
		x.Send(x.Addr4(), y.Addr4(), []byte("one"))
		y.Send(y.Addr4(), x.Addr4(), []byte("other"))
		// As if it had been judged before ours left.
		into := func(kind byte, q *Engine, from protocol.NodeNumber, judged bool) {
			m := held[kind][from]
			if judged {
				q.bind.queue.push(q.table.Load().byNumber[from].ep, m, len(m))
				q.bind.queue.flush()
				return
			}
			r := q.NewReader()
			r.Receive(underlay.Source{Peer: from}, m, len(m))
			r.Flush()
		}
		wait(t, ready[1])
		into(1, engines[2], 3, true)
		into(1, engines[3], 2, true)
		wait(t, ready[2])
		time.Sleep(25 * time.Millisecond) // WireGuard takes one initiation of a peer in 20 ms; the underlay sends them again
		began := time.Now()
		into(2, engines[2], 3, false)
		into(2, engines[3], 2, false)
		if speaks == 2 {
			x.Ping(y, x.Addr4(), y.Addr4())
		} else {
			y.Ping(x, y.Addr4(), x.Addr4())
		}
		require.Less(t, time.Since(began), 3*time.Second, "node %d speaks: WireGuard's own retry was needed", speaks)
	}
}

func wait(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		require.FailNow(t, "no message each way")
	}
}
