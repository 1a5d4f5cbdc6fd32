package netmapcheck

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/internal/hijack"
	"causeway/netns"
	"causeway/protocol"
)

// A forged netmap, as from a hub that was taken over, gives a new node what is
// this host's own, what is another peer's and what nobody may have: nothing of it is
// taken, and the other peer keeps what it had. (A longer prefix inside another
// peer's is the hub's to give.)
func TestForgedNetmaps(t *testing.T) {
	own := []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("fd10:1:1::/64"), netip.MustParsePrefix("203.0.113.0/24")}
	victim := peer(3, "10.2.1.0/24", "fd10:2:1::/64")
	claims := hijack.Claims(10000, own...)
	for _, p := range victim.Prefixes() {
		claims[p] = "another peer's"
	}
	var foreign []netns.Foreign
	for _, o := range own {
		foreign = append(foreign, netns.Foreign{Prefix: o, Link: "pods", Direct: true})
	}
	accepted, around, batches, batch := 0, 0, 0, []netip.Prefix{}
	try := func() {
		attacker := peer(9)
		attacker.Routes, batch, batches = batch, nil, batches+1
		for _, p := range batch {
			if p.IsSingleIP() { // as an overlay address, too
				attacker.Overlay = append(attacker.Overlay, p.Addr())
			}
		}
		in := input(victim, attacker)
		in.Foreign, in.Accept = slices.SortedFunc(slices.Values(foreign), func(a, b netns.Foreign) int { return a.Prefix.Compare(b.Prefix) }), []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		res := Check(in)
		for _, p := range res.Peers {
			switch p.Number() {
			case 3:
				require.Equal(t, victim.Prefixes(), p.Prefixes())
			case 9:
				for _, r := range p.Routes {
					all, _ := Exceptions(Ground{Ranges: res.Routes, Routes: res.Routes, Foreign: foreign})
					for _, o := range own {
						if r.Overlaps(o) && (o.Bits() <= r.Bits() || !slices.ContainsFunc(all, func(x netns.Exception) bool { return x.Prefix == o })) {
							accepted++
						}
					}
					around++
				}
				for _, a := range p.Overlay {
					require.True(t, slices.Contains(peer(9).Overlay, a), a)
				}
			}
		}
	}
	for p := range claims {
		if batch = append(batch, p); len(batch) == protocol.MaxNodeRoutes {
			try()
		}
	}
	try()
	t.Logf("%d claims in %d forged netmaps: %d accepted, %d ranges around the host's own without it", len(claims), batches, accepted, around)
	require.Zero(t, accepted)
}
