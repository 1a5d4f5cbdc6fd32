package inline_test

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/device"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/underlay"
)

// junk is an initiation whose mac1 is right, as whoever knows the public key
// can make it.
func junk(to protocol.WireGuardPublicKey) []byte {
	m := make([]byte, device.MessageInitiationSize)
	rand.Read(m)
	binary.LittleEndian.PutUint32(m, device.MessageInitiationType)
	var g device.CookieGenerator
	g.Init(device.NoisePublicKey(to))
	g.AddMacs(m)
	return m
}

// Under a flood of handshakes a peer is asked for a cookie, brings it, and has
// its session.
func TestCookiesUnderLoad(t *testing.T) {
	for _, c := range []struct {
		name              string
		initiator, loaded enginetest.Factory
		burst             int
	}{
		{"inline under load from inline", inlineEngine, inlineEngine, 400},
		{"inline under load from wireguard-go", wireguardGo, inlineEngine, 400},
		{"wireguard-go under load from inline", inlineEngine, wireguardGo, 3000},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := enginetest.NewNetwork()
				w := &wire{}
				net.SetHook(w.hook)
				x := enginetest.Start(t, net, c.initiator, 2, enginetest.Key(t), time.Hour)
				y := enginetest.Start(t, net, c.loaded, 3, enginetest.Key(t), time.Hour)
				z := enginetest.Start(t, net, c.initiator, 4, enginetest.Key(t), time.Hour) // whose place the flood comes from
				require.NoError(t, x.Engine.SetPeers([]engine.Peer{y.Peer()}))
				require.NoError(t, z.Engine.SetPeers([]engine.Peer{y.Peer()}))
				require.NoError(t, y.Engine.SetPeers([]engine.Peer{x.Peer(), z.Peer()}))
				// z has a session, so that its peer is awake in wireguard-go.
				z.Ping(y, z.Addr4(), y.Addr4())

				var wg sync.WaitGroup
				stop := make(chan struct{})
				defer wg.Wait()
				defer close(stop)
				flood := junk(y.Key.Public())
				wg.Go(func() {
					r := y.Engine.NewReader()
					for {
						for range c.burst {
							r.Receive(underlay.Source{Peer: 4}, append([]byte(nil), flood...), len(flood))
						}
						r.Flush()
						select {
						case <-stop:
							return
						case <-time.After(500 * time.Millisecond):
						}
					}
				})
				time.Sleep(600 * time.Millisecond)
				w.set(nil)
				b := &bubble{w, x, y}
				b.send(1)
				require.Eventually(t, func() bool { return b.send(2) }, time.Minute, time.Second)
				require.NotEmpty(t, w.timesTo(2, 3), "no cookie was sent")
				require.GreaterOrEqual(t, len(w.times(2, 1)), 2, "the first initiation had no cookie yet")
			})
		})
	}
}
