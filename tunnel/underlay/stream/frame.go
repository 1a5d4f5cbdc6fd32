package stream

import (
	"encoding/binary"
	"fmt"
)

// A message is a WebSocket binary message (RFC 6455, section 5.2), unfragmented:
//
//	0x82             FIN, binary
//	mask | length    7 bits; 126: two more bytes of length follow
//	[4]byte          zeros, from the client alone
//	uint16           length of a datagram, big endian
//	…                datagrams of that length, the last one possibly shorter
//
// The mask is there for browsers, whose scripts may not choose what is on the
// wire; an agent has no scripts, and what it sends is ciphertext already. A
// mask of zeros is valid and costs nothing.
const (
	opBinary = 2
	opClose  = 8
	opPing   = 9
	opPong   = 10

	finBit, maskBit   = 0x80, 0x80
	length16, maxTiny = 126, 125

	maxRun      = 65533 // bytes of datagrams in one message
	maxSegments = 128   // datagrams in one message
	maxHeader   = 2 + 2 + 4 + 2

	// unboundLimit is the longest run taken before the other side has proven
	// who it is: probes.
	unboundLimit = 1024
)

// header is what comes before a message's payload.
type header struct {
	op     byte
	size   int // of the header
	length int // of the payload
	mask   [4]byte
}

// parseHeader reads the header at the start of b; false: there is not all of
// it yet. masked says that it comes from a client.
func parseHeader(b []byte, masked bool) (h header, ok bool, err error) {
	bad := func(what string) (header, bool, error) { return header{}, false, fmt.Errorf("%w: %s", ErrFrame, what) }
	if len(b) < 2 {
		return h, false, nil
	}
	h.op, h.size, h.length = b[0]&0x0f, 2, int(b[1]&^maskBit)
	switch {
	case b[0]&^0x0f != finBit:
		return bad("fragments or extensions")
	case (b[1]&maskBit != 0) != masked:
		return bad("mask on the wrong side")
	case h.op != opBinary && h.op != opClose && h.op != opPing && h.op != opPong:
		return bad("unknown kind")
	case h.op != opBinary && h.length > maxTiny:
		return bad("long control message")
	case h.length > length16:
		return bad("too long")
	case h.length == length16:
		if len(b) < 4 {
			return h, false, nil
		}
		h.size, h.length = 4, int(binary.BigEndian.Uint16(b[2:]))
		if h.length <= maxTiny {
			return bad("length in the wrong form")
		}
	}
	if masked {
		if len(b) < h.size+4 {
			return h, false, nil
		}
		h.mask = [4]byte(b[h.size:])
		h.size += 4
	}
	if h.op == opBinary && h.length < 3 {
		return bad("no datagram")
	}
	return h, true, nil
}

// unmask takes the mask of whoever rewrote the message on its way.
func (h *header) unmask(payload []byte) {
	if h.mask == [4]byte{} {
		return
	}
	for i := range payload {
		payload[i] ^= h.mask[i&3]
	}
}

// run is the datagrams in the payload of a binary message and their length.
func run(payload []byte) (datagrams []byte, segment int, err error) {
	datagrams, segment = payload[2:], int(binary.BigEndian.Uint16(payload))
	if segment == 0 || segment > len(datagrams) || (len(datagrams)+segment-1)/segment > maxSegments {
		return nil, 0, fmt.Errorf("%w: %d bytes in datagrams of %d", ErrFrame, len(datagrams), segment)
	}
	return datagrams, segment, nil
}

// appendHeader appends what comes before a payload of n bytes.
func appendHeader(b []byte, op byte, n int, masked bool) []byte {
	m := byte(0)
	if masked {
		m = maskBit
	}
	if n <= maxTiny {
		b = append(b, finBit|op, m|byte(n))
	} else {
		b = append(b, finBit|op, m|length16, byte(n>>8), byte(n))
	}
	if masked {
		b = append(b, 0, 0, 0, 0)
	}
	return b
}

// appendRunHeader appends what comes before n bytes of datagrams.
func appendRunHeader(b []byte, n, segment int, masked bool) []byte {
	b = appendHeader(b, opBinary, n+2, masked)
	return append(b, byte(segment>>8), byte(segment))
}
