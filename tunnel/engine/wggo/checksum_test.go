package wggo

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// udp6 is a UDP datagram over IPv6 with these two bytes and n more as its data,
// without a checksum.
func udp6(data uint16, n int) []byte {
	p := make([]byte, headerIPv6+headerUDP+2+n)
	p[0], p[6], p[7] = 0x60, protoUDP, 64
	binary.BigEndian.PutUint16(p[4:], uint16(headerUDP+2+n))
	copy(p[8:], netip.MustParseAddr("fd00::1").AsSlice())
	copy(p[24:], netip.MustParseAddr("fd00::2").AsSlice())
	t := p[headerIPv6:]
	binary.BigEndian.PutUint16(t, 1000)
	binary.BigEndian.PutUint16(t[2:], 2000)
	binary.BigEndian.PutUint16(t[4:], uint16(headerUDP+2+n))
	binary.BigEndian.PutUint16(t[8:], data)
	return p
}

// Of the 65,536 datagrams that differ in two bytes alone, one has a checksum that
// comes out as zero.
func TestMendUDPChecksum(t *testing.T) {
	for _, n := range []int{0, 1, 7, 1200} {
		mended := 0
		for data := range 1 << 16 {
			p := udp6(uint16(data), n)
			mendUDPChecksum(p)
			if c := binary.BigEndian.Uint16(p[46:]); c != 0 {
				require.Equal(t, uint16(0xffff), c)
				mended++
			}
		}
		require.Equal(t, 1, mended, "data of %d bytes", 2+n)
	}
	for name, change := range map[string]func(p []byte) []byte{
		"a checksum": func(p []byte) []byte { p[47] = 1; return p },
		"TCP":        func(p []byte) []byte { p[6] = 6; return p },
		"IPv4":       func(p []byte) []byte { p[0] = 0x45; return p },
		"cut short":  func(p []byte) []byte { return p[:headerIPv6+headerUDP-1] },
		"no bytes":   func(p []byte) []byte { return p[:0] },
	} {
		for data := range 1 << 16 {
			p := change(udp6(uint16(data), 0))
			want := append([]byte{}, p...)
			mendUDPChecksum(p)
			require.Equal(t, want, p, name)
		}
	}
}
