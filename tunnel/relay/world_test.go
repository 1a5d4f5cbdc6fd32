package relay_test

import (
	"bytes"
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/protocol"
	"causeway/tunnel/relay"
	"causeway/tunnel/underlay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, patience, 2*time.Millisecond, what)
}

// device stands where an engine stands: it records what is delivered.
type device struct {
	mu       sync.Mutex
	got      []delivery
	restarts []protocol.NodeNumber
	flushes  int
}

type delivery struct {
	from    underlay.Source
	data    []byte
	segment int
}

func (d *device) Receive(from underlay.Source, buf []byte, segment int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got = append(d.got, delivery{from, bytes.Clone(buf), segment})
}

func (d *device) Flush() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
}

func (d *device) restarted(n protocol.NodeNumber, _ protocol.BootID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.restarts = append(d.restarts, n)
}

func (d *device) restartedBy() []protocol.NodeNumber {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]protocol.NodeNumber(nil), d.restarts...)
}

// from concatenates what came from a node, and says how many deliveries it took.
func (d *device) from(n protocol.NodeNumber) (data []byte, deliveries int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.got {
		if g.from.Peer == n {
			data = append(data, g.data...)
			deliveries++
		}
	}
	return data, deliveries
}

// bytes is how much was delivered.
func (d *device) bytes() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range d.got {
		n += len(g.data)
	}
	return n
}

func (d *device) has(n protocol.NodeNumber, msg []byte) bool {
	data, _ := d.from(n)
	return bytes.Contains(data, msg)
}

func (d *device) all() []delivery {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]delivery(nil), d.got...)
}

func (d *device) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got = nil
}

// transport is a run of n transport messages, each size bytes long but for the
// last one, with seed in them.
func transport(seed byte, n, size int) []byte {
	b := make([]byte, n*size-size/2)
	for i := range b {
		b[i] = seed + byte(i%size) + byte(i/size)
	}
	for o := 0; o < len(b); o += size {
		copy(b[o:], []byte{4, 0, 0, 0})
	}
	return b
}

type host struct {
	t    *testing.T
	key  protocol.WireGuardPrivateKey
	dev  *device
	stop func()
}

func newKey(t *testing.T) protocol.WireGuardPrivateKey {
	k, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	return k
}

func newBoot(t *testing.T) protocol.BootID {
	b, err := protocol.NewBootID()
	require.NoError(t, err)
	return b
}

// run starts r and returns how to stop it.
func run(t *testing.T, r func(context.Context) error, ready <-chan struct{}) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("ended before it was ready: %v", err)
	case <-time.After(patience):
		t.Fatal("not ready")
	}
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				require.NoError(t, err)
			case <-time.After(patience):
				t.Error("did not end")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

type hub struct {
	host
	*relay.Relay
	addr  netip.AddrPort
	nodes []relay.Node
}

const hubNumber = 1

func newHub(t *testing.T) *hub {
	h := &hub{host: host{t: t, key: newKey(t)}, addr: netip.MustParseAddrPort("127.0.0.1:0")}
	h.start(nil)
	return h
}

func (h *hub) start(change func(*relay.Config)) {
	h.t.Helper()
	h.make(change)
	h.run()
}

// make makes what run runs.
func (h *hub) make(change func(*relay.Config)) {
	h.t.Helper()
	h.dev = &device{}
	cfg := relay.Config{Self: hubNumber, PrivateKey: h.key, BootID: newBoot(h.t), Listen: h.addr, Log: zerolog.Nop(),
		NewReader: func() underlay.Receiver { return h.dev }, OnRestart: h.dev.restarted}
	if change != nil {
		change(&cfg)
	}
	var err error
	h.Relay, err = relay.New(cfg)
	require.NoError(h.t, err)
	require.NoError(h.t, h.SetNodes(h.nodes))
}

func (h *hub) run() {
	h.t.Helper()
	h.stop = run(h.t, h.Run, h.Ready())
	h.addr = h.LocalAddr()
}

type node struct {
	host
	*underlay.Underlay
	number protocol.NodeNumber
	hub    *hub
	peers  []underlay.Peer
	port   uint16
	https  []string // the hub's; then it is reached over streams alone
}

func newNode(t *testing.T, h *hub, n protocol.NodeNumber) *node {
	x := &node{host: host{t: t, key: newKey(t)}, number: n, hub: h}
	h.nodes = append(h.nodes, relay.Node{Number: n, Key: x.key.Public()})
	require.NoError(t, h.SetNodes(h.nodes))
	x.start(nil)
	return x
}

func (x *node) start(change func(*underlay.Config)) {
	x.t.Helper()
	x.make(change)
	x.run()
}

// make makes what run runs.
func (x *node) make(change func(*underlay.Config)) {
	x.t.Helper()
	x.dev = &device{}
	cfg := underlay.Config{Self: x.number, PrivateKey: x.key, BootID: newBoot(x.t), ListenPort: x.port, Log: zerolog.Nop(),
		NewReader: func() underlay.Receiver { return x.dev }, OnRestart: func(n protocol.NodeNumber) { x.dev.restarted(n, protocol.BootID{}) }}
	if change != nil {
		change(&cfg)
	}
	var err error
	x.Underlay, err = underlay.New(cfg)
	require.NoError(x.t, err)
	hub := underlay.Hub{Number: hubNumber, Key: x.hub.key.Public(), Addrs: []netip.AddrPort{x.hub.addr}, HTTPS: x.https}
	if len(x.https) > 0 {
		hub.Addrs = nil
	}
	require.NoError(x.t, x.SetHubs([]underlay.Hub{hub}))
	require.NoError(x.t, x.SetPeers(x.peers))
}

func (x *node) run() {
	x.t.Helper()
	x.stop = run(x.t, x.Run, x.Ready())
	x.port = x.Port()
}

func (x *node) bound() {
	x.t.Helper()
	eventually(x.t, "bound at the hub", func() bool { return x.HubBound(hubNumber) })
}

func (x *node) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), x.port)
}

func (x *node) meet(o *node, direct bool, candidates ...netip.AddrPort) {
	x.peers = append(x.peers, underlay.Peer{Number: o.number, Key: o.key.Public(), Direct: direct, Candidates: candidates})
	require.NoError(x.t, x.SetPeers(x.peers))
}

// path is the kind of path to a peer.
func (x *node) path(n protocol.NodeNumber) protocol.PathKind {
	for _, p := range x.Paths() {
		if p.Peer == n {
			return p.Path
		}
	}
	return ""
}

// pair is two nodes that know each other, bound at one hub.
func pair(t *testing.T, direct bool) (*hub, *node, *node) {
	h := newHub(t)
	a, b := newNode(t, h, 0x010002), newNode(t, h, 0x020003)
	a.meet(b, direct)
	b.meet(a, direct)
	a.bound()
	b.bound()
	return h, a, b
}
