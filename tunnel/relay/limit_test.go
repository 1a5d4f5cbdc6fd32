package relay

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
	"causeway/tunnel/underlay/sock/socktest"
)

func TestPace(t *testing.T) {
	for name, r := range map[string]Rate{"packets": {Packets: 1000}, "bytes": {Bytes: 1_000_000}} {
		t.Run(name, func(t *testing.T) {
			rt := newRate(r)
			burst := 128 // of packets; 262 of 1,000 bytes
			if r.Bytes > 0 {
				burst = 262
			}
			var m meter
			passed := 0
			for ms := range int64(10_000) { // 5 offered each millisecond
				for range 5 {
					if m.take(&rt, ms*int64(time.Millisecond), 1000) {
						passed++
					}
				}
			}
			require.InDelta(t, 10_000+burst, passed, 3)
			// What was not used is kept up to the burst.
			now, n := int64(100*time.Second), 0
			for m.take(&rt, now, 1000) {
				n++
			}
			require.InDelta(t, burst, n, 1)
		})
	}
	var m meter
	none := newRate(Rate{})
	require.False(t, none.bounded())
	require.True(t, m.take(&none, 0, 1<<20))
}

// limited is forwarder with limits, and a reader on each of n loops.
func limited(t *testing.T, l Limits, n int) (ds []*reader, from *sock.Conn, numbers []protocol.NodeNumber) {
	d, from, _, numbers := forwarder(t, 2)
	d.r.node, d.r.pair = newRate(l.Node), newRate(l.Pair)
	ds = []*reader{d}
	for len(ds) < n {
		ds = append(ds, d.r.newReader(nil, d.data))
	}
	return ds, from, numbers
}

// A limit holds over all loops together.
func TestLimitsHoldOverLoops(t *testing.T) {
	const loops, batches = 4, 50
	for name, c := range map[string]struct {
		limits Limits
		reason string
		most   uint64 // bursts
	}{
		"node": {Limits{Node: Rate{Packets: 1}}, DropNode, burstPackets},
		"pair": {Limits{Pair: Rate{Bytes: 1}}, DropPair, 2 * burstBytes / 200},
	} {
		t.Run(name, func(t *testing.T) {
			ds, from, numbers := limited(t, c.limits, loops)
			var wg sync.WaitGroup
			for _, d := range ds {
				wg.Go(func() {
					for range batches {
						d.batch([]sock.Message{{From: from.LocalAddr(), Data: burst(numbers, 60, 200, 10), Segment: 200}})
					}
				})
			}
			wg.Wait()
			r := ds[0].r
			drops := r.drops.Map()
			require.InDelta(t, c.most, r.datagrams.Load(), 4)
			require.Equal(t, uint64(loops*batches*60), r.datagrams.Load()+drops[c.reason], "%v", drops)
		})
	}
}

// Control neither counts as data nor stops when data is over its limit; it has
// a bound of its own.
func TestControlPassesALimit(t *testing.T) {
	ds, from, numbers := limited(t, Limits{Node: Rate{Packets: 1}}, 1)
	d, r := ds[0], ds[0].r
	control := func(n int) sock.Message {
		b := make([]byte, n*protocol.InitiationSize)
		for o := 0; o < len(b); o += protocol.InitiationSize {
			b[o] = byte(protocol.MessageInitiation)
			protocol.SetMessageNumber(b[o:], numbers[0])
		}
		return sock.Message{From: from.LocalAddr(), Data: b, Segment: protocol.InitiationSize}
	}
	d.batch([]sock.Message{control(50)})
	for range 10 {
		d.batch([]sock.Message{{From: from.LocalAddr(), Data: burst(numbers, 50, 200, 1), Segment: 200}})
	}
	require.InDelta(t, 50+burstPackets, r.datagrams.Load(), 1)
	before := r.datagrams.Load()
	d.batch([]sock.Message{control(50)})
	require.Equal(t, before+50, r.datagrams.Load())
	for range 40 {
		d.batch([]sock.Message{control(50)})
	}
	require.Positive(t, r.drops.Map()[DropControl])
	require.Less(t, r.datagrams.Load(), before+1500)
}

// Meters outlive a change of nodes; those of pairs end with the other node.
func TestLimitsOutliveSetNodes(t *testing.T) {
	ds, from, numbers := limited(t, Limits{Pair: Rate{Packets: 1}}, 1)
	d, r := ds[0], ds[0].r
	for range 10 {
		d.batch([]sock.Message{{From: from.LocalAddr(), Data: burst(numbers[:1], 50, 200, 1), Segment: 200}})
	}
	m := (*r.nodes.Load())[2].meters
	require.Len(t, *m.pairs.Load(), 1)
	nodes := []Node{{Number: 2}, {Number: numbers[0]}, {Number: numbers[1]}}
	require.NoError(t, r.SetNodes(nodes))
	require.Same(t, m, (*r.nodes.Load())[2].meters)
	require.Len(t, *m.pairs.Load(), 1)
	require.NoError(t, r.SetNodes(nodes[:1]))
	require.Empty(t, *m.pairs.Load())
}

// Control that came behind data in a batch leaves before it.
func TestControlLeavesFirst(t *testing.T) {
	d, from, to, numbers := forwarder(t, 1)
	data := burst(numbers, 45, 1400, 1)
	late := make([]byte, protocol.InitiationSize)
	late[0] = byte(protocol.MessageInitiation)
	protocol.SetMessageNumber(late, numbers[0])
	at := from.LocalAddr()
	d.batch([]sock.Message{{From: at, Data: data, Segment: 1400}, {From: at, Data: burst(numbers, 5, 900, 1), Segment: 900}, {From: at, Data: late, Segment: len(late)}})
	var sizes []int
	b := sock.NewBatch()
	for n := 0; n < 51; {
		ms, err := to[0].Read(b)
		require.NoError(t, err)
		for _, m := range ms {
			sizes = append(sizes, m.Segment)
			n += (len(m.Data) + m.Segment - 1) / m.Segment
			require.Equal(t, protocol.NodeNumber(2), protocol.MessageNumber(m.Data))
		}
	}
	require.Equal(t, []int{protocol.InitiationSize, 1400, 900}, sizes)
}

// An interface that is slower than what comes: data is dropped at once and
// counted, and control is still sent.
func TestControlPassesAFullBuffer(t *testing.T) {
	d, from, to, numbers := forwarder(t, 1)
	var urgent, data, dst *sock.Conn
	socktest.InNamespace(t, func() {
		for _, c := range []**sock.Conn{&urgent, &data, &dst} {
			var err error
			if *c, err = sock.Open(sock.Options{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Buffer: 128 << 10}); err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { (*c).Close() })
		}
	}, "tc qdisc add dev lo root tbf rate 10mbit burst 70kb limit 20mb")
	_ = to
	d.data = data
	d.r.conn.Store(urgent)
	e := (*d.r.nodes.Load())[numbers[0]]
	bound := *e.bound.Load()
	bound[0].To = dst.LocalAddr()
	start := time.Now()
	for range 40 {
		d.batch([]sock.Message{{From: from.LocalAddr(), Data: burst(numbers, 45, 1400, 1), Segment: 1400}})
	}
	full := d.r.drops.Map()[DropFull]
	require.Greater(t, full, uint64(20*45), "2.5 MB are more than the buffer holds")
	require.Less(t, time.Since(start), 500*time.Millisecond, "the loop does not wait for room")

	late := make([]byte, protocol.InitiationSize)
	late[0] = byte(protocol.MessageInitiation)
	protocol.SetMessageNumber(late, numbers[0])
	d.batch([]sock.Message{{From: from.LocalAddr(), Data: late, Segment: len(late)}})
	require.Equal(t, full, d.r.drops.Map()[DropFull])
	b := sock.NewBatch()
	for {
		ms, err := dst.Read(b)
		require.NoError(t, err)
		for _, m := range ms {
			if protocol.ClassifyMessage(m.Data) == protocol.MessageInitiation {
				return
			}
		}
	}
}

// What is for the hub itself has a bound for each node, since the hub's device holds much for each
// datagram; what the node sends to others is not meant by it.
func TestHubsOwnShareIsBounded(t *testing.T) {
	ds, from, numbers := limited(t, Limits{}, 1)
	d, r := ds[0], ds[0].r
	own := burst([]protocol.NodeNumber{0}, 50, 200, 1)
	for range 40 {
		d.batch([]sock.Message{{From: from.LocalAddr(), Data: own, Segment: 200}})
	}
	dropped := r.drops.Map()[DropHub]
	require.Greater(t, dropped, uint64(2000-1500))
	require.Less(t, dropped, uint64(2000-400), "what an agent sends at once passes")
	d.batch([]sock.Message{{From: from.LocalAddr(), Data: burst(numbers, 50, 200, 1), Segment: 200}})
	require.InDelta(t, 50, r.datagrams.Load(), 1)
}
