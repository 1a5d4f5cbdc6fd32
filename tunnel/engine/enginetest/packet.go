package enginetest

import (
	"encoding/binary"
	"net/netip"
)

// Packet makes an IP packet with a payload. Checksums are not filled in: no
// engine looks at them.
func Packet(src, dst netip.Addr, payload []byte) []byte {
	if src.Is4() {
		p := make([]byte, 20, 20+len(payload))
		p[0], p[8], p[9] = 0x45, 64, 253
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
		copy(p[12:], src.AsSlice())
		copy(p[16:], dst.AsSlice())
		return append(p, payload...)
	}
	p := make([]byte, 40, 40+len(payload))
	p[0], p[6], p[7] = 0x60, 253, 64
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	copy(p[8:], src.AsSlice())
	copy(p[24:], dst.AsSlice())
	return append(p, payload...)
}

// Payload is the payload of a packet made by Packet.
func Payload(p []byte) []byte {
	if p[0]>>4 == 4 {
		return p[20:]
	}
	return p[40:]
}
