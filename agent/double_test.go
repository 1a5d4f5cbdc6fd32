package agent

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/agent/clock"
	"causeway/agent/config"
	"causeway/agent/dns"
	"causeway/agent/hublink"
	"causeway/agent/identity"
	"causeway/netns"
	"causeway/netns/look"
	"causeway/netns/policy"
	"causeway/protocol"
	"causeway/tunnel"
	"causeway/tunnel/mux"
)

const wait = 10 * time.Second

// doubleTunnel remembers what it was told.
type doubleTunnel struct {
	mu        sync.Mutex
	mtu       int // of the path to node 3
	device    tunnel.Device
	hubs      []tunnel.NodeHub
	keys      []tunnel.OwnKey
	peers     []tunnel.NodePeer
	local     []netip.Prefix
	bound     bool
	blocked   bool
	restarted chan protocol.NodeNumber
	ready     chan struct{}
	drops     protocol.Drops
}

func newTunnel() *doubleTunnel {
	return &doubleTunnel{restarted: make(chan protocol.NodeNumber), ready: make(chan struct{}), drops: protocol.Drops{protocol.DropSpoofed: 2, protocol.DropNoRoute: 0}}
}

func (d *doubleTunnel) Run(ctx context.Context) error {
	close(d.ready)
	<-ctx.Done()
	return nil
}
func (d *doubleTunnel) Ready() <-chan struct{} { return d.ready }
func (d *doubleTunnel) SetKeys(k []tunnel.OwnKey) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keys = k
	return nil
}
func (d *doubleTunnel) hubKey() (k protocol.WireGuardPublicKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.hubs) > 0 {
		k = d.hubs[0].Key
	}
	return k
}
func (d *doubleTunnel) ownKeys() (out []protocol.WireGuardPublicKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.keys {
		out = append(out, k.Key.Public())
	}
	return out
}
func (d *doubleTunnel) SetHubs(h []tunnel.NodeHub) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hubs = h
	return nil
}
func (d *doubleTunnel) SetLocal(l []netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.local = l
}
func (d *doubleTunnel) SetPeers(p []tunnel.NodePeer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers = p
	return nil
}
func (d *doubleTunnel) destinations() []netip.Prefix {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.local
}
func (d *doubleTunnel) Candidates() []netip.AddrPort {
	return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:1234")}
}
func (d *doubleTunnel) Paths() []protocol.PathStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	return []protocol.PathStatus{{Peer: 3, Path: protocol.PathRelay, MTU: d.mtu, RTT: 30 * time.Millisecond, Loss: 0.25, RxBytes: 5, TxBytes: 6}}
}
func (d *doubleTunnel) View(n protocol.NodeNumber) (protocol.PathView, bool) {
	return protocol.PathView{PathStatus: d.Paths()[0], Why: "a double"}, n == 3
}
func (d *doubleTunnel) SetInterface(bool) {}

func (d *doubleTunnel) Ways(protocol.NodeNumber) []protocol.Way { return nil }

func (d *doubleTunnel) Suspects() []protocol.SuspectPath { return nil }
func (d *doubleTunnel) setMTU(mtu int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mtu = mtu
}
func (d *doubleTunnel) HubBound(protocol.NodeNumber) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bound
}
func (d *doubleTunnel) setBound(b bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bound = b
}
func (d *doubleTunnel) Port() uint16                             { return 40000 }
func (d *doubleTunnel) HubRestarted() <-chan protocol.NodeNumber { return d.restarted }
func (d *doubleTunnel) CandidatesChanged() <-chan struct{}       { return nil }
func (d *doubleTunnel) HubsChanged() <-chan struct{}             { return nil }
func (d *doubleTunnel) UDPBlocked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.blocked
}
func (d *doubleTunnel) Reattach() (bool, error)    { return false, nil }
func (d *doubleTunnel) EngineName() string         { return "double" }
func (d *doubleTunnel) Dropped() map[string]uint64 { return map[string]uint64{"mac": 3} }
func (d *doubleTunnel) Drops() protocol.Drops {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.drops)
}
func (d *doubleTunnel) Inject([]byte) error { return nil }
func (d *doubleTunnel) Device() tunnel.Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.device
}
func (d *doubleTunnel) setDevice(x tunnel.Device) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.device = x
}

func (d *doubleTunnel) peerNumbers() (out []protocol.NodeNumber) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.peers {
		out = append(out, p.Number)
	}
	return out
}

// doubleHost remembers the last plan.
type doubleHost struct {
	mu      sync.Mutex
	plan    netns.Plan
	applies int
	mtus    map[netip.Prefix]int // of an earlier run's routes
	err     error
	foreign []netns.Foreign
	ranges  []netip.Prefix // of an earlier run
	apart   []netip.Addr   // of it
	blocked string
	watch   chan []netns.Change
	drifts  func() []netns.Drift // nil: none
	unread  error                // of Drift
	mended  []netns.Drift
}

func (d *doubleHost) Apply(_ context.Context, p netns.Plan) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plan, d.applies = p, d.applies+1
	return d.err
}
func (d *doubleHost) Found(context.Context, netns.Config) ([]string, error) {
	return []string{"ip link set cw0 up", "ip route add 203.0.113.0/24 dev cw0"}, nil
}
func (d *doubleHost) ForeignRoutes(context.Context, netns.Config) ([]netns.Foreign, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.foreign, nil
}
func (d *doubleHost) Gateways(context.Context, netns.Config) ([]netip.Addr, error) { return nil, nil }
func (d *doubleHost) Ranges(context.Context, netns.Config) ([]netip.Prefix, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ranges, nil
}
func (d *doubleHost) Apart(context.Context, netns.Config) ([]netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.apart, nil
}
func (d *doubleHost) Uses(context.Context, netns.Config) (netns.Uses, error) {
	return netns.Uses{}, nil
}
func (d *doubleHost) ForwardBlockedBy(context.Context) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.blocked, nil
}
func (d *doubleHost) Try(context.Context, look.Inject) (look.Trial, error) {
	return look.Trial{}, nil
}
func (d *doubleHost) Prove(context.Context, protocol.ProveWatch, look.Inject, func()) error {
	return errors.New("no kernel")
}
func (d *doubleHost) ProveSend(context.Context, uint32, func(netip.Addr) bool) ([]protocol.ProveSent, error) {
	return nil, errors.New("no kernel")
}
func (d *doubleHost) ProveSeen(context.Context, uint32) (protocol.ProveSeens, error) {
	return protocol.ProveSeens{}, errors.New("no kernel")
}
func (d *doubleHost) Flow(context.Context, netns.Plan, look.Flow) protocol.FlowEvidence {
	return protocol.FlowEvidence{}
}
func (d *doubleHost) Pod(context.Context, look.Flow) *protocol.PodEvidence { return nil }
func (d *doubleHost) Way(netip.Addr, uint32) (link, learned int)           { return 0, 0 }
func (d *doubleHost) Disk() *protocol.DiskSpace                            { return nil }
func (d *doubleHost) Watch(context.Context) (<-chan []netns.Change, error) { return d.watch, nil }
func (d *doubleHost) Drift(_ context.Context, kinds ...netns.Kind) (out []netns.Drift, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.drifts == nil {
		return nil, d.unread
	}
	for _, x := range d.drifts() {
		if slices.Contains(kinds, x.Kind) {
			out = append(out, x)
		}
	}
	return out, d.unread
}
func (d *doubleHost) Passing() ([]look.Passing, error) { return nil, nil }

func (d *doubleHost) AccessDrops(context.Context) (map[string]uint64, error) {
	return map[string]uint64{"destination": 1, "interface": 2, "source": 3, "shields": 4}, nil
}
func (d *doubleHost) PutRight() []netns.Drift { return nil }
func (d *doubleHost) Mend(_ context.Context, l []netns.Drift) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mended = append(d.mended, l...)
	return d.err
}

func (d *doubleHost) RouteMTUs(context.Context, netns.Config) (map[netip.Prefix]int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mtus, nil
}

func (d *doubleHost) mtu(p string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.plan.MTUs[netip.MustParsePrefix(p)]
}

func (d *doubleHost) routed(p string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.plan.Routes, netip.MustParsePrefix(p))
}

// world is an agent between doubles, and the hub's end of its control channel.
type world struct {
	t       *testing.T
	cluster protocol.ClusterPrivateKey
	list    protocol.HubList
	store   *identity.Store
	tunnel  *doubleTunnel
	host    *doubleHost
	dials   chan net.Conn
	bulks   chan net.Conn // to the bulk port
	socket  string
	first   protocol.SignedHubList
	fetch   hublink.ListFetch // nil: no hub answers
	now     func() time.Time
	booted  func() clock.Boot
	set     func(*config.Config)
	real    Host                                                        // in the place of host; nil: host
	looks   Look                                                        // with it
	listen  func(context.Context, netip.AddrPort) (*dns.Sockets, error) // nil: there is no such address

	resolved string // where systemd-resolved is; empty: nowhere

	agent  *Agent
	cancel context.CancelFunc
	done   chan error
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, host: &doubleHost{watch: make(chan []netns.Change)}, socket: filepath.Join(t.TempDir(), "a.sock")}
	var err error
	w.cluster, err = protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	w.list = protocol.HubList{Version: 1, Serial: 1, Overlay: []netip.Prefix{protocol.DefaultOverlay4},
		Hubs: []protocol.Hub{{Number: 1, WireGuardKey: protocol.WireGuardPublicKey{1}, UDP: []string{"hub.example:51820", "192.0.2.1:51820"}, HTTPS: []string{"192.0.2.1:443"}}}}
	signed, err := w.list.Sign(w.cluster)
	require.NoError(t, err)
	w.first = signed
	w.store, err = identity.Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	t.Cleanup(func() { w.store.Close() })
	wg, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	ik, err := protocol.NewIdentityPrivateKey()
	require.NoError(t, err)
	require.NoError(t, w.store.SaveIdentity(identity.Identity{Number: 2, Name: "n2", Site: "idc-sh", Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.2")},
		WireGuardKey: wg, IdentityKey: ik, KeyEpoch: 1, Pin: w.cluster.Public().Pin(), HubList: signed}))
	t.Cleanup(func() { w.stop() })
	return w
}

// build puts an agent together on the state directory, with a tunnel of its own.
func (w *world) build() (*Agent, error) {
	w.t.Helper()
	id, err := w.store.Identity()
	require.NoError(w.t, err)
	return w.buildAs(id)
}

// buildAs is build of what the state directory has as identity.
func (w *world) buildAs(id identity.Identity) (*Agent, error) {
	w.tunnel, w.dials, w.bulks = newTunnel(), make(chan net.Conn), make(chan net.Conn)
	settings := config.Default()
	settings.Routes = []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")}
	if w.set != nil {
		w.set(&settings)
	}
	p := parts{tunnel: w.tunnel, host: w.host, look: w.host, now: time.Now, booted: clock.ThisBoot}
	p.counted = func() (policy.Counts, error) {
		return policy.Counts{Rules: map[string]policy.Count{"main.web": {Packets: 7, Bytes: 420}}, Refused: policy.Count{Packets: 3, Bytes: 180}}, nil
	}
	p.resolved, p.told, p.listen = w.resolved, filepath.Join(w.resolved, "told"), w.listen
	if p.listen == nil {
		p.listen = func(context.Context, netip.AddrPort) (*dns.Sockets, error) { return nil, errors.New("no such address") }
	}
	p.dial = func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
		dials := map[string]chan net.Conn{"198.18.0.1:4710": w.dials, "198.18.0.1:4711": w.bulks}[to.String()]
		if from.String() != "198.18.0.2" || dials == nil {
			return nil, errors.New("dialled from " + from.String() + " to " + to.String())
		}
		a, b := net.Pipe()
		select {
		case dials <- b:
			return a, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	p.names = hublink.NewNames(w.store, func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("192.0.2.1")}, nil
	}, zerolog.Nop())
	p.fetch = func(ctx context.Context, at string, q hublink.ListQuestion) (protocol.HubListAnswer, error) {
		if w.fetch == nil {
			return protocol.HubListAnswer{}, errors.New("nobody answers")
		}
		return w.fetch(ctx, at, q)
	}
	if w.real != nil {
		p.host, p.look = w.real, w.looks
	}
	if w.now != nil {
		p.now = w.now
	}
	if w.booted != nil {
		p.booted = w.booted
	}
	return build(Config{Store: w.store, Settings: settings, Socket: w.socket, Version: "test", Log: zerolog.Nop()}, id, protocol.BootID{7}, p)
}

// start runs one.
func (w *world) start() {
	w.t.Helper()
	var err error
	w.agent, err = w.build()
	require.NoError(w.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.done = cancel, make(chan error, 1)
	go func() { w.done <- w.agent.Run(ctx) }()
	select {
	case <-w.agent.Ready():
	case err := <-w.done:
		w.t.Fatal(err)
	case <-time.After(wait):
		w.t.Fatal("the agent does not become ready")
	}
}

func (w *world) stop() {
	if w.cancel == nil {
		return
	}
	w.cancel()
	require.NoError(w.t, <-w.done)
	w.cancel = nil
}

func (w *world) eventually(f func() bool, msg string) {
	w.t.Helper()
	require.Eventually(w.t, f, wait, 5*time.Millisecond, msg)
}

// hubEnd is the hub's end of one control session.
type hubEnd struct {
	w       *world
	m       *mux.Session
	control net.Conn
	hello   protocol.Hello
	msgs    chan protocol.Message
}

// session waits for the agent to dial and welcomes it.
func (w *world) session() *hubEnd {
	w.t.Helper()
	h := w.dialled()
	h.send(protocol.KindWelcome, protocol.Welcome{Hub: 1, Number: 2, HubVersion: "h", Time: time.Now()})
	w.eventually(w.agent.link.Connected, "connected")
	return h
}

func (w *world) dialled() *hubEnd {
	w.t.Helper()
	var conn net.Conn
	select {
	case conn = <-w.dials:
	case <-time.After(wait):
		w.t.Fatal("the agent does not dial")
	}
	m, err := mux.Server(conn)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { m.Close() })
	h := &hubEnd{w: w, m: m, msgs: make(chan protocol.Message, 100)}
	h.control, err = m.Accept(context.Background())
	require.NoError(w.t, err)
	_, err = mux.ReadHeader(h.control)
	require.NoError(w.t, err)
	var first protocol.Message
	require.NoError(w.t, protocol.ReadFrame(h.control, &first, protocol.MaxToHub))
	require.NoError(w.t, first.Decode(&h.hello))
	go func() { // the session's end ends it
		for {
			var msg protocol.Message
			if protocol.ReadFrame(h.control, &msg, protocol.MaxToHub) != nil {
				return
			}
			h.msgs <- msg
		}
	}()
	go func() { // nats streams are refused
		for {
			c, err := m.Accept(context.Background())
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return h
}

func (h *hubEnd) send(kind protocol.MessageKind, body any) {
	h.w.t.Helper()
	m, err := protocol.NewMessage(kind, body)
	require.NoError(h.w.t, err)
	if err := protocol.WriteFrame(h.control, m, protocol.MaxToAgent); err != nil {
		h.w.t.Logf("send %s: %v", kind, err)
	}
}

func (h *hubEnd) next(kind protocol.MessageKind, v any) {
	h.w.t.Helper()
	for {
		select {
		case m := <-h.msgs:
			if m.Kind == kind {
				require.NoError(h.w.t, m.Decode(v))
				return
			}
		case <-time.After(wait):
			h.w.t.Fatalf("no %s from the agent", kind)
		}
	}
}

// give sends a netmap and waits for the answer to it.
func (h *hubEnd) give(n protocol.Netmap) (ack protocol.NetmapAck) {
	h.w.t.Helper()
	h.send(protocol.KindNetmap, n)
	h.next(protocol.KindNetmapAck, &ack)
	return ack
}

// firstRefused is the first part that an agent did not take; empty: it took all.
func firstRefused(a protocol.NetmapAck) (r protocol.RefusedPart) {
	if len(a.Refused) > 0 {
		r = a.Refused[0]
	}
	return r
}
