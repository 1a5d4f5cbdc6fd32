package relay

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/protocol"
	"causeway/tunnel/underlay"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
)

type nobody struct{}

func (nobody) Receive(underlay.Source, []byte, int) {}
func (nobody) Flush()                               {}

// forwarder is a switchboard with bindings set by hand and a reader driven by
// the caller, so that what is measured is the path of a datagram alone.
func forwarder(t testing.TB, addressees int) (d *reader, from *sock.Conn, to []*sock.Conn, numbers []protocol.NodeNumber) {
	open := func() *sock.Conn {
		c, err := sock.Open(sock.Options{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	key, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	r, err := New(Config{Self: 1, PrivateKey: key, BootID: protocol.BootID{1}, Listen: netip.MustParseAddrPort("127.0.0.1:0"),
		NewReader: func() underlay.Receiver { return nobody{} }, Log: zerolog.Nop()})
	require.NoError(t, err)
	nodes := []Node{{Number: 2, Key: key.Public()}}
	for i := range addressees {
		n := protocol.NodeNumber(0x010000 + i)
		nodes, numbers = append(nodes, Node{Number: n, Key: key.Public()}), append(numbers, n)
	}
	require.NoError(t, r.SetNodes(nodes))
	bind := func(n protocol.NodeNumber, a netip.AddrPort) {
		e := (*r.nodes.Load())[n]
		e.bound.Store(&[]probe.Place{{To: a}})
		r.byAddr.set(a, &owner{entry: e})
	}
	from = open()
	bind(2, from.LocalAddr())
	for _, n := range numbers {
		c := open()
		bind(n, c.LocalAddr())
		to = append(to, c)
	}
	r.conn.Store(open())
	return r.newReader(nil, open()), from, to, numbers
}

// burst is n datagrams of the given size, to the addressees in turn, run at a time.
func burst(numbers []protocol.NodeNumber, n, size, run int) []byte {
	b := make([]byte, n*size)
	for i := range n {
		b[i*size] = byte(protocol.MessageTransport)
		protocol.SetMessageNumber(b[i*size:], numbers[i/run%len(numbers)])
	}
	return b
}

func TestForwardingAllocatesNothing(t *testing.T) {
	d, from, to, numbers := forwarder(t, 3)
	d.r.node, d.r.pair = newRate(Rate{Packets: 1e9}), newRate(Rate{Bytes: 1e12})
	data, nowhere := burst(numbers, 45, 1400, 5), burst([]protocol.NodeNumber{999}, 10, 200, 1)
	messages := []sock.Message{{From: from.LocalAddr(), Data: data, Segment: 1400}, {From: from.LocalAddr(), Data: nowhere, Segment: 200}}
	batch := sock.NewBatch()
	once := func() {
		for i := range 45 {
			protocol.SetMessageNumber(data[i*1400:], numbers[i/5%3])
		}
		d.batch(messages)
		for _, c := range to {
			if _, err := c.Read(batch); err != nil {
				t.Fatal(err)
			}
		}
	}
	once() // groups are made once
	require.Zero(t, testing.AllocsPerRun(100, once))
	require.Equal(t, uint64(102*45), d.r.datagrams.Load())
	require.Equal(t, uint64(102*45*1400), d.r.bytes.Load())
	require.Equal(t, map[string]uint64{DropAddressee: 102 * 10}, d.r.drops.Map())
}

// One datagram in is at most one out, whatever is in it.
func TestNoAmplification(t *testing.T) {
	d, from, to, numbers := forwarder(t, 2)
	data := burst(append(numbers, 0, 2, 999, protocol.MaxNodeNumber), 60, 200, 1)
	d.batch([]sock.Message{{From: from.LocalAddr(), Data: data, Segment: 200}, {From: to[0].LocalAddr(), Data: []byte{4, 0, 0, 1}, Segment: 4}})
	require.Equal(t, uint64(20), d.r.datagrams.Load())
	require.Equal(t, map[string]uint64{DropAddressee: 30, DropMalformed: 1}, d.r.drops.Map())
}

func BenchmarkForward(b *testing.B) {
	for _, c := range []struct{ addressees, run, size int }{{1, 45, 1400}, {8, 1, 1400}, {1, 45, 200}} {
		b.Run(fmt.Sprintf("%d to %d by %d", c.size, c.addressees, c.run), func(b *testing.B) {
			d, from, _, numbers := forwarder(b, c.addressees) // nobody reads: what does not fit, the kernel drops
			data := burst(numbers, 45, c.size, c.run)
			messages := []sock.Message{{From: from.LocalAddr(), Data: data, Segment: c.size}}
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			start := time.Now()
			for b.Loop() {
				for i := range 45 {
					protocol.SetMessageNumber(data[i*c.size:], numbers[i/c.run%len(numbers)])
				}
				d.batch(messages)
			}
			b.ReportMetric(float64(d.r.datagrams.Load())/time.Since(start).Seconds()/1000, "kpps")
		})
	}
}

// Whether a pair of 10,000 nodes may talk, a datagram each: what is looked at beside the addressee's entry.
func BenchmarkLargeAllows(b *testing.B) {
	key, err := protocol.NewWireGuardPrivateKey()
	require.NoError(b, err)
	r, err := New(Config{Self: 1, PrivateKey: key, BootID: protocol.BootID{1}, Listen: netip.MustParseAddrPort("127.0.0.1:0"),
		NewReader: func() underlay.Receiver { return nobody{} }, Log: zerolog.Nop()})
	require.NoError(b, err)
	const classCount = 500 // of segments, sites and labels
	classes := NewClasses(classCount)
	for i := range classes {
		for j := range classes[:i+1] {
			if (i+j)%3 != 0 {
				classes[i].Allow(classes[j])
			}
		}
	}
	var nodes []Node
	for n := range protocol.NodeNumber(10_000) {
		nodes = append(nodes, Node{Number: n + 2, Key: protocol.WireGuardPublicKey{byte(n), byte(n >> 8), 1}, Class: classes[int(n)%classCount]})
	}
	require.NoError(b, r.SetNodes(nodes))
	m := *r.nodes.Load()
	var entries []*entry
	for _, n := range nodes {
		entries = append(entries, m[n.Number])
	}
	var pairs [1024][2]*entry // of one burst of senders
	for i := range pairs {
		pairs[i] = [2]*entry{entries[i*7%10_000], entries[i*7919%10_000]}
	}
	allowed, before := 0, processor(b)
	for b.Loop() {
		for _, p := range pairs {
			if p[0].class.Allows(p[1].class) {
				allowed++
			}
		}
	}
	b.ReportMetric(float64(processor(b)-before)/float64(b.N*len(pairs)), "cpu-ns/datagram")
	b.ReportMetric(float64(classCount*len(classes[0].talks)*8+10_000*8), "bytes")
	require.NotZero(b, allowed)
}

// processor is the processor time of the process.
func processor(b *testing.B) time.Duration {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
