package underlay

import (
	"context"
	"errors"
	"net/netip"

	"github.com/rs/zerolog"

	"causeway/protocol"
)

// Config configures an agent's underlay. Self, PrivateKey, BootID and
// NewReader are needed, unless Plain: then NewReader alone.
type Config struct {
	Self       protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	BootID     protocol.BootID
	KeyEpoch   uint32
	ListenPort uint16 // UDP, the same for IPv4 and IPv6; 0: any free port
	Mark       uint32 // SO_MARK of every socket; 0: none

	// NewReader is called in Run, once for each socket. What it returns is
	// called by that socket's goroutine alone.
	NewReader func() Receiver

	// OnRestart is called when a peer or hub has proven a new boot id, before
	// anything that its new run sent is delivered: forget all its sessions. It
	// may call Send. No lock is held; calls for one peer do not overlap.
	OnRestart func(protocol.NodeNumber)
	// OnHubBound is called when a hub binds our address (true) and when it has
	// stopped answering (false). It must not block. May be nil.
	OnHubBound func(hub protocol.NodeNumber, bound bool)
	// OnCandidates is called when Candidates has changed. It must not block. May be nil.
	OnCandidates func()
	// Excluded says which of the host's own addresses are no candidates. May be nil.
	Excluded func(ifname string, a netip.Addr) bool

	// Plain is for interoperation tests with other WireGuard programs alone:
	// zeros to and from any address, no probes, no relay. Peers are set by
	// SetPlainPeer.
	Plain bool
	// NoOffload leaves UDP_GRO and UDP_SEGMENT unused.
	NoOffload bool

	Log zerolog.Logger
}

// Hub is a hub as an agent reaches it.
type Hub struct {
	Number protocol.NodeNumber
	Key    protocol.WireGuardPublicKey
	Addrs  []netip.AddrPort // resolved
}

// Peer is another node as an agent reaches it.
type Peer struct {
	Number     protocol.NodeNumber
	Key        protocol.WireGuardPublicKey
	KeyEpoch   uint32
	Candidates []netip.AddrPort
	Direct     bool // a direct path is allowed
}

// Errors of Send.
var (
	ErrUnknownPeer = errors.New("underlay: no such peer")
	ErrNoPath      = errors.New("underlay: no path to the peer")
	ErrNotRunning  = errors.New("underlay: not running")
)

// Underlay is an agent's sockets and paths. Its methods may be called
// concurrently, and before Run.
type Underlay struct {
	cfg   Config
	ready chan struct{}
}

// New checks cfg. It opens nothing.
func New(cfg Config) (*Underlay, error) {
	if cfg.NewReader == nil {
		return nil, errors.New("underlay: no NewReader")
	}
	return &Underlay{cfg: cfg, ready: make(chan struct{})}, nil
}

// Run opens the sockets and works until ctx ends. It owns every goroutine.
func (u *Underlay) Run(ctx context.Context) error { return errors.New("underlay: not built yet") }

// Ready is closed when the sockets are open.
func (u *Underlay) Ready() <-chan struct{} { return u.ready }

// SetHubs replaces the hubs. A hub that stays keeps what is known of it.
func (u *Underlay) SetHubs([]Hub) error { return nil }

// SetPeers replaces the peers. A peer that stays with the same key keeps its paths.
func (u *Underlay) SetPeers([]Peer) error { return nil }

// SetPlainPeer sets the address of a peer in plain mode.
func (u *Underlay) SetPlainPeer(n protocol.NodeNumber, a netip.AddrPort) {}

// Send implements the engine's Carrier: a run of WireGuard messages, each
// segment bytes long (the last one may be shorter), goes to a peer or hub over
// its chosen path. The reserved bytes are overwritten. Handshake messages go
// over every live path and again until they are answered.
func (u *Underlay) Send(to protocol.NodeNumber, datagrams []byte, segment int) error {
	return ErrNotRunning
}

// Candidates are the host's own addresses on the sockets' port.
func (u *Underlay) Candidates() []netip.AddrPort { return nil }

// Paths says how each hub, and each peer with a path, is reached now.
func (u *Underlay) Paths() []protocol.PathStatus { return nil }

// HubBound reports whether the hub has bound our address and answered lately.
func (u *Underlay) HubBound(protocol.NodeNumber) bool { return false }

// Port is the UDP port of the sockets; 0 before Ready.
func (u *Underlay) Port() uint16 { return 0 }

// Dropped counts received datagrams that were not delivered, by reason.
func (u *Underlay) Dropped() map[string]uint64 { return nil }
