package inline

import (
	"encoding/binary"
	"time"
)

const (
	protoICMP, protoICMPv6 = 1, 58

	// refusalInterval is the shortest time between two ICMP errors of one
	// sender: RFC 1812, 4.3.2.8 and RFC 4443, 2.4 (f) want a bound.
	refusalInterval = time.Millisecond
	// refusalMax is what an error may be in all, so that it passes every
	// link: RFC 1812, 4.3.2.3 (IPv4), RFC 4443, 2.4 (c) (IPv6).
	refusalMax4, refusalMax6 = 576, 1280
)

// refusal is what a sender needs to answer packets for nobody.
type refusal struct {
	sink sink
	last instant
	buf  [headerSize + refusalMax6]byte
}

// unreachable writes an ICMP error for pkt to the device, if it deserves one.
func (w *sender) unreachable(pkt []byte, v6 bool) {
	r := &w.refusal
	now := w.e.now()
	if !r.last.passed(now, refusalInterval) {
		return
	}
	var n int
	if v6 {
		n = refuse6(r.buf[headerSize:], pkt)
	} else {
		n = refuse4(r.buf[headerSize:], pkt)
	}
	if n == 0 {
		return
	}
	r.last = now
	if r.sink == nil {
		r.sink = w.e.device.sink(w.e)
	}
	r.sink.add(r.buf[:headerSize+n:headerSize+n], v6)
	r.sink.flush()
}

// refuse4 makes a host unreachable (RFC 792) of a packet with a whole IPv4
// header, from its destination to its source; 0: RFC 1122, 3.2.2 forbids one.
func refuse4(out, pkt []byte) int {
	head := int(pkt[0]&15) * 4
	src, dst := pkt[12:16], pkt[16:20]
	switch {
	case head < minIPv4 || len(pkt) < head:
		return 0
	case binary.BigEndian.Uint16(pkt[6:])&0x1fff != 0: // not the first fragment
		return 0
	case src[0] == 0 || src[0] == 127 || src[0] >= 224, dst[0] >= 224:
		return 0
	case pkt[9] == protoICMP && (len(pkt) <= head || !icmpQuery(pkt[head])):
		return 0
	}
	quoted := min(len(pkt), refusalMax4-minIPv4-8)
	n := minIPv4 + 8 + quoted
	clear(out[:minIPv4+8])
	out[0], out[8], out[9] = 0x45, 64, protoICMP
	binary.BigEndian.PutUint16(out[2:], uint16(n))
	copy(out[12:], dst)
	copy(out[16:], src)
	binary.LittleEndian.PutUint16(out[10:], ^fold(sum(out[:minIPv4], 0)))
	icmp := out[minIPv4:n]
	icmp[0], icmp[1] = 3, 1
	copy(icmp[8:], pkt[:quoted])
	binary.LittleEndian.PutUint16(icmp[2:], ^fold(sum(icmp, 0)))
	return n
}

// icmpQuery reports whether an ICMP message is a question or its answer and
// no error.
func icmpQuery(t byte) bool {
	switch t {
	case 0, 8, 13, 14:
		return true
	}
	return false
}

// refuse6 makes an address unreachable (RFC 4443, 3.1) likewise.
func refuse6(out, pkt []byte) int {
	src, dst := pkt[8:24], pkt[24:40]
	if src[0] == 0xff || dst[0] == 0xff || [16]byte(src) == [16]byte{} {
		return 0
	}
	if pkt[6] == protoICMPv6 && (len(pkt) <= minIPv6 || pkt[minIPv6] < 128) { // an error
		return 0
	}
	quoted := min(len(pkt), refusalMax6-minIPv6-8)
	n := minIPv6 + 8 + quoted
	clear(out[:minIPv6+8])
	out[0], out[6], out[7] = 0x60, protoICMPv6, 64
	binary.BigEndian.PutUint16(out[4:], uint16(8+quoted))
	copy(out[8:], dst)
	copy(out[24:], src)
	icmp := out[minIPv6:n]
	icmp[0], icmp[1] = 1, 3
	copy(icmp[8:], pkt[:quoted])
	binary.LittleEndian.PutUint16(icmp[2:], ^fold(sum(icmp, pseudo(out, true, protoICMPv6, len(icmp)))))
	return n
}
