package enginetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/tun"

	"causeway/protocol"
	"causeway/tunnel/engine"
)

// Config is what a test gives an engine.
type Config struct {
	Number     protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	TUN        tun.Device
	Carrier    engine.Carrier
	IdleAfter  time.Duration // how long a peer without traffic is kept; 0: the engine's default
	Log        zerolog.Logger
	// AnyDestination is the engine's own; nodes that Start starts have it.
	AnyDestination bool
}

// Factory makes an engine.
type Factory func(Config) (engine.Engine, error)

// patience bounds every wait of the tests. It is longer than WireGuard's first
// retry, so that one lost handshake is no failure where none is expected.
const patience = 20 * time.Second

// MTU of the tests' devices.
const MTU = 1420

// Node is an engine that runs on a network.
type Node struct {
	Number protocol.NodeNumber
	Key    protocol.WireGuardPrivateKey
	Engine engine.Engine
	TUN    *TUN
	Ended  chan struct{} // closed when Run has returned

	t    testing.TB
	stop func() error
}

// Addr4 and Addr6 are the node's own addresses: base + number.
func (n *Node) Addr4() netip.Addr { return addr4(n.Number) }

// Addr6 is the IPv6 address.
func (n *Node) Addr6() netip.Addr { return addr6(n.Number) }

func addr4(n protocol.NodeNumber) netip.Addr {
	a, err := n.Overlay(protocol.DefaultOverlay4)
	if err != nil {
		panic(err)
	}
	return a
}

func addr6(n protocol.NodeNumber) netip.Addr {
	a, err := n.Overlay(protocol.DefaultOverlay6)
	if err != nil {
		panic(err)
	}
	return a
}

// Key makes a private key.
func Key(t testing.TB) protocol.WireGuardPrivateKey {
	t.Helper()
	k, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	return k
}

func testLog(t testing.TB) zerolog.Logger {
	if os.Getenv("ENGINE_TEST_LOG") == "" {
		return zerolog.Nop()
	}
	return zerolog.New(zerolog.NewTestWriter(t))
}

// Start runs an engine until Stop or the end of the test.
func Start(t testing.TB, net *Network, f Factory, number protocol.NodeNumber, key protocol.WireGuardPrivateKey, idle time.Duration) *Node {
	t.Helper()
	n := &Node{Number: number, Key: key, TUN: NewTUN(MTU), t: t}
	m := net.Join(number)
	var err error
	n.Engine, err = f(Config{Number: number, PrivateKey: key, TUN: n.TUN, Carrier: m, IdleAfter: idle, AnyDestination: true,
		Log: testLog(t).With().Uint32("number", uint32(number)).Logger()})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var ran error
	n.Ended = make(chan struct{})
	wg.Go(func() {
		defer close(n.Ended)
		ran = n.Engine.Run(ctx)
	})
	wg.Go(func() { m.Deliver(ctx, n.Engine.NewReader()) })
	n.stop = sync.OnceValue(func() error {
		cancel()
		wg.Wait()
		return ran
	})
	t.Cleanup(func() { n.stop() })
	return n
}

// Stop ends the engine and returns what Run returned.
func (n *Node) Stop() error { return n.stop() }

// Peer is the node as another one's peer, with its own addresses and further
// prefixes.
func (n *Node) Peer(more ...string) engine.Peer {
	p := engine.Peer{Number: n.Number, Key: n.Key.Public(), AllowedIPs: []netip.Prefix{
		netip.PrefixFrom(n.Addr4(), 32), netip.PrefixFrom(n.Addr6(), 128)}}
	for _, s := range more {
		p.AllowedIPs = append(p.AllowedIPs, netip.MustParsePrefix(s))
	}
	return p
}

// Send gives the engine a packet, as the kernel would.
func (n *Node) Send(src, dst netip.Addr, payload []byte) {
	n.t.Helper()
	select {
	case n.TUN.In <- Packet(src, dst, payload):
	case <-time.After(patience):
		require.FailNow(n.t, "engine does not read its tun device")
	}
}

// Ping sends one packet from n to to again and again until it arrives. The
// repetitions cover what is lost on purpose while peers change.
func (n *Node) Ping(to *Node, src, dst netip.Addr) {
	n.t.Helper()
	n.pingBehind(to, src, dst, nil)
}

// pingBehind is Ping; other sees what else arrives.
func (n *Node) pingBehind(to *Node, src, dst netip.Addr, other func(packet []byte)) {
	n.t.Helper()
	require.True(n.t, n.reaches(to, src, dst, patience, other), "no packet from %s to %s within %s", src, dst, patience)
}

// Reaches is Ping that reports within a time whether anything arrived.
func (n *Node) Reaches(to *Node, src, dst netip.Addr, within time.Duration) bool {
	n.t.Helper()
	return n.reaches(to, src, dst, within, nil)
}

func (n *Node) reaches(to *Node, src, dst netip.Addr, within time.Duration, other func(packet []byte)) bool {
	n.t.Helper()
	id := binary.BigEndian.AppendUint64([]byte("ping"), uint64(time.Now().UnixNano()))
	deadline := time.After(within)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	n.Send(src, dst, id)
	for {
		select {
		case p := <-to.TUN.Out:
			if bytes.Equal(Payload(p), id) {
				return true
			}
			if other != nil {
				other(p)
			}
		case <-again.C:
			n.Send(src, dst, id)
		case <-deadline:
			return false
		}
	}
}

// Join makes nodes each other's peers.
func Join(t testing.TB, nodes ...*Node) {
	t.Helper()
	for _, n := range nodes {
		var peers []engine.Peer
		for _, o := range nodes {
			if o != n {
				peers = append(peers, o.Peer())
			}
		}
		require.NoError(t, n.Engine.SetPeers(peers))
	}
}

func (n *Node) stats(of protocol.NodeNumber) (s engine.PeerStats) {
	for _, s := range n.Engine.Stats() {
		if s.Number == of {
			return s
		}
	}
	return s
}
