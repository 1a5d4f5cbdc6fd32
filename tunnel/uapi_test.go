package tunnel

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/engine/inline"
	"causeway/tunnel/engine/uapi"
)

// wg sees a node's peers and none of its secrets, and can set nothing.
func TestShownToWg(t *testing.T) {
	key, peer, hub := enginetest.Key(t), enginetest.Key(t).Public(), enginetest.Key(t).Public()
	n, err := NewNode(NodeConfig{Number: 5, PrivateKey: key, BootID: protocol.BootID{1}, Interface: "cw9", Mark: 77, Log: zerolog.Nop()})
	require.NoError(t, err)
	e, err := inline.New(inline.Config{Number: 5, PrivateKey: key, TUN: enginetest.NewTUN(1280), Carrier: n.under})
	require.NoError(t, err)
	eng := engine.Engine(e)
	n.eng.Store(&eng)
	require.NoError(t, n.SetHubs([]NodeHub{{Number: 1, Key: hub, Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.1")}}}))
	require.NoError(t, n.SetPeers([]NodePeer{{Number: 6, Key: peer, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}}))
	d, err := shown{n}.Get()
	require.NoError(t, err)
	require.Equal(t, uapi.Device{Mark: 77, Peers: []uapi.Peer{
		{Key: hub, Keepalive: hubKeepalive, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("198.18.0.1/32")}},
		{Key: peer, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}},
	}}, d)
	var b strings.Builder
	require.NoError(t, d.Write(&b))
	require.NotContains(t, b.String(), "private_key")
	require.NotContains(t, b.String(), "preshared_key")
	require.ErrorIs(t, shown{n}.Set(uapi.Change{}), unix.EPERM)
}
