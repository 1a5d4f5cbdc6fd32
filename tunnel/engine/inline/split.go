package inline

import (
	"encoding/binary"
	"errors"
)

// The virtio_net_hdr in front of every packet of a TUN device with
// IFF_VNET_HDR (host byte order; include/uapi/linux/virtio_net.h):
//
//	flags (1) | gso_type (1) | hdr_len (2) | gso_size (2) | csum_start (2) | csum_offset (2)
const (
	vnetSize = 10

	vnetNeedsCsum = 1

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDP   = 5    // UDP_L4: USO
	gsoECN   = 0x80 // flag
)

const (
	protoTCP = 6
	protoUDP = 17

	tcpFIN, tcpPSH, tcpACK, tcpCWR = 0x01, 0x08, 0x10, 0x80

	minIPv4, minIPv6 = 20, 40

	// maxHeaders bounds IP and transport headers with options and extensions
	// of what is split.
	maxHeaders = 256
)

var errPacket = errors.New("malformed packet")

// superPacket is one packet from a TUN device, to be cut into what goes on
// the wire. The zero value is ready for parse.
type superPacket struct {
	buf    []byte // the read buffer: the packet begins at start
	start  int
	length int
	count  int // segments
	v6     bool

	// Of more than one segment only.
	udp     bool
	l4      int // where the transport header begins, from start
	headers int // length of all headers
	size    int // payload of each segment
	csum    int // where the checksum is, from l4
	id      uint16
	seq     uint32
	flags   byte
	ipSum   uint64 // of the parts of the IPv4 header that stay
	l4Sum   uint64 // of the pseudo header without the length
	header  [maxHeaders]byte
}

// parse reads the packet of n bytes at buf[start:], behind its virtio header
// if vnet is not nil. It completes the checksum of a single packet in place.
// buf has to go on for at least padding bytes after the packet.
func (sp *superPacket) parse(vnet, buf []byte, start, n int) error {
	pkt := buf[start : start+n]
	sp.buf, sp.start, sp.length, sp.count, sp.size = buf, start, n, 1, 0
	if n < minIPv4 {
		return errPacket
	}
	switch pkt[0] >> 4 {
	case 4:
		sp.v6 = false
	case 6:
		sp.v6 = true
		if n < minIPv6 {
			return errPacket
		}
	default:
		return errPacket
	}
	if vnet == nil {
		return nil
	}
	start4 := int(binary.NativeEndian.Uint16(vnet[6:]))
	offset := int(binary.NativeEndian.Uint16(vnet[8:]))
	switch gso := vnet[1] &^ gsoECN; gso {
	case gsoNone:
		if vnet[0]&vnetNeedsCsum == 0 {
			return nil
		}
		if start4+offset+2 > n {
			return errPacket
		}
		// The field holds the sum of the pseudo header already.
		v := ^fold(sum(pkt[start4:], 0))
		if v == 0 && offset == 6 { // UDP: zero would mean no checksum
			v = 0xffff
		}
		binary.LittleEndian.PutUint16(pkt[start4+offset:], v)
		return nil
	case gsoTCPv4, gsoTCPv6, gsoUDP:
		return sp.parseGSO(pkt, gso, int(binary.NativeEndian.Uint16(vnet[4:])), start4)
	}
	return errPacket
}

func (sp *superPacket) parseGSO(pkt []byte, gso byte, size, l4 int) error {
	n := len(pkt)
	if size == 0 || (sp.v6 && (l4 < minIPv6 || gso == gsoTCPv4)) || (!sp.v6 && (l4 != int(pkt[0]&15)*4 || l4 < minIPv4 || gso == gsoTCPv6)) {
		return errPacket
	}
	sp.udp = gso == gsoUDP
	sp.l4, sp.size = l4, size
	if sp.udp {
		sp.headers, sp.csum = l4+8, 6
	} else {
		if l4+20 > n {
			return errPacket
		}
		sp.headers, sp.csum = l4+int(pkt[l4+12]>>4)*4, 16
		if sp.headers < l4+20 {
			return errPacket
		}
	}
	if sp.headers > maxHeaders || sp.headers >= n {
		return errPacket
	}
	sp.count = (n - sp.headers + size - 1) / size
	h := sp.header[:sp.headers]
	copy(h, pkt)
	proto := byte(protoTCP)
	if sp.udp {
		proto = protoUDP
	} else {
		sp.seq = binary.BigEndian.Uint32(h[l4+4:])
		sp.flags = h[l4+13]
	}
	sp.l4Sum = pseudo(h, sp.v6, proto, 0)
	if !sp.v6 {
		sp.id = binary.BigEndian.Uint16(h[4:])
		clear(h[2:6])
		clear(h[10:12])
		sp.ipSum = sum(h[:l4], 0)
	}
	clear(h[l4+sp.csum : l4+sp.csum+2])
	return nil
}

// segment completes segment i in the buffer and says where it is. The headers
// are put in front of its payload, over the end of the segment before: that
// one must have been used. Segments are asked for in order.
func (sp *superPacket) segment(i int) (start, n int) {
	if sp.count == 1 && sp.size == 0 {
		return sp.start, sp.length
	}
	o := i * sp.size
	payload := min(sp.size, sp.length-sp.headers-o)
	start, n = sp.start+o, sp.headers+payload
	q := sp.buf[start : start+n]
	copy(q, sp.header[:sp.headers])
	t := q[sp.l4:]
	if sp.v6 {
		binary.BigEndian.PutUint16(q[4:], uint16(n-minIPv6))
	} else {
		binary.BigEndian.PutUint16(q[2:], uint16(n))
		binary.BigEndian.PutUint16(q[4:], sp.id+uint16(i))
		binary.LittleEndian.PutUint16(q[10:], ^fold(sp.ipSum+uint64(binary.LittleEndian.Uint32(q[2:])&0xffff)+uint64(binary.LittleEndian.Uint16(q[4:]))))
	}
	if sp.udp {
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	} else {
		binary.BigEndian.PutUint32(t[4:], sp.seq+uint32(o))
		f := sp.flags
		if i > 0 {
			f &^= tcpCWR // on the first only
		}
		if i < sp.count-1 {
			f &^= tcpFIN | tcpPSH // on the last only
		}
		t[13] = f
	}
	v := ^fold(sum(t, sp.l4Sum+word(len(t))))
	if v == 0 && sp.udp {
		v = 0xffff
	}
	binary.LittleEndian.PutUint16(t[sp.csum:], v)
	return start, n
}
