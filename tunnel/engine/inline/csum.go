package inline

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) is computed with little-endian loads: the
// sum of swapped words is the swapped sum. fold's result is stored by
// binary.LittleEndian.

// sum adds b to a one's complement sum. b may only be odd in length if nothing
// is added after it.
func sum(b []byte, s uint64) uint64 {
	var c uint64
	for len(b) >= 64 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[24:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[32:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[40:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[48:]), c)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b[56:]), c)
		b = b[64:]
	}
	s, c = bits.Add64(s, 0, c)
	s += c
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	if len(b) > 0 {
		var t [8]byte
		copy(t[:], b)
		s, c = bits.Add64(s, binary.LittleEndian.Uint64(t[:]), 0)
		s += c
	}
	return s
}

// fold reduces a sum to 16 bits.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// pseudo is the sum of the pseudo header of pkt's transport, whose length
// (header and payload) is n.
func pseudo(pkt []byte, v6 bool, proto byte, n int) uint64 {
	s := uint64(proto)<<8 + word(n)
	if v6 {
		return sum(pkt[8:40], s)
	}
	return s + uint64(binary.LittleEndian.Uint32(pkt[12:])) + uint64(binary.LittleEndian.Uint32(pkt[16:]))
}

// word is the contribution of a 16-bit number in network order.
func word(n int) uint64 { return uint64(bits.ReverseBytes16(uint16(n))) }

// putIPv4Sum computes the header checksum of an IPv4 header.
func putIPv4Sum(h []byte) {
	h[10], h[11] = 0, 0
	binary.LittleEndian.PutUint16(h[10:], ^fold(sum(h, 0)))
}
