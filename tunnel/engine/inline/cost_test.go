//go:build linux

package inline

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/underlay"
)

// nowhere is a carrier that keeps the latest runs without allocating.
type nowhere struct {
	runs    [4][]byte
	segment [4]int
	n       int
}

func (n *nowhere) Send(_ protocol.NodeNumber, b []byte, segment int) error {
	i := n.n % len(n.runs)
	n.runs[i], n.segment[i] = append(n.runs[i][:0], b...), segment
	n.n++
	return nil
}

// dataPath prepares one super-packet from a to b.
func dataPath(t testing.TB, in inner, size int) (send func(), receive func()) {
	a, b := stillPair(t, Offloads{VNet: true, TSO: true, USO: true})
	c := &nowhere{}
	a.carrier = c
	p := in.build(true)
	copy(p[12:], []byte{10, 0, 0, 2, 10, 0, 0, 3})
	putIPv4Sum(p[:minIPv4])
	vnet := in.vnet(size)
	buf := readBuffer(p)
	send = func() {
		c.n = 0
		copy(buf[readHead:], p)
		a.tx.packet(vnet, buf, readHead, len(p))
		a.tx.flush()
	}
	send()
	receive = func() {
		for i := range c.n {
			b.r.Receive(underlay.Source{Peer: 2}, c.runs[i], c.segment[i])
		}
		b.r.Flush()
	}
	return send, receive
}

// The data path does not allocate, with or without segmentation.
func TestNoAllocations(t *testing.T) {
	for _, c := range []struct {
		in   inner
		size int
	}{{inner{flags: tcpACK, options: 12, payload: 47 * 1368}, 1368}, {shapes[0], 1368}, {inner{udp: true, payload: 200}, 0}, {shapes[2], 1372}} {
		send, receive := dataPath(t, c.in, c.size)
		receive()
		require.Zero(t, testing.AllocsPerRun(500, func() { send(); receive() }), "%+v", c.in)
	}
}

// BenchmarkSend and BenchmarkReceive are the cost of a 64 KB super-packet
// without the kernel.
func BenchmarkSend(b *testing.B) {
	in := inner{flags: tcpACK, options: 12, payload: 47 * 1368}
	send, _ := dataPath(b, in, 1368)
	b.SetBytes(int64(in.payload))
	b.ReportAllocs()
	for b.Loop() {
		send()
	}
}

// BenchmarkSmall is a packet of 200 bytes through lookup, seal and group.
func BenchmarkSmall(b *testing.B) {
	a, _ := stillPair(b, Offloads{VNet: true})
	a.carrier = &nowhere{}
	p := stillPacket(2, 3, 228)
	b.ReportAllocs()
	for b.Loop() {
		a.tx.packet(nil, p, readHead, 228)
	}
}

func BenchmarkReceive(b *testing.B) {
	in := inner{flags: tcpACK, options: 12, payload: 47 * 1368}
	send, receive := dataPath(b, in, 1368)
	b.SetBytes(int64(in.payload))
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		send()
		b.StartTimer()
		receive()
	}
}

// An idle peer costs at most 4 KB and no goroutine, with live sessions.
func TestIdlePeerIsCheap(t *testing.T) {
	const n = 100
	hub := newStill(t, 2, Offloads{VNet: true})
	heap := func() uint64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	base := heap()
	var peers []engine.Peer
	others := map[protocol.NodeNumber]*machine{}
	out := &side{t: t}
	for i := range protocol.NodeNumber(n) {
		k, err := protocol.NewWireGuardPrivateKey()
		require.NoError(t, err)
		m := newMachine(0, k, time.Now(), out, &counters{})
		m.add(newPeer(2, hub.public[0]), time.Now())
		others[i+10] = m
		peers = append(peers, engine.Peer{Number: i + 10, Key: k.Public(), AllowedIPs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32),
			netip.MustParsePrefix(fmt.Sprintf("fd00::%x/128", i+10))}})
	}
	goroutines, before := runtime.NumGoroutine(), heap()
	require.NoError(t, hub.SetPeers(peers))
	configured := heap()
	for range 2 { // so that there is a previous session, too
		for number, m := range others {
			p := hub.numbers[number]
			o := m.peers[hub.public[0]]
			o.lastHandshake, p.answeredAt = 0, 0
			m.initiate(o, time.Now(), false)
			hub.receive(number, out.take()...)
			hub.take()
			require.True(t, p.confirm(p.next.Load()))
			hub.events.push(p, eventConfirmed)
			hub.control()
		}
	}
	others, out = nil, nil
	hub.sent = nil
	end := heap()
	runtime.KeepAlive(hub)
	for _, p := range hub.numbers {
		require.NotNil(t, p.current.Load())
		require.NotNil(t, p.previous)
	}
	perPeer := (float64(end) - float64(base)) / n // with what the caller's slice takes
	t.Logf("a peer: configured %.0f bytes, with two sessions %.0f bytes", float64(configured-before)/n, perPeer)
	require.Less(t, perPeer, 4096.0)
	require.LessOrEqual(t, runtime.NumGoroutine(), goroutines)
}
