package inline

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// inner describes a TCP or UDP packet of a test.
type inner struct {
	v6      bool
	udp     bool
	options int // bytes of TCP options
	payload int
	seq     uint32
	id      uint16
	flags   byte
	port    uint16
	df      bool
}

// build makes the packet; its checksum is right unless partial, then it is
// the pseudo header's, as the kernel hands over super-packets.
func (in inner) build(partial bool) []byte {
	l4, proto := minIPv4, byte(protoTCP)
	if in.v6 {
		l4 = minIPv6
	}
	hl := l4 + 20 + in.options
	if in.udp {
		hl, proto = l4+8, protoUDP
	}
	n := hl + in.payload
	p := make([]byte, n)
	if in.v6 {
		p[0], p[6], p[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(p[4:], uint16(n-minIPv6))
		copy(p[8:], bytes.Repeat([]byte{0xfd, 1}, 8))
		copy(p[24:], bytes.Repeat([]byte{0xfd, 2}, 8))
	} else {
		p[0], p[8], p[9] = 0x45, 64, proto
		if in.df {
			p[6] = ipv4DF
		}
		binary.BigEndian.PutUint16(p[2:], uint16(n))
		binary.BigEndian.PutUint16(p[4:], in.id)
		copy(p[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
		putIPv4Sum(p[:minIPv4])
	}
	t := p[l4:]
	binary.BigEndian.PutUint16(t, in.port)
	binary.BigEndian.PutUint16(t[2:], 80)
	csum := 16
	if in.udp {
		csum = 6
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	} else {
		binary.BigEndian.PutUint32(t[4:], in.seq)
		binary.BigEndian.PutUint32(t[8:], 77)
		t[12] = byte((20 + in.options) / 4 << 4)
		t[13] = in.flags
		binary.BigEndian.PutUint16(t[14:], 500)
	}
	for i := hl; i < n; i++ {
		p[i] = byte(int(in.seq) + i - hl + (i-hl)>>8)
	}
	s := pseudo(p, in.v6, proto, len(t))
	if !partial {
		binary.LittleEndian.PutUint16(t[csum:], ^fold(sum(t, s)))
	} else {
		binary.LittleEndian.PutUint16(t[csum:], fold(s))
	}
	return p
}

func (in inner) vnet(size int) []byte {
	v := make([]byte, vnetSize)
	v[0] = vnetNeedsCsum
	l4, csum := minIPv4, 16
	if in.v6 {
		l4 = minIPv6
	}
	switch {
	case size == 0:
	case in.udp:
		v[1] = gsoUDP
	case in.v6:
		v[1] = gsoTCPv6
	default:
		v[1] = gsoTCPv4
	}
	if in.udp {
		csum = 6
	}
	binary.NativeEndian.PutUint16(v[4:], uint16(size))
	binary.NativeEndian.PutUint16(v[6:], uint16(l4))
	binary.NativeEndian.PutUint16(v[8:], uint16(csum))
	return v
}

// readBuffer puts a packet where read would.
func readBuffer(p []byte) []byte {
	b := make([]byte, readHead+len(p)+maxHeaders+padding)
	copy(b[readHead:], p)
	return b
}

// simpleSum is RFC 1071 as it is written there.
func simpleSum(b []byte) uint16 {
	s := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

func TestSumIsRFC1071(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 400 {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32()) | byte(n%2*255)
		}
		var out [2]byte
		binary.LittleEndian.PutUint16(out[:], fold(sum(b, 0)))
		require.Equal(t, simpleSum(b), binary.BigEndian.Uint16(out[:]), "length %d", n)
	}
}

var shapes = []inner{
	{flags: tcpACK | tcpPSH, options: 12, payload: 20000, seq: 1<<32 - 3000, id: 65530},
	{v6: true, flags: tcpACK, options: 12, payload: 20000},
	{udp: true, payload: 20000, id: 5},
	{v6: true, udp: true, payload: 20000},
	{flags: tcpACK | tcpFIN | tcpCWR, payload: 2801, seq: 9},
	{flags: tcpACK, payload: 1400},
	{flags: tcpACK, payload: 1401},
	{flags: tcpACK, payload: 64000, options: 40},
}

func TestSplit(t *testing.T) {
	for _, in := range shapes {
		for _, size := range []int{1400, 1368, 536, 30, 1} {
			if in.payload/size > 3000 {
				continue
			}
			whole := in.build(true)
			var sp superPacket
			require.NoError(t, sp.parse(in.vnet(size), readBuffer(whole), readHead, len(whole)))
			require.Equal(t, (in.payload+size-1)/size, sp.count)
			hl := len(whole) - in.payload
			for i := range sp.count {
				at, n := sp.segment(i)
				got := bytes.Clone(sp.buf[at : at+n])
				clear(sp.buf[at : at+n]) // it is used up
				want := in
				want.payload = n - hl
				if !in.udp {
					want.seq += uint32(i * size)
					if i > 0 {
						want.flags &^= tcpCWR
					}
					if i < sp.count-1 {
						want.flags &^= tcpFIN | tcpPSH
					}
				}
				want.id += uint16(i)
				exp := want.build(false)
				copy(exp[hl:], whole[hl+i*size:])
				fixSum(exp, in)
				require.True(t, bytes.Equal(exp, got), "%+v size %d segment %d", in, size, i)
			}
		}
	}
}

// fixSum computes the transport checksum anew.
func fixSum(p []byte, in inner) {
	l4, csum, proto := minIPv4, 16, byte(protoTCP)
	if in.v6 {
		l4 = minIPv6
	}
	if in.udp {
		csum, proto = 6, protoUDP
	}
	t := p[l4:]
	t[csum], t[csum+1] = 0, 0
	v := ^fold(sum(t, pseudo(p, in.v6, proto, len(t))))
	if v == 0 && in.udp {
		v = 0xffff
	}
	binary.LittleEndian.PutUint16(t[csum:], v)
}

func TestPartialChecksumIsCompleted(t *testing.T) {
	for _, in := range shapes {
		in.payload = 333
		p := in.build(true)
		var sp superPacket
		require.NoError(t, sp.parse(in.vnet(0), readBuffer(p), readHead, len(p)))
		at, n := sp.segment(0)
		require.True(t, bytes.Equal(in.build(false), sp.buf[at:at+n]))
	}
}

// What splitting cuts, coalescing joins again, into the same super-packet.
func TestCoalesceIsSplitBackwards(t *testing.T) {
	for _, in := range shapes {
		const size = 1368
		in.flags &^= tcpFIN | tcpCWR
		whole := in.build(true)
		var sp superPacket
		require.NoError(t, sp.parse(in.vnet(size), readBuffer(whole), readHead, len(whole)))
		var c coalescer
		for i := range sp.count {
			at, n := sp.segment(i)
			require.True(t, c.add(bytes.Clone(sp.buf[at:at+n]), in.v6, true, true))
		}
		require.Equal(t, 1, c.n)
		s := c.slots[0]
		if sp.count == 1 {
			require.Equal(t, 1, s.n)
			continue
		}
		h := s.super()
		got := bytes.Clone(h[vnetSize:])
		for _, p := range s.pkts[:s.n] {
			got = append(got, p[s.headers:]...)
		}
		require.True(t, bytes.Equal(whole, got), "%+v", in)
		v := in.vnet(size)
		binary.NativeEndian.PutUint16(v[2:], uint16(s.headers))
		require.Equal(t, v, h[:vnetSize])
	}
}

func TestCoalesceKeepsApart(t *testing.T) {
	base := inner{flags: tcpACK, payload: 1000, seq: 1000, id: 7}
	second := base
	second.seq, second.id = 2000, 8
	for name, change := range map[string]func(*inner) []byte{
		"gap":          func(in *inner) []byte { in.seq++; return in.build(false) },
		"other port":   func(in *inner) []byte { in.port++; return in.build(false) },
		"longer":       func(in *inner) []byte { in.payload++; return in.build(false) },
		"options":      func(in *inner) []byte { in.options = 12; return in.build(false) },
		"FIN":          func(in *inner) []byte { in.flags |= tcpFIN; return in.build(false) },
		"SYN":          func(in *inner) []byte { in.flags |= 2; return in.build(false) },
		"id":           func(in *inner) []byte { in.id++; return in.build(false) },
		"bad checksum": func(in *inner) []byte { p := in.build(false); p[len(p)-1] ^= 1; return p },
		"TTL":          func(in *inner) []byte { p := in.build(false); p[8]--; putIPv4Sum(p[:20]); return p },
		"TOS":          func(in *inner) []byte { p := in.build(false); p[1] = 3; putIPv4Sum(p[:20]); return p },
		"window":       func(in *inner) []byte { p := in.build(false); p[34]++; fixSum(p, *in); return p },
		"fragment":     func(in *inner) []byte { p := in.build(false); p[6] |= 0x20; putIPv4Sum(p[:20]); return p },
		"IP options":   func(in *inner) []byte { p := in.build(false); p[0] = 0x46; return p },
	} {
		in := second
		p := change(&in)
		var c coalescer
		c.add(base.build(false), false, true, true)
		c.add(p, false, true, true)
		require.Equal(t, 2, c.n, name)
		require.Equal(t, p, c.slots[1].pkts[0], name)
	}
	var c coalescer
	bad := base.build(false)
	bad[30] ^= 1
	c.add(bad, false, true, true)
	c.add(second.build(false), false, true, true)
	require.Equal(t, 2, c.n, "a wrong first checksum must stay wrong")
}

// Packets of one flow never overtake each other.
func TestCoalesceKeepsOrder(t *testing.T) {
	a := inner{flags: tcpACK, payload: 100, seq: 1000, port: 1, df: true}
	ack := inner{flags: tcpACK, seq: 1100, port: 1, df: true}
	a2 := a
	a2.seq = 1100
	other := inner{flags: tcpACK, payload: 100, port: 2, df: true}
	var c coalescer
	for _, in := range []inner{a, other, ack, a2, other} {
		c.add(in.build(false), false, true, true)
	}
	var seqs []uint32
	for _, s := range c.slots[:c.n] {
		for _, p := range s.pkts[:s.n] {
			if binary.BigEndian.Uint16(p[20:]) == 1 {
				seqs = append(seqs, binary.BigEndian.Uint32(p[24:]), uint32(len(p)-40))
			}
		}
	}
	require.Equal(t, []uint32{1000, 100, 1100, 0, 1100, 100}, seqs)
	// Without merging everything passes one by one.
	c.reset()
	c.add(a.build(false), false, false, false)
	c.add(a2.build(false), false, false, false)
	require.Equal(t, 2, c.n)
}
