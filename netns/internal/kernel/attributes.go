package kernel

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// Attributes goes through netlink attributes, without the flags in their types, until one is cut off. It allocates nothing.
func Attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.NLA_HDRLEN {
			n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
			if n < unix.NLA_HDRLEN || n > len(b) || !yield(typ&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.NLA_HDRLEN:n]) {
				return
			}
			b = b[min(len(b), (n+3)&^3):]
		}
	}
}
