package engine

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func packetTo(a netip.Addr) []byte {
	if a.Is4() {
		p := make([]byte, 20)
		p[0] = 0x45
		copy(p[16:], a.AsSlice())
		return p
	}
	p := make([]byte, 40)
	p[0] = 0x60
	copy(p[24:], a.AsSlice())
	return p
}

// A Local holds what one of its prefixes holds.
func TestLocal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		addr := rapid.Custom(func(t *rapid.T) netip.Addr {
			low := rapid.SliceOfN(rapid.ByteRange(0, 3), 2, 2).Draw(t, "low")
			if rapid.Bool().Draw(t, "v6") {
				return netip.AddrFrom16([16]byte{0xfd, 7: low[0], 15: low[1]})
			}
			return netip.AddrFrom4([4]byte{10, low[0], 0, low[1]})
		})
		var prefixes []netip.Prefix
		for range rapid.IntRange(0, 40).Draw(t, "n") {
			a := addr.Draw(t, "prefix")
			prefixes = append(prefixes, netip.PrefixFrom(a, rapid.IntRange(1, a.BitLen()).Draw(t, "bits")).Masked())
		}
		l := NewLocal(prefixes)
		a := addr.Draw(t, "address")
		want := false
		for _, p := range prefixes {
			want = want || p.Contains(a)
		}
		if l.Holds(packetTo(a)) != want {
			t.Fatalf("%s in %v: not %v", a, prefixes, want)
		}
	})
	all := NewLocal([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")})
	for _, p := range [][]byte{nil, {0x45}, make([]byte, 40), packetTo(netip.MustParseAddr("::1"))[:39]} {
		require.False(t, all.Holds(p))
	}
	var none *Local
	require.False(t, none.Holds(packetTo(netip.MustParseAddr("10.0.0.1"))))
	require.Zero(t, testing.AllocsPerRun(100, func() { all.Holds(packetTo4) }))
}

var packetTo4 = packetTo(netip.MustParseAddr("10.0.0.1"))

// BenchmarkHolds is what the check costs for each packet.
func BenchmarkHolds(b *testing.B) {
	var many []netip.Prefix
	for i := range 256 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24))
	}
	for name, l := range map[string]*Local{"3 prefixes": NewLocal(append(many[:1:1], netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("198.18.0.2/32"))), "256 prefixes": NewLocal(many)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if !l.Holds(packetTo4) {
					b.Fatal("not held")
				}
			}
		})
	}
}
