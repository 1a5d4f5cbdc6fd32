// Package underlay carries WireGuard's datagrams between nodes and hubs: its
// sockets, the paths to each peer and the probes that judge them. It knows
// nothing of WireGuard's sessions or their keys.
package underlay

import (
	"net/netip"

	"causeway/protocol"
)

// Source says where datagrams came from.
type Source struct {
	// Peer is the node or hub that owns the path they came over; zero in
	// plain mode, where only an engine can tell.
	Peer protocol.NodeNumber
	Addr netip.AddrPort
	// Local is the host's own address that they came to, in plain mode alone.
	Local netip.Addr
}

// Receiver takes what arrives at one reader for an engine. Its methods are
// called by that reader's goroutine alone.
type Receiver interface {
	// Receive takes a run of WireGuard messages that lie behind each other in
	// buf, each segment bytes long, the last one possibly shorter, with the
	// reserved bytes already zero. The receiver may write into buf, and may
	// keep it until Flush returns.
	Receive(from Source, buf []byte, segment int)
	// Flush ends a batch: what was gathered goes on now.
	Flush()
}
