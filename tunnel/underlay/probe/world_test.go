package probe

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// A thousand peers without traffic cost no probe, and no more waking than none.
func TestThousandIdlePeers(t *testing.T) {
	ticks := map[int]int{}
	for _, peers := range []int{0, 1000} {
		w := newWorld(t, 1)
		a := w.agent(10)
		for i := range peers {
			n := 100 + i
			a.peers = append(a.peers, Peer{Number: protocol.NodeNumber(n), Key: w.newKey().Public(), Direct: true,
				Candidates: []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("198.51.%d.%d:4000", 100+i/250, i%250))}})
		}
		a.candidates(0)
		w.pass(2 * time.Second)
		sent := len(w.log)
		a.ticks = 0
		w.pass(5 * time.Minute)
		ticks[peers] = a.ticks
		require.Zero(t, w.questions())
		require.LessOrEqual(t, len(w.log)-sent, 4*301, "the hub's four messages a second")
		for _, p := range a.Agent.peers {
			require.Empty(t, p.keys.list, "not even a key is derived")
		}
	}
	require.Equal(t, ticks[0], ticks[1000])
	require.LessOrEqual(t, ticks[0], 5*300, "a few a second")
}

// natted gives every agent a NAT that lets in only what was asked for from
// inside, and gives a socket one address for everybody.
func natted(w *world) func(packet) bool {
	type pair struct{ from, to netip.AddrPort }
	sent := map[pair]time.Time{}
	return func(p packet) bool {
		sent[pair{p.from, p.to}] = w.now
		at, ok := sent[pair{p.to, p.from}]
		return p.to != w.hub.addr && (!ok || w.now.Sub(at) > 30*time.Second)
	}
}

// Two sites behind endpoint-independent NATs meet at the addresses that the
// hub sees, and meet again when one mapping, or both, are others.
func TestTwoNATs(t *testing.T) {
	w := newWorld(t, 2)
	w.lost = natted(w)
	a, b := w.agent(10), w.agent(11)
	tell := func() { // as the hub does with a netmap when what it has bound changes
		w.pass(2 * time.Second)
		a.candidates(11, w.hub.Bound(11)[0])
		b.candidates(10, w.hub.Bound(10)[0])
	}
	tell()
	a.busy[11], a.next = true, w.now // from one side: the other follows its questions
	both := func() bool { return a.kind(11) == direct && b.kind(10) == direct }
	t.Log("direct after", w.until(t, 10*time.Second, both))
	b.busy[10] = true
	for i, change := range [][]*simAgent{{b}, {a}, {a, b}} {
		w.pass(time.Minute)
		for _, x := range change {
			x.addr = netip.AddrPortFrom(x.addr.Addr(), uint16(5000+i))
		}
		start := w.now
		tell()
		t.Log("direct again after", w.until(t, 10*time.Second, func() bool {
			return both() && a.Route(11).Hop.Addr == b.addr && b.Route(10).Hop.Addr == a.addr
		})+w.now.Sub(start))
	}
}

// The address of an interface is replaced: nobody has to be told.
func TestAddressReplaced(t *testing.T) {
	w, a, b := directPair(t)
	a.addr = netip.MustParseAddrPort("198.51.100.77:4000")
	took := w.until(t, 5*time.Second, func() bool {
		return a.kind(11) == direct && b.Route(10).Hop.Addr == a.addr
	})
	t.Log("followed after", took)
	require.Contains(t, b.Sources(), a.addr)
}

// No hub answers, and one of two sites starts anew behind a NAT that forgot it.
// Its pods only answer, so that it has to show itself before the other, which
// has traffic, gets through. What it asks thousands for that is little.
func TestStartWithoutHub(t *testing.T) {
	w := newWorld(t, 2)
	nat := natted(w)
	w.lost = func(p packet) bool { return p.to == w.hub.addr || nat(p) }
	a, b := w.agent(10), w.agent(11)
	a.candidates(11, b.addr)
	b.candidates(10, a.addr)
	a.busy[11], a.next = true, w.now
	t.Log("direct after", w.until(t, 2*time.Second, func() bool { return a.kind(11) == direct && b.kind(10) == direct }))
	w.pass(time.Minute)

	w.lost = func(p packet) bool { return p.to == w.hub.addr || nat(p) }
	nat = natted(w)
	b.start()
	b.candidates(10, a.addr)
	t.Log("direct again after", w.until(t, 2*time.Second, func() bool { return a.kind(11) == direct && b.kind(10) == direct }))
	require.Equal(t, []protocol.NodeNumber{11}, a.restarted)
}

func TestStartWithoutHubAsksOnce(t *testing.T) {
	w := newWorld(t, 1)
	w.lost = func(packet) bool { return true }
	a := w.agent(10)
	for i := range 1000 {
		a.peers = append(a.peers, Peer{Number: protocol.NodeNumber(100 + i), Key: w.newKey().Public(), Direct: true,
			Candidates: []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("198.51.%d.%d:4000", 100+i/250, i%250))}})
	}
	a.candidates(0)
	last, most := 0, 0
	for range 20 {
		w.pass(time.Second)
		most, last = max(most, w.questions()-last), w.questions()
	}
	t.Logf("%d questions, at most %d in a second", last, most)
	require.LessOrEqual(t, most, 500)
	asked := map[netip.AddrPort]bool{}
	for _, p := range w.log {
		asked[p.to] = true
	}
	require.Len(t, asked, 1001, "all and the hub")
	w.pass(10 * time.Minute)
	require.Equal(t, last, w.questions())
}
