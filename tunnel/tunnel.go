// Package tunnel puts underlay, engine and relay together: Node is an agent's
// side, Hub the hub's.
package tunnel

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/rs/zerolog"

	"causeway/protocol"
)

var errNotBuilt = errors.New("tunnel: not built yet")

// Engine names for NodeConfig.
const (
	EngineInline      = "inline"
	EngineWireGuardGo = "wireguard-go"
)

// NodeConfig configures an agent's side of the tunnel.
type NodeConfig struct {
	Number     protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	BootID     protocol.BootID
	KeyEpoch   uint32
	Interface  string // name of the TUN device, made if missing and kept when Run ends
	MTU        int    // of the TUN device; 0: 1420 less what the underlay needs
	ListenPort uint16 // UDP; 0: any free port
	Mark       uint32 // SO_MARK of every underlay socket
	Engine     string // EngineInline or EngineWireGuardGo
	Log        zerolog.Logger
	// Excluded says which of the host's own addresses are no candidates
	// (container bridges, the tunnel itself). Called when addresses change.
	Excluded func(ifname string, a netip.Addr) bool
}

// NodePeer is another node as an agent reaches it.
type NodePeer struct {
	Number     protocol.NodeNumber
	Name       string
	Key        protocol.WireGuardPublicKey
	KeyEpoch   uint32 // of the peer's signed statement
	AllowedIPs []netip.Prefix
	Candidates []netip.AddrPort
	Direct     bool
}

// Node is an agent's side of the tunnel.
type Node struct{ cfg NodeConfig }

// NewNode checks cfg. It opens nothing.
func NewNode(cfg NodeConfig) (*Node, error) { return &Node{cfg}, nil }

// Run opens the TUN device and the sockets and works until ctx ends.
func (n *Node) Run(ctx context.Context) error { return errNotBuilt }

// Ready is closed when device and sockets are open.
func (n *Node) Ready() <-chan struct{} { return nil }

// SetHubs says which hubs there are, their overlay addresses and their resolved
// underlay addresses. Whole state; before or while Run runs.
func (n *Node) SetHubs([]NodeHub) error { return errNotBuilt }

// NodeHub is a hub as an agent reaches it.
type NodeHub struct {
	Number  protocol.NodeNumber
	Key     protocol.WireGuardPublicKey
	Overlay []netip.Addr
	UDP     []netip.AddrPort
}

// SetPeers replaces the peers. Whole state; before or while Run runs.
func (n *Node) SetPeers([]NodePeer) error { return errNotBuilt }

// Candidates are the host's own underlay addresses, for the hub to pass on.
func (n *Node) Candidates() []netip.AddrPort { return nil }

// Paths says how each peer and hub is reached now.
func (n *Node) Paths() []protocol.PathStatus { return nil }

// HubBound reports whether the hub with this number has bound our address and
// answered lately.
func (n *Node) HubBound(protocol.NodeNumber) bool { return false }

// HubRestarted receives the number of a hub that has proven a new boot id: its
// sessions and connections are gone, and control has to be dialled again. A
// reader that is slow misses repetitions, never the last one of a hub.
func (n *Node) HubRestarted() <-chan protocol.NodeNumber { return nil }

// CandidatesChanged receives (coalesced) when Candidates has changed.
func (n *Node) CandidatesChanged() <-chan struct{} { return nil }

// HubsChanged receives (coalesced) when HubBound has changed for any hub.
func (n *Node) HubsChanged() <-chan struct{} { return nil }

// EngineName is the engine that runs.
func (n *Node) EngineName() string { return n.cfg.Engine }

// HubConfig configures the hub's side.
type HubConfig struct {
	Number     protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	BootID     protocol.BootID
	Listen     netip.AddrPort // UDP
	Overlay    []netip.Addr   // the hub's own overlay addresses, on its netstack
	Log        zerolog.Logger
}

// HubNode is a node as the hub knows it.
type HubNode struct {
	Number   protocol.NodeNumber
	Key      protocol.WireGuardPublicKey
	KeyEpoch uint32
	Overlay  []netip.Addr
	// Talks says with which nodes the relay forwards for it; nil: every node.
	Talks map[protocol.NodeNumber]bool
}

// Hub is the hub's side: switchboard, and a WireGuard device on a userspace netstack.
type Hub struct{ cfg HubConfig }

// NewHub checks cfg. It opens nothing.
func NewHub(cfg HubConfig) (*Hub, error) { return &Hub{cfg}, nil }

// Run opens the socket and works until ctx ends.
func (h *Hub) Run(ctx context.Context) error { return errNotBuilt }

// Ready is closed when the socket is open.
func (h *Hub) Ready() <-chan struct{} { return nil }

// SetNodes replaces the nodes. Whole state; before or while Run runs. A node
// that is left out loses session, binding and relay at once.
func (h *Hub) SetNodes([]HubNode) error { return errNotBuilt }

// Listen listens for TCP on the hub's overlay address.
func (h *Hub) Listen(addr netip.AddrPort) (net.Listener, error) { return nil, errNotBuilt }

// Bound lists the underlay addresses bound for a node, newest first.
func (h *Hub) Bound(protocol.NodeNumber) []netip.AddrPort { return nil }

// BoundChanged receives (coalesced) when any node's bound addresses change.
func (h *Hub) BoundChanged() <-chan struct{} { return nil }

// RelayStats is what the switchboard did since its start.
type RelayStats struct {
	BoundNodes int
	Datagrams  uint64
	Bytes      uint64
	Dropped    map[string]uint64 // by reason
}

// RelayStats returns the counters.
func (h *Hub) RelayStats() RelayStats { return RelayStats{} }
