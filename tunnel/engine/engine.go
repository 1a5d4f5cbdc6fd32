// Package engine is WireGuard: peers, sessions, cryptokey routing between a
// TUN device and an underlay. There is one interface and more than one
// implementation behind it. An engine knows peers by node number and never an
// address of the underlay.
package engine

import (
	"context"
	"net/netip"
	"time"

	"causeway/protocol"
	"causeway/tunnel/underlay"
)

// Carrier is the underlay as an engine sees it. Methods may be called
// concurrently.
type Carrier interface {
	// Send sends a run of WireGuard messages that lie behind each other in
	// datagrams, each segment bytes long (the last one may be shorter), to a
	// peer over its chosen path. The reserved bytes are zero on entry and may
	// be overwritten, as may the buffer until Send returns. Send never blocks
	// on a slow path: it drops. An error says that nothing could be sent; it is
	// for counters and logs.
	Send(to protocol.NodeNumber, datagrams []byte, segment int) error
}

// Peer is the configuration of one peer.
type Peer struct {
	Number       protocol.NodeNumber
	Key          protocol.WireGuardPublicKey
	PresharedKey [32]byte       // zeros: none
	AllowedIPs   []netip.Prefix // no prefix may be in two peers
	// Sources are prefixes of other peers' AllowedIPs from which this peer may send
	// as well. An engine that knows no such thing drops those packets.
	Sources   []netip.Prefix
	Keepalive time.Duration // persistent keepalive, whole seconds; 0: none
}

// PeerStats counts one peer's traffic since it was first set.
type PeerStats struct {
	Number        protocol.NodeNumber
	RxBytes       uint64
	TxBytes       uint64
	LastHandshake time.Time // zero: none yet
}

// Engine is one WireGuard device. New… opens nothing; Run starts it, owns its
// goroutines and closes the TUN device when ctx ends.
type Engine interface {
	// Name is inline or wireguard-go.
	Name() string
	// Run works until ctx ends (nil) or the device fails.
	Run(ctx context.Context) error
	// SetKeys replaces the device's own static keys, of which there is at least
	// one. Handshakes begin with the first; whoever knows another one only may
	// be talked to under that, if the engine can (inline can, wireguard-go takes
	// the first alone). It fails, changing nothing, if one is a peer's.
	SetKeys([]protocol.WireGuardPrivateKey) error
	// SetPeers replaces all peers. Unchanged peers keep their sessions; one that
	// has another key than before has rotated it, and its sessions go on until
	// a handshake under the new one is done, if the engine can (inline). It
	// fails, changing nothing, if a prefix is in two peers or a number or key
	// twice. It may be called before and while Run runs.
	SetPeers([]Peer) error
	// SetLocal says to what peers may send: anything else that they send is dropped, and
	// counted. It replaces what was said before; until it is called all is dropped, unless
	// the engine was made for any destination.
	SetLocal([]netip.Prefix)
	// ResetPeer forgets all sessions and handshake state of a peer, as after
	// its restart.
	ResetPeer(protocol.NodeNumber)
	// NewReader returns a receiver for one reader of the underlay.
	NewReader() underlay.Receiver
	// Stats lists every peer's counters.
	Stats() []PeerStats
	// Drops counts packets and messages that were dropped: each reason that the engine tells
	// apart is there, if only with 0. inline has all, wireguard-go DropElsewhere alone.
	Drops() protocol.Drops
}
