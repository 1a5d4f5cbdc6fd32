package tunnel

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

func newKey(t *testing.T) protocol.WireGuardPrivateKey {
	t.Helper()
	k, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	return k
}

func newBoot(t *testing.T) protocol.BootID {
	t.Helper()
	b, err := protocol.NewBootID()
	require.NoError(t, err)
	return b
}

func nodeConfig(t *testing.T) NodeConfig {
	return NodeConfig{Number: 2, PrivateKey: newKey(t), BootID: newBoot(t), Interface: "cw0", Log: zerolog.Nop()}
}

func hubConfig(t *testing.T) HubConfig {
	return HubConfig{Number: 1, PrivateKey: newKey(t), BootID: newBoot(t), Listen: netip.MustParseAddrPort("127.0.0.1:0"), Overlay: overlay(1), Log: zerolog.Nop()}
}

func TestNewNode(t *testing.T) {
	n, err := NewNode(nodeConfig(t))
	require.NoError(t, err)
	assert.Equal(t, DefaultEngine, n.EngineName())
	assert.Equal(t, 9184, n.cfg.MTU)
	for want, spoil := range map[string]func(*NodeConfig){
		"0 is not a node number":           func(c *NodeConfig) { c.Number = 0 },
		"16777216 is not a node number":    func(c *NodeConfig) { c.Number = protocol.MaxNodeNumber + 1 },
		"no private key":                   func(c *NodeConfig) { c.PrivateKey = protocol.WireGuardPrivateKey{} },
		"interface name is empty":          func(c *NodeConfig) { c.Interface = "" },
		"is longer than 15 bytes":          func(c *NodeConfig) { c.Interface = "a-very-long-name" },
		"mtu 1279 is not between 1280 and": func(c *NodeConfig) { c.MTU = 1279 },
		`unknown engine "kernel": use`:     func(c *NodeConfig) { c.Engine = "kernel" },
		"boot id":                          func(c *NodeConfig) { c.BootID = protocol.BootID{} },
	} {
		c := nodeConfig(t)
		spoil(&c)
		_, err := NewNode(c)
		assert.ErrorContains(t, err, want)
	}
}

func TestNewHub(t *testing.T) {
	for want, spoil := range map[string]func(*HubConfig){
		"0 is not a node number":  func(c *HubConfig) { c.Number = 0 },
		"no private key":          func(c *HubConfig) { c.PrivateKey = protocol.WireGuardPrivateKey{} },
		"no address to listen on": func(c *HubConfig) { c.Listen = netip.AddrPort{} },
		"no overlay address":      func(c *HubConfig) { c.Overlay = nil },
	} {
		c := hubConfig(t)
		spoil(&c)
		_, err := NewHub(c)
		assert.ErrorContains(t, err, want)
	}
}

// Hubs and peers have to fit together, whichever is set first, and what does
// not fit changes nothing.
func TestNodeSets(t *testing.T) {
	cfg := nodeConfig(t)
	n, err := NewNode(cfg)
	require.NoError(t, err)
	hub := NodeHub{Number: 1, Key: newKey(t).Public(), Overlay: overlay(1), UDP: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")}}
	peer := NodePeer{Number: 3, Name: "three", Key: newKey(t).Public(), AllowedIPs: hostPrefixes(overlay(3))}
	require.NoError(t, n.SetHubs([]NodeHub{hub}))
	require.NoError(t, n.SetPeers([]NodePeer{peer}))

	with := func(change func(*NodePeer)) []NodePeer {
		p := peer
		change(&p)
		return []NodePeer{p}
	}
	for want, peers := range map[string][]NodePeer{
		"number is there twice":                    with(func(p *NodePeer) { p.Number = 1 }),
		"key is peer 1's too":                      with(func(p *NodePeer) { p.Key = hub.Key }),
		"prefix 198.18.0.1/32 is peer 1's too":     with(func(p *NodePeer) { p.AllowedIPs = hostPrefixes(overlay(1)) }),
		"key is our own":                           with(func(p *NodePeer) { p.Key = cfg.PrivateKey.Public() }),
		"peer 16777216: not a node number":         with(func(p *NodePeer) { p.Number = protocol.MaxNodeNumber + 1 }),
		"peer 3: number is there twice":            {peer, peer},
		"peer 4: prefix 10.0.0.0/8 is peer 3's":    append(with(func(p *NodePeer) { p.AllowedIPs = prefixes("10.0.0.0/8") }), NodePeer{Number: 4, Key: newKey(t).Public(), AllowedIPs: prefixes("10.9.9.9/8")}),
		"peer 3: no key":                           with(func(p *NodePeer) { p.Key = protocol.WireGuardPublicKey{} }),
		"peer 3: invalid prefix ::ffff:0.0.0.0/96": with(func(p *NodePeer) { p.AllowedIPs = prefixes("::ffff:0.0.0.0/96") }),
	} {
		assert.ErrorContains(t, n.SetPeers(peers), want)
	}
	bad := hub
	bad.Overlay = overlay(3)
	assert.ErrorContains(t, n.SetHubs([]NodeHub{bad}), "prefix 198.18.0.3/32 is peer")
	assert.Equal(t, []NodePeer{peer}, n.peers)
	assert.Equal(t, []NodeHub{hub}, n.hubs)
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// Of the hubs that restarted while nobody listened the latest are kept; peers
// that are no hubs are not told of.
func TestHubRestarted(t *testing.T) {
	n, err := NewNode(nodeConfig(t))
	require.NoError(t, err)
	require.NoError(t, n.SetHubs([]NodeHub{{Number: 1, Key: newKey(t).Public(), Overlay: overlay(1), UDP: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}},
		{Number: 9, Key: newKey(t).Public(), Overlay: overlay(9), UDP: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:1")}}}))
	for range 100 {
		n.peerRestarted(1)
		n.peerRestarted(3)
	}
	n.peerRestarted(9)
	var last protocol.NodeNumber
	for len(n.HubRestarted()) > 0 {
		last = <-n.HubRestarted()
		assert.NotEqual(t, protocol.NodeNumber(3), last)
	}
	assert.Equal(t, protocol.NodeNumber(9), last)
}

// A hub needs neither root nor a TUN device.
func TestHubLife(t *testing.T) {
	cfg := hubConfig(t)
	h, err := NewHub(cfg)
	require.NoError(t, err)
	at := netip.AddrPortFrom(overlay(1)[0], protocol.ControlPort)
	_, err = h.Listen(at)
	require.ErrorIs(t, err, ErrNotRunning)
	node := HubNode{Number: 2, Key: newKey(t).Public(), Overlay: overlay(2)}
	require.NoError(t, h.SetNodes([]HubNode{node}))

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var ran error
	wg.Go(func() { ran = h.Run(ctx) })
	select {
	case <-h.Ready():
	case <-time.After(patience):
		require.FailNow(t, "hub is not ready")
	}
	assert.ErrorContains(t, h.Run(ctx), "Run was called before")
	l, err := h.Listen(at)
	require.NoError(t, err)
	_, err = h.Listen(at)
	assert.Error(t, err, "the port is taken")
	for want, nodes := range map[string][]HubNode{
		"node 1: number is the hub's own":              {{Number: 1, Key: newKey(t).Public(), Overlay: overlay(2)}},
		"node 3: address 198.18.0.1 is the hub's own":  {{Number: 3, Key: newKey(t).Public(), Overlay: overlay(1)}},
		"peer 2: number is there twice":                {node, node},
		"peer 2: key is our own":                       {{Number: 2, Key: cfg.PrivateKey.Public()}},
		"peer 3: prefix 198.18.0.2/32 is peer 2's too": {node, {Number: 3, Key: newKey(t).Public(), Overlay: overlay(2)}},
	} {
		assert.ErrorContains(t, h.SetNodes(nodes), want)
	}
	assert.Empty(t, h.Bound(2))
	assert.Zero(t, h.RelayStats().BoundNodes)

	// A second hub on the port says so.
	cfg.Listen = h.LocalAddr()
	second, err := NewHub(cfg)
	require.NoError(t, err)
	assert.ErrorContains(t, second.Run(context.Background()), "address already in use")

	cancel()
	wg.Wait()
	require.NoError(t, ran)
	_, err = l.Accept()
	assert.ErrorIs(t, err, net.ErrClosed)
	_, err = h.Listen(at)
	assert.ErrorIs(t, err, net.ErrClosed)
	assert.NoError(t, h.SetNodes(nil))
}
