package inline

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/flynn/noise"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/device"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/engine/wggo"
	"causeway/tunnel/underlay"
)

// initiator is a node reduced to its handshake.
type initiator struct {
	number  protocol.NodeNumber
	id      identity
	cookies device.CookieGenerator
	state   *noise.HandshakeState
	msg     []byte // the initiation of state
	done    bool
}

// crowd is the carrier of an engine that many initiators talk to.
type crowd struct {
	mu      sync.Mutex
	nodes   map[protocol.NodeNumber]*initiator
	cookies int
	left    int
}

func (c *crowd) Send(to protocol.NodeNumber, b []byte, _ int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[to]
	if n == nil || n.state == nil {
		return nil
	}
	switch binary.LittleEndian.Uint32(b) {
	case device.MessageCookieReplyType:
		if n.cookies.ConsumeReply(readCookie(b)) {
			c.cookies++
			n.msg = nil // the next one has it
		}
	case device.MessageResponseType:
		if _, err := n.id.readResponse(&initiation{state: n.state}, b); err == nil && !n.done {
			n.done = true
			c.left--
		}
	}
	return nil
}

// A thousand nodes behind one address, be it a NAT in front of them or a hub
// that relays for them, all have their sessions from an engine that is under
// load. By address WireGuard lets 20 in a second pass, which would take 49
// seconds; so it is by node.
func TestManyHandshakesFromOneAddress(t *testing.T) {
	const count, within = 1000, 25 * time.Second
	for name, factory := range map[string]enginetest.Factory{
		"inline": func(c enginetest.Config) (engine.Engine, error) {
			return New(Config{Number: c.Number, PrivateKey: c.PrivateKey, TUN: c.TUN, Carrier: c.Carrier, Log: c.Log, AnyDestination: c.AnyDestination})
		},
		"wireguard-go": func(c enginetest.Config) (engine.Engine, error) {
			return wggo.New(wggo.Config{Number: c.Number, PrivateKey: c.PrivateKey, TUN: c.TUN, Carrier: c.Carrier, Log: c.Log, AnyDestination: c.AnyDestination})
		},
	} {
		t.Run(name, func(t *testing.T) {
			key := enginetest.Key(t)
			public := key.Public()
			c := &crowd{nodes: map[protocol.NodeNumber]*initiator{}, left: count}
			var (
				peers []engine.Peer
				order []*initiator
			)
			for i := range protocol.NodeNumber(count) {
				k := enginetest.Key(t)
				n := &initiator{number: 10 + i, id: newIdentity(k)}
				n.cookies.Init(device.NoisePublicKey(public))
				c.nodes[n.number], order = n, append(order, n)
				a, err := n.number.Overlay(protocol.DefaultOverlay4)
				require.NoError(t, err)
				peers = append(peers, engine.Peer{Number: n.number, Key: k.Public(), AllowedIPs: []netip.Prefix{netip.PrefixFrom(a, 32)}})
			}
			e, err := factory(enginetest.Config{Number: 1, PrivateKey: key, TUN: enginetest.NewTUN(enginetest.MTU), Carrier: c, Log: zerolog.Nop(), AnyDestination: true})
			require.NoError(t, err)
			require.NoError(t, e.SetPeers(peers))
			ctx, cancel := context.WithCancel(t.Context())
			ended := background(ctx, e.Run)
			defer func() { cancel(); <-ended }()

			r := e.NewReader()
			start := time.Now()
			c.connect(t, r, order, public, within)
			took := time.Since(start).Round(time.Millisecond)
			// wireguard-go takes unknown peers in one by one, and so may keep pace at first; known ones
			// come at once.
			for again := 0; c.shown() == 0 && again < 3; again++ {
				c.again()
				c.connect(t, r, order, public, within)
			}
			require.Positive(t, c.shown(), "it was not under load")
			t.Logf("%d sessions in %v, %d cookies", count, took, c.shown())
		})
	}
}

// connect has all begin sessions. Each sends again every 250 ms, as the underlay does: 500 at once, so that
// the engine is under load, and then others.
func (c *crowd) connect(t *testing.T, r underlay.Receiver, order []*initiator, public protocol.WireGuardPublicKey, within time.Duration) {
	t.Helper()
	from := netip.MustParseAddrPort("203.0.113.9:4500")
	pause, sent := time.NewTicker(50*time.Millisecond), 0
	defer pause.Stop()
	start := time.Now()
	for left := len(order); left > 0; {
		require.Less(t, time.Since(start), within, "%d of %d have no session", left, len(order))
		for _, n := range order {
			m := c.next(t, n, public)
			if m == nil {
				continue
			}
			r.Receive(underlay.Source{Peer: n.number, Addr: from}, m, len(m))
			if sent++; sent%500 == 0 {
				r.Flush()
				<-pause.C
			}
		}
		r.Flush()
		<-pause.C
		c.mu.Lock()
		left = c.left
		c.mu.Unlock()
	}
}

// next is what n sends; nil: it has its session.
func (c *crowd) next(t *testing.T, n *initiator, public protocol.WireGuardPublicKey) []byte {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.done {
		return nil
	}
	if n.msg == nil {
		var err error
		n.state, n.msg, err = n.id.newInitiation(public, [32]byte{}, uint32(n.number), timestamp(time.Now(), [12]byte{}))
		require.NoError(t, err)
		n.cookies.AddMacs(n.msg)
	}
	return bytes.Clone(n.msg)
}

// shown is how many cookies the engine has asked for.
func (c *crowd) shown() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cookies
}

// again has nobody have a session.
func (c *crowd) again() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		n.done, n.msg = false, nil
	}
	c.left = len(c.nodes)
}

// background runs f and returns what is closed when it ends.
func background(ctx context.Context, f func(context.Context) error) chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f(ctx)
	}()
	return ended
}
