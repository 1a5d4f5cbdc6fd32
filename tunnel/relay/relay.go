// Package relay is the hub's switchboard: it forwards WireGuard's ciphertext
// between nodes by the node numbers in the reserved bytes, from and to
// addresses that probes have bound, and hands the hub's own datagrams to the
// hub's device. It knows no session and keeps none.
package relay

import (
	"context"
	"errors"
	"net/netip"

	"github.com/rs/zerolog"

	"causeway/protocol"
	"causeway/tunnel/underlay"
)

// Config configures a switchboard. All but OnRestart and Log are needed.
type Config struct {
	Self       protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	BootID     protocol.BootID
	Listen     netip.AddrPort // UDP; an unspecified IPv6 address takes IPv4 too; port 0: any free port

	// NewReader is called in Run, once for each socket. What it returns is
	// called by that socket's goroutine alone.
	NewReader func() underlay.Receiver
	// OnRestart is called when a node has proven a new boot id, before anything
	// that its new run sent is delivered: forget all its sessions. No lock is held.
	OnRestart func(protocol.NodeNumber)
	// NoOffload leaves UDP_GRO and UDP_SEGMENT unused.
	NoOffload bool

	Log zerolog.Logger
}

// Node is a node as the switchboard knows it.
type Node struct {
	Number   protocol.NodeNumber
	Key      protocol.WireGuardPublicKey
	KeyEpoch uint32
	// Talks says with which nodes the relay forwards for it; nil: every node.
	// Both ends must allow it. The map must not be changed afterwards.
	Talks map[protocol.NodeNumber]bool
}

// Stats is what the switchboard did since Run began.
type Stats struct {
	Bound     int    // nodes with a bound address
	Datagrams uint64 // forwarded
	Bytes     uint64 // forwarded
	Dropped   map[string]uint64
}

// Relay is the switchboard. Its methods may be called concurrently, and before Run.
type Relay struct {
	cfg     Config
	ready   chan struct{}
	changed chan struct{}
}

// New checks cfg. It opens nothing.
func New(cfg Config) (*Relay, error) {
	if cfg.NewReader == nil {
		return nil, errors.New("relay: no NewReader")
	}
	return &Relay{cfg: cfg, ready: make(chan struct{}), changed: make(chan struct{}, 1)}, nil
}

// Run opens the socket and works until ctx ends. It owns every goroutine.
func (r *Relay) Run(ctx context.Context) error { return errors.New("relay: not built yet") }

// Ready is closed when the socket is open.
func (r *Relay) Ready() <-chan struct{} { return r.ready }

// LocalAddr is the socket's address; invalid before Ready.
func (r *Relay) LocalAddr() netip.AddrPort { return netip.AddrPort{} }

// SetNodes replaces the nodes. A node that is left out, or whose key changed,
// loses its binding at once.
func (r *Relay) SetNodes([]Node) error { return nil }

// Send implements the engine's Carrier for the hub's own device: plain
// WireGuard (zeros) to the address that the node named.
func (r *Relay) Send(to protocol.NodeNumber, datagrams []byte, segment int) error {
	return underlay.ErrNotRunning
}

// Bound lists the addresses bound for a node, the one that is sent to first.
func (r *Relay) Bound(protocol.NodeNumber) []netip.AddrPort { return nil }

// BoundChanged receives (coalesced) when any node's bound addresses change.
func (r *Relay) BoundChanged() <-chan struct{} { return r.changed }

// Stats returns the counters.
func (r *Relay) Stats() Stats { return Stats{} }
