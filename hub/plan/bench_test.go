package plan

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// large is a state of 10,000 nodes, and the netmaps of it: all are online, with an address.
func large(b *testing.B) (*cluster, map[protocol.NodeNumber]Live, *Netmaps) {
	c := &cluster{b, statetest.Large(b)}
	live := map[protocol.NodeNumber]Live{}
	for _, n := range c.d.LiveNodes() {
		a := netip.AddrFrom4([4]byte{192, 0, byte(n.Number >> 8), byte(n.Number)})
		live[n.Number] = Live{Online: true, Candidates: []netip.AddrPort{netip.AddrPortFrom(a, 51820)}}
	}
	for i := range 300 {
		limit(c, fmt.Sprintf("site-%03d", i), fmt.Sprintf(`{"site":"site-%03d","packets":1000}`, i))
		limit(c, fmt.Sprintf("node-%03d", i), fmt.Sprintf(`{"node":"n%d","packets":1000}`, 100+i))
	}
	return c, live, Compute(c.d.State, live, nil, nil, nil)
}

// One node of 10,000 gets another address: what the hub computes once, and whether anything is new.
func BenchmarkLargeCompute(b *testing.B) {
	c, live, v := large(b)
	port := uint16(0)
	b.ReportAllocs()
	done := statetest.Processor(b)
	for b.Loop() {
		port++
		c.d.Seq++
		live[2] = Live{Online: true, Candidates: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)}}
		w := Compute(c.d.State, live, nil, nil, v)
		require.False(b, w.SameAs(v))
		v = w
	}
	done()
}

// One route of 30,000 is rejected or approved again.
func BenchmarkLargeRoute(b *testing.B) {
	c, live, v := large(b)
	on := false
	b.ReportAllocs()
	done := statetest.Processor(b)
	for b.Loop() {
		b.StopTimer()
		require.NoError(b, state.DecideRoute(c.d, "n607", pfx("10.3.134.0/24"), on, "olga"))
		c.d.Seq++
		on = !on
		b.StartTimer()
		w := Compute(c.d.State, live, nil, nil, v)
		require.False(b, w.SameAs(v))
		v = w
	}
	done()
}

// What each of 10,000 agents is sent when one node gets another address.
func BenchmarkLargeChange(b *testing.B) {
	c, live, v := large(b)
	live[2] = Live{Online: true, Candidates: []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 1)}}
	c.d.Seq++
	w := Compute(c.d.State, live, nil, nil, v)
	b.ReportAllocs()
	done := statetest.Processor(b)
	for b.Loop() {
		for n := range protocol.NodeNumber(statetest.LargeNodes) {
			if _, changed := w.Change(v, n+2, v.Version, w.Version); changed != (n != 0) {
				b.Fatal(n)
			}
		}
	}
	done()
}

// What each of 10,000 agents is sent when what they all are told of changes, as it is written.
func BenchmarkLargeItem(b *testing.B) {
	c, live, v := large(b)
	limit(c, "each", `{"node":"*","packets":1000,"bytes":12500000}`)
	c.d.Seq++
	w := Compute(c.d.State, live, nil, nil, v)
	b.ReportAllocs()
	done := statetest.Processor(b)
	for b.Loop() {
		for n := range protocol.NodeNumber(statetest.LargeNodes) {
			u, changed := w.Change(v, n+2, v.Version, w.Version)
			parts, err := u.Parts()
			if !changed || err != nil || len(parts) == 0 {
				b.Fatal(n, err)
			}
		}
	}
	done()
}
