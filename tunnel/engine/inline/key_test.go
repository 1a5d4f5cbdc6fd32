package inline_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/engine/inline"
)

// A device whose key changes while packets flow ends its sessions and makes
// new ones at once under the new key, and under no peer's.
func TestSetPrivateKey(t *testing.T) {
	net := enginetest.NewNetwork()
	x, y := enginetest.Start(t, net, inlineEngine, 2, enginetest.Key(t), 0), enginetest.Start(t, net, wireguardGo, 3, enginetest.Key(t), 0)
	enginetest.Join(t, x, y)
	x.Ping(y, x.Addr4(), y.Addr4())
	e := x.Engine.(*inline.Engine)
	require.Error(t, e.SetPrivateKey(y.Key), "a peer's")
	require.Error(t, e.SetPrivateKey(protocol.WireGuardPrivateKey{}))
	x.Ping(y, x.Addr4(), y.Addr4())
	for range 3 {
		key := enginetest.Key(t)
		require.NoError(t, e.SetPrivateKey(key))
		p := x.Peer()
		p.Key = key.Public()
		require.NoError(t, y.Engine.SetPeers([]engine.Peer{p}))
		began := time.Now()
		y.Ping(x, y.Addr4(), x.Addr4())
		x.Ping(y, x.Addr4(), y.Addr4())
		require.Less(t, time.Since(began), 4*time.Second, "WireGuard's own retry was needed")
		own := y.Peer()
		own.Key = key.Public()
		require.Error(t, e.SetPeers([]engine.Peer{own}), "its own new key is no peer's")
	}
}

// A device that rotates its key keeps its sessions: no packet is lost to who
// learns the new key, whoever is first, nor to who knows the old one alone; and
// both sides can begin handshakes after it.
func TestSetKeys(t *testing.T) {
	net := enginetest.NewNetwork()
	x := enginetest.Start(t, net, inlineEngine, 3, enginetest.Key(t), 0)
	y := enginetest.Start(t, net, inlineEngine, 2, enginetest.Key(t), 0)
	z := enginetest.Start(t, net, wireguardGo, 4, enginetest.Key(t), 0)
	enginetest.Join(t, x, y, z)
	x.Ping(y, x.Addr4(), y.Addr4())
	x.Ping(z, x.Addr4(), z.Addr4())
	require.Error(t, x.Engine.SetKeys(nil))
	require.Error(t, x.Engine.SetKeys([]protocol.WireGuardPrivateKey{y.Key}), "a peer's")
	old := x.Key
	// once sends one packet each way and wants it there: nothing is repeated.
	once := func(a, b *enginetest.Node) {
		t.Helper()
		for _, p := range [][2]*enginetest.Node{{a, b}, {b, a}} {
			p[0].Send(p[0].Addr4(), p[1].Addr4(), []byte("once"))
			for got := false; !got; {
				select {
				case b := <-p[1].TUN.Out:
					got = string(enginetest.Payload(b)) == "once"
				case <-time.After(2 * time.Second):
					require.FailNow(t, "a packet was lost")
				}
			}
		}
	}
	for range 2 {
		next := enginetest.Key(t)
		require.NoError(t, x.Engine.SetKeys([]protocol.WireGuardPrivateKey{old, next}), "before anybody knows")
		once(x, y)
		p := x.Peer()
		p.Key = next.Public()
		before := completed(x, y.Number)
		require.NoError(t, y.Engine.SetPeers([]engine.Peer{p}))
		once(x, y)
		require.Eventually(t, func() bool { return completed(y, x.Number).After(before) || completed(x, y.Number).After(before) },
			8*time.Second, 10*time.Millisecond, "no handshake under the new key")
		once(x, y)
		require.NoError(t, x.Engine.SetKeys([]protocol.WireGuardPrivateKey{next, old}))
		once(x, y)
		once(x, z)
		// Nothing is left of z's session: it begins under the key that it knows.
		z.Engine.ResetPeer(x.Number)
		z.Ping(x, z.Addr4(), x.Addr4())
		// And so does x, at the second try at the latest.
		z.Engine.ResetPeer(x.Number)
		x.Engine.ResetPeer(z.Number)
		x.Ping(z, x.Addr4(), z.Addr4())
		own := y.Peer()
		own.Key = old.Public()
		require.Error(t, x.Engine.SetPeers([]engine.Peer{own}), "a key of its own is no peer's")

		require.NoError(t, x.Engine.SetKeys([]protocol.WireGuardPrivateKey{next}))
		once(x, y)
		z.Engine.ResetPeer(x.Number)
		z.Send(z.Addr4(), x.Addr4(), []byte("late"))
		select {
		case <-x.TUN.Out:
			require.FailNow(t, "the old key is still good")
		case <-time.After(100 * time.Millisecond):
		}
		p = x.Peer()
		p.Key = next.Public()
		require.NoError(t, z.Engine.SetPeers([]engine.Peer{p}))
		z.Ping(x, z.Addr4(), x.Addr4())
		old = next
	}
}

func completed(n *enginetest.Node, peer protocol.NodeNumber) time.Time {
	for _, s := range n.Engine.Stats() {
		if s.Number == peer {
			return s.LastHandshake
		}
	}
	return time.Time{}
}
