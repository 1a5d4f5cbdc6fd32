package protocol

// Every WireGuard message begins with a type byte and three reserved bytes
// that are zero (WireGuard paper, section 5.4). Between Causeway's nodes the
// reserved bytes hold a node number, big endian:
//
//	agent -> hub    the addressee's; zeros: the hub itself
//	hub -> agent    the sender's; zeros: the hub itself
//	agent -> agent  the sender's
//
// mac1 covers them, so a receiver puts the zeros back before an engine sees
// the message. Probes have the number in the same place, so that the blind
// relay forwards them like anything else.

// MessageType is the first byte of a datagram on a tunnel's socket.
type MessageType byte

// Message types. All but MessageProbe are WireGuard's.
const (
	MessageUnknown    MessageType = 0
	MessageInitiation MessageType = 1
	MessageResponse   MessageType = 2
	MessageCookie     MessageType = 3
	MessageTransport  MessageType = 4
	MessageProbe      MessageType = 0x50
)

// Sizes of WireGuard's messages. A transport message is at least
// MinTransportSize long: header, no payload, tag.
const (
	InitiationSize   = 148
	ResponseSize     = 92
	CookieSize       = 64
	MinTransportSize = 32
)

// ClassifyMessage returns the type of the datagram b, or MessageUnknown if its
// first byte or its length is none of a known type's.
func ClassifyMessage(b []byte) MessageType {
	if len(b) < 4 {
		return MessageUnknown
	}
	switch t := MessageType(b[0]); {
	case t == MessageTransport && len(b) >= MinTransportSize,
		t == MessageInitiation && len(b) == InitiationSize,
		t == MessageResponse && len(b) == ResponseSize,
		t == MessageCookie && len(b) == CookieSize,
		t == MessageProbe && len(b) >= ProbeSize:
		return t
	}
	return MessageUnknown
}

// MessageNumber reads the node number in b's reserved bytes. b has at least
// four bytes.
func MessageNumber(b []byte) NodeNumber {
	return NodeNumber(b[1])<<16 | NodeNumber(b[2])<<8 | NodeNumber(b[3])
}

// SetMessageNumber writes n into b's reserved bytes; zero makes it plain
// WireGuard. b has at least four bytes, n at most 24 bits.
func SetMessageNumber(b []byte, n NodeNumber) {
	_ = b[3]
	b[1], b[2], b[3] = byte(n>>16), byte(n>>8), byte(n)
}
