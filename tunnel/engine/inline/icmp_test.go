package inline

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

// keepSink is a TUN device that keeps what is written.
type keepSink struct{ got [][]byte }

func (k *keepSink) add(m []byte, _ bool) { k.got = append(k.got, bytes.Clone(m[headerSize:])) }
func (k *keepSink) flush()               {}

// A packet for nobody is answered by an ICMP error with whole checksums, from
// where it was sent to; what may not be answered is not.
func TestUnreachable(t *testing.T) {
	s := newStill(t, 2, Offloads{})
	s.cfg.Unreachable = true
	k := &keepSink{}
	s.tx.refusal.sink = k
	ask := func(p []byte) [][]byte {
		k.got, s.tx.refusal.last = nil, 0
		buf := make([]byte, readHead+len(p)+padding)
		copy(buf[readHead:], p)
		s.tx.packet(nil, buf, readHead, len(p))
		return k.got
	}
	for _, v6 := range []bool{false, true} {
		for _, payload := range []int{0, 100, 1400} {
			in := inner{v6: v6, udp: true, payload: payload}
			p := in.build(false)
			got := ask(p)
			require.Len(t, got, 1)
			q := got[0]
			if v6 {
				require.Equal(t, p[24:40], q[8:24])
				require.Equal(t, p[8:24], q[24:40])
				require.Equal(t, len(q)-minIPv6, int(binary.BigEndian.Uint16(q[4:])))
				icmp := q[minIPv6:]
				require.Equal(t, []byte{1, 3}, icmp[:2])
				require.Zero(t, ^fold(sum(icmp, pseudo(q, true, protoICMPv6, len(icmp)))))
				require.True(t, bytes.HasPrefix(p, icmp[8:]))
				require.LessOrEqual(t, len(q), refusalMax6)
			} else {
				require.Equal(t, p[16:20], q[12:16])
				require.Equal(t, p[12:16], q[16:20])
				require.Equal(t, len(q), int(binary.BigEndian.Uint16(q[2:])))
				require.Zero(t, ^fold(sum(q[:minIPv4], 0)))
				icmp := q[minIPv4:]
				require.Equal(t, []byte{3, 1}, icmp[:2])
				require.Zero(t, ^fold(sum(icmp, 0)))
				require.True(t, bytes.HasPrefix(p, icmp[8:]))
				require.LessOrEqual(t, len(q), refusalMax4)
			}
		}
	}
	four := func(change func(p []byte)) []byte {
		p := inner{udp: true, payload: 50}.build(false)
		change(p)
		return p
	}
	six := func(change func(p []byte)) []byte {
		p := inner{v6: true, udp: true, payload: 50}.build(false)
		change(p)
		return p
	}
	for name, p := range map[string][]byte{
		"multicast":               four(func(p []byte) { p[16] = 224 }),
		"from multicast":          four(func(p []byte) { p[12] = 239 }),
		"from nobody":             four(func(p []byte) { clear(p[12:16]) }),
		"later fragment":          four(func(p []byte) { p[7] = 1 }),
		"icmp error":              four(func(p []byte) { p[9], p[20] = protoICMP, 3 }),
		"header cut off":          four(func(p []byte) { p[0] = 0x4f })[:40],
		"header too short":        four(func(p []byte) { p[0] = 0x44 }),
		"icmp without a type":     four(func(p []byte) { p[9] = protoICMP })[:20],
		"ipv6 multicast":          six(func(p []byte) { p[24] = 0xff }),
		"from ipv6 multicast":     six(func(p []byte) { p[8] = 0xff }),
		"from nobody, ipv6":       six(func(p []byte) { clear(p[8:24]) }),
		"icmpv6 error":            six(func(p []byte) { p[6], p[40] = protoICMPv6, 1 }),
		"icmpv6 without its type": six(func(p []byte) { p[6] = protoICMPv6 })[:40],
	} {
		require.Empty(t, ask(p), name)
	}
	require.Len(t, ask(four(func(p []byte) { p[9], p[20] = protoICMP, 8 })), 1, "an echo may be answered")

	// Not faster than the bound.
	ask(inner{udp: true}.build(false))
	n := len(k.got)
	buf := make([]byte, 200)
	copy(buf[readHead:], inner{udp: true}.build(false))
	for range 1000 {
		s.tx.packet(nil, buf, readHead, 28)
	}
	require.Less(t, len(k.got)-n, 500)

	s.cfg.Unreachable = false
	require.Empty(t, ask(inner{udp: true}.build(false)))
}
