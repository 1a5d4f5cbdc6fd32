package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/tundev"
	"causeway/tunnel/underlay"
	"causeway/tunnel/underlay/probe"
)

// hubKeepalive makes the session with a hub before control dials, and keeps
// the hub's peer in the engine. Only the node sends keepalives: if both ends
// did, their initiations would cross. Liveness is the probes' business.
const hubKeepalive = 25 * time.Second

// standbyKeepalive keeps a session with a peer that has Sources: it may have to take
// over for their owner at once, under all that TCP has under way.
const standbyKeepalive = 25 * time.Second

// NodeConfig configures an agent's side of the tunnel.
type NodeConfig struct {
	Number     protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	BootID     protocol.BootID
	KeyEpoch   uint32
	Interface  string // name of the TUN device, made if missing and kept when Run ends
	MTU        int    // of the TUN device; 0: DefaultMTU
	ListenPort uint16 // UDP; 0: any free port
	LastPort   uint16 // taken first, where any will do; 0: none
	Mark       uint32 // SO_MARK of every underlay socket
	Engine     string // EngineInline or EngineWireGuardGo; empty: DefaultEngine
	Queues     int    // of the TUN device, for the inline engine; 0: by the number of processors
	UAPI       bool   // serve wg(8)'s socket of the interface, to be looked at alone
	// Proxy chooses the HTTP proxy for streams to a hub's https URL; nil: none.
	Proxy func(*url.URL) (*url.URL, error)
	// Lookup finds the addresses of hubs and proxies for streams; nil: DNS does.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	Log    zerolog.Logger
	// Excluded says which of the host's own addresses are no candidates
	// (container bridges, the tunnel itself). Called when addresses change.
	Excluded func(ifname string, a netip.Addr) bool
	// PrivateCandidates says how peers' addresses in private ranges are tried: PrivateAuto, PrivateOff,
	// PrivateOn; empty: PrivateAuto.
	PrivateCandidates string
}

// Values of NodeConfig.PrivateCandidates.
const (
	PrivateAuto = "auto" // a few times, then with long pauses, and not while a good direct path is there
	PrivateOff  = "off"  // never
	PrivateOn   = "on"   // as any other address
)

var privateCandidates = map[string]probe.PrivateCandidates{"": probe.PrivateAuto, PrivateAuto: probe.PrivateAuto, PrivateOff: probe.PrivateOff, PrivateOn: probe.PrivateOn}

// NodePeer is another node as an agent reaches it.
type NodePeer struct {
	Number     protocol.NodeNumber
	Name       string
	Key        protocol.WireGuardPublicKey
	AllowedIPs []netip.Prefix
	Sources    []netip.Prefix // see engine.Peer
	Candidates []netip.AddrPort
	Direct     bool
}

// NodeHub is a hub as an agent reaches it.
type NodeHub struct {
	Number  protocol.NodeNumber
	Key     protocol.WireGuardPublicKey
	Overlay []netip.Addr
	UDP     []netip.AddrPort
	HTTPS   []string // host:port, for streams where UDP does not pass; names are looked up when one is dialled
}

// Node is an agent's side of the tunnel. Its methods may be called
// concurrently.
type Node struct {
	cfg        NodeConfig
	under      *underlay.Underlay
	ready      chan struct{}
	restarted  chan protocol.NodeNumber
	candidates notice
	hubsBound  notice

	// The underlay calls back while it holds locks of its own, so what the
	// callbacks need is behind atomics, not mu.
	eng        atomic.Pointer[engine.Engine]
	device     atomic.Pointer[tundev.Handle] // nil before Run
	hubNumbers atomic.Pointer[map[protocol.NodeNumber]bool]

	mu    sync.Mutex // orders SetHubs, SetPeers and the start of Run
	ran   bool
	keys  []OwnKey
	hubs  []NodeHub
	peers []NodePeer
	local []netip.Prefix
	names map[protocol.NodeNumber]string
}

// NewNode checks cfg. It opens nothing.
func NewNode(cfg NodeConfig) (*Node, error) {
	if cfg.Engine == "" {
		cfg.Engine = DefaultEngine
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	switch {
	case !cfg.Number.Valid():
		return nil, fmt.Errorf("tunnel: %d is not a node number", cfg.Number)
	case cfg.PrivateKey.IsZero():
		return nil, errors.New("tunnel: no private key")
	case cfg.MTU < tundev.MinMTU || cfg.MTU > tundev.MaxMTU:
		return nil, fmt.Errorf("tunnel: mtu %d is not between %d and %d", cfg.MTU, tundev.MinMTU, tundev.MaxMTU)
	}
	private, ok := privateCandidates[cfg.PrivateCandidates]
	if !ok {
		return nil, fmt.Errorf("tunnel: private candidates %q is none of auto, on and off", cfg.PrivateCandidates)
	}
	if cfg.Queues < 0 || cfg.Queues > tundev.MaxQueues {
		return nil, fmt.Errorf("tunnel: %d queues are more than %d", cfg.Queues, tundev.MaxQueues)
	}
	if err := tundev.CheckName(cfg.Interface); err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	if err := checkEngine(cfg.Engine); err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	n := &Node{
		cfg:        cfg,
		ready:      make(chan struct{}),
		restarted:  make(chan protocol.NodeNumber, 16),
		keys:       []OwnKey{{Key: cfg.PrivateKey, Epoch: cfg.KeyEpoch}},
		candidates: newNotice(),
		hubsBound:  newNotice(),
	}
	n.hubNumbers.Store(&map[protocol.NodeNumber]bool{})
	var err error
	n.under, err = underlay.New(underlay.Config{
		Self: cfg.Number, PrivateKey: cfg.PrivateKey, BootID: cfg.BootID, KeyEpoch: cfg.KeyEpoch,
		ListenPort: cfg.ListenPort, LastPort: cfg.LastPort, Mark: cfg.Mark,
		NewReader:    func() underlay.Receiver { return n.engine().NewReader() },
		OnRestart:    n.peerRestarted,
		OnHubBound:   func(protocol.NodeNumber, bool) { n.hubsBound.send() },
		OnUDPBlocked: n.hubsBound.send,
		Proxy:        cfg.Proxy,
		Lookup:       cfg.Lookup,
		OnCandidates: n.candidates.send,
		Excluded:     cfg.Excluded,
		Private:      private,
		Log:          cfg.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	return n, nil
}

// engine is nil before Run.
func (n *Node) engine() engine.Engine {
	if e := n.eng.Load(); e != nil {
		return *e
	}
	return nil
}

// Run opens the TUN device and the sockets and works until ctx ends (nil). It
// may be called once.
func (n *Node) Run(ctx context.Context) error {
	eng, err := n.start()
	if err != nil {
		return err
	}
	defer n.device.Load().Close()
	g, ctx := errgroup.WithContext(ctx)
	runStack(ctx, g, eng, part{"underlay", n.under.Run})
	g.Go(func() error {
		select {
		case <-n.under.Ready():
			close(n.ready)
		case <-ctx.Done():
		}
		return nil
	})
	if n.cfg.UAPI {
		g.Go(func() error { n.show(ctx); return nil })
	}
	return g.Wait()
}

func (n *Node) start() (engine.Engine, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ran {
		return nil, errors.New("tunnel: Run was called before")
	}
	eng, device, err := openEngine(n.cfg.Engine, engineConfig{number: n.cfg.Number, key: n.keys[0].Key, iface: n.cfg.Interface,
		mtu: n.cfg.MTU, queues: n.cfg.Queues, carrier: n.under, log: n.cfg.Log})
	if err != nil {
		return nil, err
	}
	if err := eng.SetKeys(engineKeys(n.keys)); err != nil {
		device.Close()
		return nil, err
	}
	if err := eng.SetPeers(enginePeers(n.hubs, n.peers)); err != nil {
		device.Close() // SetHubs and SetPeers checked the same peers.
		return nil, err
	}
	eng.SetLocal(n.local)
	n.ran = true
	n.eng.Store(&eng)
	n.device.Store(device)
	return eng, nil
}

// Ready is closed when device and sockets are open.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// OwnKey is a static key of a node's or hub's own and its epoch.
type OwnKey = underlay.OwnKey

// SetKeys replaces the node's own static keys, of which there is at least one.
// The first is the one to begin with; the others are good as well, for peers
// that know no other (see engine.Engine). Whole state; before or while Run runs.
func (n *Node) SetKeys(keys []OwnKey) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(keys) == 0 {
		return errors.New("set keys: no key")
	}
	if err := engine.CheckPeers(publicKeys(keys), enginePeers(n.hubs, n.peers)); err != nil {
		return fmt.Errorf("set keys: %w", err)
	}
	n.under.SetKeys(keys)
	if e := n.engine(); e != nil {
		if err := e.SetKeys(engineKeys(keys)); err != nil {
			n.under.SetKeys(n.keys)
			return fmt.Errorf("set keys: %w", err)
		}
	}
	n.keys = slices.Clone(keys)
	return nil
}

func engineKeys(keys []OwnKey) []protocol.WireGuardPrivateKey {
	out := make([]protocol.WireGuardPrivateKey, len(keys))
	for i, k := range keys {
		out[i] = k.Key
	}
	return out
}

func publicKeys(keys []OwnKey) []protocol.WireGuardPublicKey {
	out := make([]protocol.WireGuardPublicKey, len(keys))
	for i, k := range keys {
		out[i] = k.Key.Public()
	}
	return out
}

// SetHubs says which hubs there are, their overlay addresses and their resolved
// underlay addresses. Whole state; before or while Run runs. It fails, changing
// nothing, on hubs and peers that cannot be set together.
func (n *Node) SetHubs(hubs []NodeHub) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.checkEngine(hubs, n.peers); err != nil {
		return fmt.Errorf("set hubs: %w", err)
	}
	// The underlay first: an engine's first handshake leaves at once.
	if err := n.under.SetHubs(underlayHubs(hubs)); err != nil {
		return fmt.Errorf("set hubs: %w", err)
	}
	if err := n.setEngine(hubs, n.peers); err != nil {
		return errors.Join(fmt.Errorf("set hubs: %w", err), n.under.SetHubs(underlayHubs(n.hubs)))
	}
	numbers := make(map[protocol.NodeNumber]bool, len(hubs))
	for _, h := range hubs {
		numbers[h.Number] = true
	}
	n.hubs = slices.Clone(hubs)
	n.hubNumbers.Store(&numbers)
	return nil
}

// SetPeers replaces the peers. Whole state; before or while Run runs. It fails,
// changing nothing, on hubs and peers that cannot be set together: a number,
// key or prefix that is there twice.
func (n *Node) SetPeers(peers []NodePeer) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.checkEngine(n.hubs, peers); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	if err := n.under.SetPeers(underlayPeers(peers)); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	if err := n.setEngine(n.hubs, peers); err != nil {
		return errors.Join(fmt.Errorf("set peers: %w", err), n.under.SetPeers(underlayPeers(n.peers)))
	}
	names := make(map[protocol.NodeNumber]string, len(peers))
	for _, p := range peers {
		names[p.Number] = p.Name
	}
	n.peers, n.names = slices.Clone(peers), names
	return nil
}

// checkEngine says what an engine would refuse.
func (n *Node) checkEngine(hubs []NodeHub, peers []NodePeer) error {
	return engine.CheckPeers(publicKeys(n.keys), enginePeers(hubs, peers))
}

// setEngine gives the engine its peers, if there is one yet.
func (n *Node) setEngine(hubs []NodeHub, peers []NodePeer) error {
	if e := n.engine(); e != nil {
		return e.SetPeers(enginePeers(hubs, peers))
	}
	return nil
}

func underlayHubs(hubs []NodeHub) []underlay.Hub {
	out := make([]underlay.Hub, len(hubs))
	for i, h := range hubs {
		out[i] = underlay.Hub{Number: h.Number, Key: h.Key, Addrs: h.UDP, HTTPS: h.HTTPS}
	}
	return out
}

func underlayPeers(peers []NodePeer) []underlay.Peer {
	out := make([]underlay.Peer, len(peers))
	for i, p := range peers {
		out[i] = underlay.Peer{Number: p.Number, Key: p.Key, Candidates: p.Candidates, Direct: p.Direct}
	}
	return out
}

func enginePeers(hubs []NodeHub, peers []NodePeer) []engine.Peer {
	out := make([]engine.Peer, 0, len(hubs)+len(peers))
	for _, h := range hubs {
		out = append(out, engine.Peer{Number: h.Number, Key: h.Key, AllowedIPs: hostPrefixes(h.Overlay), Keepalive: hubKeepalive})
	}
	for _, p := range peers {
		e := engine.Peer{Number: p.Number, Key: p.Key, AllowedIPs: p.AllowedIPs, Sources: p.Sources}
		if len(p.Sources) > 0 {
			e.Keepalive = standbyKeepalive
		}
		out = append(out, e)
	}
	return out
}

func hostPrefixes(addrs []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, len(addrs))
	for i, a := range addrs {
		out[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return out
}

// peerRestarted is the underlay's proof of a new boot id.
func (n *Node) peerRestarted(number protocol.NodeNumber) {
	if e := n.engine(); e != nil {
		e.ResetPeer(number)
	}
	if !(*n.hubNumbers.Load())[number] {
		return
	}
	for {
		select {
		case n.restarted <- number:
			return
		default:
		}
		select {
		case <-n.restarted: // nobody listens: the oldest goes
		default:
		}
	}
}

// Reattach makes the TUN device anew if somebody deleted it, and says whether it
// did; one that was renamed gets its name back if that is free. WireGuard's sessions and paths outlive that; addresses and routes went with the
// device and are the caller's to bring back, as are sockets that were bound to it.
func (n *Node) Reattach() (made bool, err error) {
	h := n.device.Load()
	if h == nil {
		return false, ErrNotRunning
	}
	return h.Reattach()
}

// Inject gives the host's kernel an IP packet as one that came out of the tunnel. No
// peer's rights are asked: it is for the agent's own trials of the host.
func (n *Node) Inject(packet []byte) error {
	h := n.device.Load()
	if h == nil {
		return ErrNotRunning
	}
	return h.Inject(packet)
}

// EngineName is the engine that runs.
func (n *Node) EngineName() string { return n.cfg.Engine }
