// Package prod has idle ends of TCP connections say something: a packet that belongs to no window (RFC 9293, section
// 3.10.7.4), in the name of the other end. What the end answers meets a rule that resets the connection, with the one
// number that does so.
package prod

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/nf"
)

// Chain is that of a table which takes our prods out of conntrack, to which they would be a clash.
const Chain = "prod"

// Rule adds the chain, at output before conntrack.
func Rule(b *nf.Batch) {
	b.Chain(Chain, nftables.ChainHookOutput, -300)
	b.Rule(Chain, nf.TCP, nf.TCPFlags(0xff, 0x10), nf.Is(nf.Payload(expr.PayloadBaseTransportHeader, 18, 2), nf.Port(urgent)...), []expr.Any{&expr.Notrack{}})
}

// urgent marks our own prods for the rule that keeps them from conntrack: an urgent
// pointer without the flag says nothing to who gets it.
const urgent = 0x6377

// Send sends a bare acknowledgement in the name of from by a raw socket of the family: IPPROTO_RAW, which needs CAP_NET_RAW. It does
// not wait.
func Send(fd int, from, to netip.AddrPort, seq uint32) error {
	t := make([]byte, 20)
	binary.BigEndian.PutUint16(t, from.Port())
	binary.BigEndian.PutUint16(t[2:], to.Port())
	binary.BigEndian.PutUint32(t[4:], seq)
	t[12], t[13] = 5<<4, 0x10
	binary.BigEndian.PutUint16(t[18:], urgent)
	src, dst := from.Addr().AsSlice(), to.Addr().AsSlice()
	sum := uint32(unix.IPPROTO_TCP) + uint32(len(t))
	for _, b := range [][]byte{src, dst, t} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(t[16:], ^uint16(sum))
	if from.Addr().Is4() {
		ip := make([]byte, 20, 40) // the kernel fills in length and checksum
		ip[0], ip[8], ip[9] = 0x45, 64, byte(unix.IPPROTO_TCP)
		copy(ip[12:], src)
		copy(ip[16:], dst)
		return unix.Sendto(fd, append(ip, t...), unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	}
	ip := make([]byte, 40, 60)
	ip[0], ip[5], ip[6], ip[7] = 0x60, byte(len(t)), byte(unix.IPPROTO_TCP), 64
	copy(ip[8:], src)
	copy(ip[24:], dst)
	return unix.Sendto(fd, append(ip, t...), unix.MSG_DONTWAIT, &unix.SockaddrInet6{Addr: to.Addr().As16()})
}
