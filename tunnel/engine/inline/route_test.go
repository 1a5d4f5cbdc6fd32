package inline

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func addrKey(a netip.Addr) (key, bool) {
	b := a.AsSlice()
	if a.Is4() {
		return key4(b), false
	}
	return key6(b), true
}

func (r *routes) of(a netip.Addr) *peer {
	k, v6 := addrKey(a)
	if v6 {
		return r.v6.lookup(k)
	}
	return r.v4.lookup(k)
}

func TestLongestPrefixWins(t *testing.T) {
	peers := map[string]*peer{}
	var r routes
	for _, s := range []string{"10.0.0.0/8", "0.0.0.0/0", "10.1.2.0/24", "10.1.2.3/32", "10.1.2.128/25", "fd00::/16", "fd00:1::/32", "fd00:1::7/128", "::/0"} {
		peers[s] = &peer{}
		r.insert(netip.MustParsePrefix(s), peers[s])
	}
	for a, want := range map[string]string{
		"10.1.2.3": "10.1.2.3/32", "10.1.2.4": "10.1.2.0/24", "10.1.2.200": "10.1.2.128/25", "10.9.9.9": "10.0.0.0/8",
		"11.0.0.1": "0.0.0.0/0", "fd00:1::7": "fd00:1::7/128", "fd00:1::8": "fd00:1::/32", "fd00:2::": "fd00::/16", "2001::1": "::/0",
	} {
		require.Same(t, peers[want], r.of(netip.MustParseAddr(a)), a)
	}
	require.Nil(t, (&routes{}).of(netip.MustParseAddr("1.2.3.4")))
}

// The trie agrees with looking at every prefix, however they are nested.
func TestRoutesAgreeWithLinearSearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "v6")
		addr := func(label string) netip.Addr {
			// Few distinct bits, so that prefixes nest and collide.
			v := rapid.Uint32Range(0, 255).Draw(t, label)
			if v6 {
				var b [16]byte
				binary.BigEndian.PutUint32(b[6:], v<<12)
				return netip.AddrFrom16(b)
			}
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], v<<20|v)
			return netip.AddrFrom4(b)
		}
		var r routes
		linear := map[netip.Prefix]*peer{}
		for range rapid.IntRange(0, 40).Draw(t, "n") {
			a := addr("prefix")
			p := netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
			linear[p] = &peer{}
			r.insert(p, linear[p])
		}
		for range 50 {
			a := addr("addr")
			var want *peer
			best := -1
			for p, to := range linear {
				if p.Contains(a) && p.Bits() > best {
					want, best = to, p.Bits()
				}
			}
			if got := r.of(a); got != want {
				t.Fatalf("%s: got %p, want %p", a, got, want)
			}
		}
	})
}
