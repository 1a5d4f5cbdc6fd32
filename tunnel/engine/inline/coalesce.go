package inline

import (
	"bytes"
	"encoding/binary"
)

const (
	maxMerge = 64 // packets of one super-packet; the kernel's bound for UDP
	maxSlots = 64 // packets and super-packets gathered before they are written

	ipv4DF = 0x40 // in the byte at 6
)

// slot is one packet, or several of one flow that go to the kernel as one.
type slot struct {
	pkts  [maxMerge][]byte
	n     int
	total int // bytes of the super-packet
	flow  bool
	v6    bool
	proto byte
	// Of slots that are open: another packet may follow.
	open    bool
	checked bool // the first packet's checksum was found right
	l4      int
	headers int
	size    int // payload of each packet but the last
	seq     uint32
	id      uint16
	flags   byte
	header  [vnetSize + maxMergeHeaders]byte
}

// maxMergeHeaders bounds the headers of what is merged: no IP options or
// extensions, TCP with any options.
const maxMergeHeaders = minIPv6 + 60

// coalescer gathers decrypted packets into slots, in order within each flow.
// It merges what the kernel's GRO would merge, and past PSH too. Packets stay
// where they are.
type coalescer struct {
	slots [maxSlots]*slot
	n     int
	last  *slot
}

// facts is what classify finds in a packet.
type facts struct {
	flow      bool // TCP or UDP with ports, no fragment
	mergeable bool
	proto     byte
	l4        int
	headers   int
	seq       uint32
	id        uint16
	flags     byte
}

// classify looks at a packet with a valid IP header length.
func classify(p []byte, v6 bool) (f facts) {
	if v6 {
		f.l4, f.proto = minIPv6, p[6]
	} else {
		if p[0] != 0x45 || p[6]&^ipv4DF != 0 || p[7] != 0 {
			return f
		}
		f.l4, f.proto, f.id = minIPv4, p[9], binary.BigEndian.Uint16(p[4:])
	}
	t := p[f.l4:]
	switch f.proto {
	case protoTCP:
		if len(t) < 20 {
			return f
		}
		f.flow = true
		f.headers = f.l4 + int(t[12]>>4)*4
		f.seq, f.flags = binary.BigEndian.Uint32(t[4:]), t[13]
		f.mergeable = f.headers >= f.l4+20 && f.headers < len(p) && f.flags&^tcpPSH == tcpACK && t[12]&15 == 0
	case protoUDP:
		if len(t) < 8 {
			return f
		}
		f.flow = true
		f.headers = f.l4 + 8
		f.mergeable = len(t) > 8 && int(binary.BigEndian.Uint16(t[4:])) == len(t) && (t[6] != 0 || t[7] != 0)
	}
	return f
}

// add takes a packet and reports whether there is room for another.
func (c *coalescer) add(p []byte, v6, mergeTCP, mergeUDP bool) bool {
	f := classify(p, v6)
	if (f.proto == protoTCP && !mergeTCP) || (f.proto == protoUDP && !mergeUDP) {
		f.mergeable = false
	}
	if f.flow {
		if s := c.find(p, v6, f.proto, f.l4); s != nil {
			c.last = s
			if s.open && f.mergeable && s.merge(p, &f) {
				return true
			}
			s.open = false
		}
	}
	s := c.slots[c.n]
	if s == nil {
		s = &slot{}
		c.slots[c.n] = s
	}
	c.n++
	c.last = s
	s.pkts[0], s.n, s.total = p, 1, len(p)
	s.flow, s.v6, s.proto, s.open, s.checked = f.flow, v6, f.proto, f.mergeable, false
	s.l4, s.headers, s.size = f.l4, f.headers, len(p)-f.headers
	s.seq, s.id, s.flags = f.seq+uint32(s.size), f.id+1, f.flags
	return c.n < maxSlots
}

// find returns the latest slot of p's flow.
func (c *coalescer) find(p []byte, v6 bool, proto byte, l4 int) *slot {
	if c.last != nil && c.last.same(p, v6, proto, l4) {
		return c.last
	}
	for i := c.n - 1; i >= 0; i-- {
		if s := c.slots[i]; s.same(p, v6, proto, l4) {
			return s
		}
	}
	return nil
}

// same compares addresses and ports.
func (s *slot) same(p []byte, v6 bool, proto byte, l4 int) bool {
	if !s.flow || s.v6 != v6 || s.proto != proto {
		return false
	}
	q := s.pkts[0]
	if v6 {
		return bytes.Equal(q[8:44], p[8:44])
	}
	return bytes.Equal(q[12:24], p[12:24])
}

// merge appends p if the kernel, cutting the super-packet again, would make p
// out of it.
func (s *slot) merge(p []byte, f *facts) bool {
	payload := len(p) - f.headers
	q := s.pkts[0]
	if f.headers != s.headers || payload > s.size || s.n == maxMerge || s.total+payload > 65535 {
		return false
	}
	if s.v6 {
		if q[0] != p[0] || q[1] != p[1] || q[2] != p[2] || q[3] != p[3] || q[7] != p[7] {
			return false
		}
	} else if q[1] != p[1] || q[6] != p[6] || q[8] != p[8] || (p[6]&ipv4DF == 0 && f.id != s.id) {
		return false
	}
	if s.proto == protoTCP {
		t, u := q[s.l4:s.headers], p[s.l4:s.headers]
		if f.seq != s.seq || !bytes.Equal(t[8:12], u[8:12]) || !bytes.Equal(t[14:16], u[14:16]) || !bytes.Equal(t[18:], u[18:]) {
			return false
		}
	}
	// A wrong checksum must arrive as it is, not be made right.
	if !s.checked {
		if !checksumRight(q, s.v6, s.proto, s.l4) {
			return false
		}
		s.checked = true
	}
	if !checksumRight(p, s.v6, s.proto, s.l4) {
		return false
	}
	s.pkts[s.n] = p
	s.n++
	s.total += payload
	s.seq += uint32(payload)
	s.id++
	s.flags |= f.flags
	s.open = payload == s.size
	return true
}

func checksumRight(p []byte, v6 bool, proto byte, l4 int) bool {
	return fold(sum(p[l4:], pseudo(p, v6, proto, len(p)-l4))) == 0xffff
}

// super writes the virtio header and the headers of a slot with more than one
// packet into s.header and returns them.
func (s *slot) super() []byte {
	h := s.header[:vnetSize+s.headers]
	clear(h[:vnetSize])
	p := h[vnetSize:]
	copy(p, s.pkts[0][:s.headers])
	h[0] = vnetNeedsCsum
	if s.v6 {
		binary.BigEndian.PutUint16(p[4:], uint16(s.total-minIPv6))
	} else {
		binary.BigEndian.PutUint16(p[2:], uint16(s.total))
		putIPv4Sum(p[:s.l4])
	}
	csum := 16
	switch {
	case s.proto == protoUDP:
		csum = 6
		h[1] = gsoUDP
		binary.BigEndian.PutUint16(p[s.l4+4:], uint16(s.total-s.l4))
	case s.v6:
		h[1] = gsoTCPv6
	default:
		h[1] = gsoTCPv4
	}
	if s.proto == protoTCP {
		p[s.l4+13] = s.flags
	}
	binary.NativeEndian.PutUint16(h[2:], uint16(s.headers))
	binary.NativeEndian.PutUint16(h[4:], uint16(s.size))
	binary.NativeEndian.PutUint16(h[6:], uint16(s.l4))
	binary.NativeEndian.PutUint16(h[8:], uint16(csum))
	binary.LittleEndian.PutUint16(p[s.l4+csum:], fold(pseudo(p, s.v6, s.proto, s.total-s.l4)))
	return h
}

// reset forgets all slots.
func (c *coalescer) reset() {
	for _, s := range c.slots[:c.n] {
		clear(s.pkts[:s.n])
	}
	c.n, c.last = 0, nil
}
