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
