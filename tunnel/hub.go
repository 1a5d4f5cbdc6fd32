package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/wggo"
	"causeway/tunnel/netstack"
	"causeway/tunnel/relay"
	"causeway/tunnel/underlay"
)

// RelayLimits bounds the data that the switchboard forwards for everybody, RelayBound that of
// some nodes; RelayRate is how much.
type (
	RelayLimits = relay.Limits
	RelayBound  = relay.Bound
	RelayClass  = relay.Class
	RelayRate   = relay.Rate
)

// HubIdleAfter is how long a node of which nothing is heard stays in the hub's
// WireGuard device. One that lives says something every few seconds.
const HubIdleAfter = 45 * time.Second

// HubConfig configures the hub's side.
type HubConfig struct {
	Number     protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	BootID     protocol.BootID
	Listen     netip.AddrPort // UDP
	Overlay    []netip.Addr   // the hub's own overlay addresses, on its netstack
	// OnBoot is called when a node has proven another boot id than before. It
	// must not block, nor ask the Hub for anything. May be nil.
	OnBoot func(protocol.NodeNumber, protocol.BootID)
	// SocketBuffer is how many bytes each socket may buffer each way; 0: the
	// default. The kernel gives an ordinary user less.
	SocketBuffer int
	Limits       RelayLimits
	// Inherited and Hold let sockets outlive the process: see relay.Config.
	Inherited []*os.File
	Hold      func([]*os.File) bool
	Log       zerolog.Logger
}

// HubNode is a node as the hub knows it.
type HubNode struct {
	Number  protocol.NodeNumber
	Key     protocol.WireGuardPublicKey
	Overlay []netip.Addr
	// Class is that of the switchboard: with whom it forwards for the node. nil: with everybody. See NewRelayClasses.
	Class *RelayClass
}

// NewRelayClasses returns so many classes of nodes, none of which may talk to any. All classes of one SetNodes come
// of one call, or are nil and RelayAlone.
func NewRelayClasses(n int) []*RelayClass { return relay.NewClasses(n) }

// RelayAlone is the class of nodes that talk to the hub alone, where others have none.
var RelayAlone = relay.Alone

// Hub is the hub's side: switchboard, and a WireGuard device on a userspace
// netstack. Its methods may be called concurrently.
type Hub struct {
	cfg   HubConfig
	relay *relay.Relay
	eng   atomic.Pointer[wggo.Engine] // the relay's callbacks hold no lock of ours
	net   atomic.Pointer[netstack.Net]

	mu    sync.Mutex // orders SetNodes and the start of Run
	ran   bool
	keys  []OwnKey
	nodes []HubNode
}

// NewHub checks cfg. It opens nothing.
func NewHub(cfg HubConfig) (*Hub, error) {
	switch {
	case !cfg.Number.Valid():
		return nil, fmt.Errorf("tunnel: %d is not a node number", cfg.Number)
	case cfg.PrivateKey.IsZero():
		return nil, errors.New("tunnel: no private key")
	case !cfg.Listen.IsValid():
		return nil, errors.New("tunnel: no address to listen on")
	case len(cfg.Overlay) == 0:
		return nil, errors.New("tunnel: no overlay address")
	}
	h := &Hub{cfg: cfg, keys: []OwnKey{{Key: cfg.PrivateKey}}}
	var err error
	h.relay, err = relay.New(relay.Config{
		Self: cfg.Number, PrivateKey: cfg.PrivateKey, BootID: cfg.BootID, Listen: cfg.Listen,
		NewReader: func() underlay.Receiver { return h.eng.Load().NewReader() },
		OnRestart: func(n protocol.NodeNumber, boot protocol.BootID) {
			if e := h.eng.Load(); e != nil {
				e.ResetPeer(n)
			}
			if cfg.OnBoot != nil {
				cfg.OnBoot(n, boot)
			}
		},
		SocketBuffer: cfg.SocketBuffer,
		Limits:       cfg.Limits,
		Inherited:    cfg.Inherited,
		Hold:         cfg.Hold,
		Log:          cfg.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("tunnel: %w", err)
	}
	return h, nil
}

// Run opens the socket and works until ctx ends (nil). It may be called once.
func (h *Hub) Run(ctx context.Context) error {
	eng, err := h.start()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	runStack(ctx, g, eng, part{"relay", h.relay.Run})
	return g.Wait()
}

func (h *Hub) start() (*wggo.Engine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ran {
		return nil, errors.New("tunnel: Run was called before")
	}
	n, err := netstack.New(netstack.Config{Addresses: h.cfg.Overlay})
	if err != nil {
		return nil, err
	}
	// The engine's Run closes the netstack.
	eng, err := wggo.New(wggo.Config{Number: h.cfg.Number, PrivateKey: h.keys[0].Key, TUN: n, Carrier: h.relay, IdleAfter: HubIdleAfter, Log: h.cfg.Log,
		AnyDestination: true}) // the netstack takes its own addresses alone
	if err == nil {
		err = eng.SetPeers(hubPeers(h.nodes))
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	h.ran = true
	h.eng.Store(eng)
	h.net.Store(n)
	return eng, nil
}

// Ready is closed when the socket is open.
func (h *Hub) Ready() <-chan struct{} { return h.relay.Ready() }

// LocalAddr is the socket's address; invalid before Ready.
func (h *Hub) LocalAddr() netip.AddrPort { return h.relay.LocalAddr() }

// SetKeys replaces the hub's own static keys, of which there is at least one.
// Handshakes are under the first; addresses are bound, and so data is relayed,
// for those who know any of them. Before or while Run runs.
func (h *Hub) SetKeys(keys []OwnKey) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(keys) == 0 {
		return errors.New("set keys: no key")
	}
	if err := engine.CheckPeers(publicKeys(keys), hubPeers(h.nodes)); err != nil {
		return fmt.Errorf("set keys: %w", err)
	}
	if e := h.eng.Load(); e != nil {
		if err := e.SetKeys(engineKeys(keys)); err != nil {
			return fmt.Errorf("set keys: %w", err)
		}
	}
	h.relay.SetKeys(keys)
	h.keys = slices.Clone(keys)
	return nil
}

// SetNodes replaces the nodes. Whole state; before or while Run runs. A node
// that is left out loses session, binding and relay at once. It fails,
// changing nothing, if a number, key or address is there twice.
func (h *Hub) SetNodes(nodes []HubNode) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.setEngine(nodes); err != nil {
		return fmt.Errorf("set nodes: %w", err)
	}
	switched := make([]relay.Node, len(nodes))
	for i, n := range nodes {
		switched[i] = relay.Node{Number: n.Number, Key: n.Key, Class: n.Class}
	}
	if err := h.relay.SetNodes(switched); err != nil {
		return errors.Join(fmt.Errorf("set nodes: %w", err), h.setEngine(h.nodes))
	}
	h.nodes = slices.Clone(nodes)
	return nil
}

// setEngine gives the engine its peers, or checks them while there is none.
func (h *Hub) setEngine(nodes []HubNode) error {
	peers := hubPeers(nodes)
	for _, p := range peers {
		if p.Number == h.cfg.Number {
			return fmt.Errorf("node %d: number is the hub's own", p.Number)
		}
		for _, a := range p.AllowedIPs {
			if slices.Contains(h.cfg.Overlay, a.Addr()) {
				return fmt.Errorf("node %d: address %s is the hub's own", p.Number, a.Addr())
			}
		}
	}
	if e := h.eng.Load(); e != nil {
		return e.SetPeers(peers)
	}
	return engine.CheckPeers(publicKeys(h.keys), peers)
}

func hubPeers(nodes []HubNode) []engine.Peer {
	out := make([]engine.Peer, len(nodes))
	for i, n := range nodes {
		out[i] = engine.Peer{Number: n.Number, Key: n.Key, AllowedIPs: hostPrefixes(n.Overlay)}
	}
	return out
}

// Listen listens for TCP on the hub's overlay address, from Ready on. A
// connection's remote address is the node's: WireGuard lets a node use no other
// than its own. Accept returns net.ErrClosed when the listener is closed or
// Run ends.
func (h *Hub) Listen(addr netip.AddrPort) (net.Listener, error) {
	n := h.net.Load()
	if n == nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, ErrNotRunning)
	}
	return n.ListenTCP(addr)
}

// Bound lists the UDP addresses bound for a node, the one that is sent to
// first. A stream's is of no use to anybody else.
func (h *Hub) Bound(n protocol.NodeNumber) []netip.AddrPort {
	return slices.DeleteFunc(h.relay.Bound(n), protocol.IsStream)
}

// Proven is when node n last proved by a probe where it is, as a running agent does about
// every second; zero: it is nowhere.
func (h *Hub) Proven(n protocol.NodeNumber) time.Time { return h.relay.Proven(n) }

// StreamHandler takes agents' requests for streams, at protocol.PathStreams of an
// HTTPS server over stream.Listener.
func (h *Hub) StreamHandler() http.Handler { return h.relay.StreamHandler() }

// BoundChanged receives (coalesced) when any node's bound addresses change.
func (h *Hub) BoundChanged() <-chan struct{} { return h.relay.BoundChanged() }

// RelayStats is what the switchboard did since its start.
type RelayStats struct {
	BoundNodes int
	Datagrams  uint64
	Bytes      uint64
	Dropped    map[string]uint64 // by reason
}

// RelayDropReasons are keys of RelayStats.Dropped that can be expected; there may be others.
func RelayDropReasons() []string { return slices.Clone(relay.DropReasons) }

// SetRelayBounds replaces the bounds of what some nodes send through the relay: whole state.
func (h *Hub) SetRelayBounds(l []RelayBound) { h.relay.SetBounds(l) }

// RelayBounded counts the datagrams that each bound has dropped, by its name.
func (h *Hub) RelayBounded() map[string]uint64 { return h.relay.Bounded() }

// RelayStats returns the counters.
func (h *Hub) RelayStats() RelayStats {
	s := h.relay.Stats()
	return RelayStats{BoundNodes: s.Bound, Datagrams: s.Datagrams, Bytes: s.Bytes, Dropped: s.Dropped}
}
