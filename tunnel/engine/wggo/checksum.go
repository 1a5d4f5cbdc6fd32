package wggo

import "encoding/binary"

const (
	headerIPv6 = 40
	headerUDP  = 8
	protoUDP   = 17
)

// mendUDPChecksum puts 0xffff where wireguard-go's tun package, completing a
// checksum that the kernel left to it, wrote the zero that came out: zero means
// that there is none, and over IPv6 every receiver drops such a datagram
// (RFC 8200, 8.1), however often it is sent again. It is one datagram of 65,536. p
// is an IP packet; one that has no checksum on purpose stays as it is.
func mendUDPChecksum(p []byte) {
	if len(p) < headerIPv6+headerUDP || p[0]>>4 != 6 || p[6] != protoUDP || p[46]|p[47] != 0 {
		return
	}
	t := p[headerIPv6:]
	s := uint64(protoUDP) + uint64(len(t))
	for _, b := range [][]byte{p[8:headerIPv6], t} {
		for ; len(b) >= 2; b = b[2:] {
			s += uint64(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			s += uint64(b[0]) << 8
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	if s == 0xffff {
		p[46], p[47] = 0xff, 0xff
	}
}
