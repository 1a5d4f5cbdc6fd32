package protocol

import (
	"encoding/binary"
	"net/netip"
)

// Where UDP does not pass, the same datagrams ride a WebSocket on the hub's
// HTTPS port:
//
//	GET PathStreams, Upgrade: websocket, Sec-WebSocket-Protocol: StreamProtocol
//
// Each binary message is a run of datagrams; package stream has the layout.
// TLS is transport only: whoever is at the other end proves itself by probes.
const (
	PathStreams    = "/v1/stream"
	StreamProtocol = "causeway.stream.v1"
)

// A stream has an address like any other source and destination of datagrams:
// one with this zone. A socket never reports a zone that it was not given, and
// candidates are stripped of theirs, so nobody outside can name a stream.
const streamZone = "stream"

// streamPrefix is discarded by every router (RFC 6666).
var streamPrefix = [8]byte{0x01}

// StreamAddr is the address of stream number n of this process.
func StreamAddr(n uint64) netip.AddrPort {
	var a [16]byte
	copy(a[:], streamPrefix[:])
	binary.BigEndian.PutUint64(a[8:], n)
	return netip.AddrPortFrom(netip.AddrFrom16(a).WithZone(streamZone), 1)
}

// IsStream reports whether a is a stream's.
func IsStream(a netip.AddrPort) bool { return a.Addr().Zone() == streamZone }
