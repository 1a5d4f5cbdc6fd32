package wggo

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/conn"
	"pgregory.net/rapid"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
)

// A peer leaves the device when it was idle, comes back with the next packet
// either way, and its counters go on. A pinned one stays.
func TestIdlePeer(t *testing.T) {
	const idle = 50 * time.Millisecond
	engines := map[protocol.NodeNumber]*Engine{}
	factory := func(c enginetest.Config) (engine.Engine, error) {
		e, err := New(Config{Number: c.Number, PrivateKey: c.PrivateKey, TUN: c.TUN, Carrier: c.Carrier, IdleAfter: c.IdleAfter, Log: c.Log, AnyDestination: c.AnyDestination})
		engines[c.Number] = e
		return e, err
	}
	net := enginetest.NewNetwork()
	x := enginetest.Start(t, net, factory, 2, enginetest.Key(t), idle)
	y := enginetest.Start(t, net, factory, 3, enginetest.Key(t), idle)
	hub := enginetest.Start(t, net, factory, 1, enginetest.Key(t), idle)
	require.NoError(t, y.Engine.SetPeers([]engine.Peer{x.Peer()}))
	require.NoError(t, hub.Engine.SetPeers([]engine.Peer{x.Peer()}))
	pinned := hub.Peer()
	pinned.Keepalive = 25 * time.Second
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{y.Peer(), pinned}))

	present := func(e *Engine, n protocol.NodeNumber) bool { return e.table.Load().byNumber[n].present.Load() }
	stats := func() engine.PeerStats { return x.Engine.Stats()[1] }
	assert.False(t, present(engines[2], 3), "a peer is made before anybody asked")
	// Run makes it, in a goroutine of its own.
	require.Eventually(t, func() bool { return present(engines[2], 1) }, 20*time.Second, time.Millisecond, "a pinned peer is not there")
	for i := range 3 {
		before := stats()
		if i%2 == 0 {
			x.Ping(y, x.Addr4(), y.Addr4()) // made by our packet here, by the handshake there
		} else {
			y.Ping(x, y.Addr6(), x.Addr6())
		}
		var after engine.PeerStats
		require.Eventually(t, func() bool { // what was sent is counted when it is on its way
			after = stats()
			return after.TxBytes > before.TxBytes && after.RxBytes > before.RxBytes
		}, 20*time.Second, time.Millisecond)
		require.Eventually(t, func() bool { return !present(engines[2], 3) && !present(engines[3], 2) }, 20*time.Second, time.Millisecond)
		gone := stats()
		assert.GreaterOrEqual(t, gone.TxBytes, after.TxBytes, "counters survive")
		assert.False(t, gone.LastHandshake.Before(after.LastHandshake))
	}
	assert.True(t, present(engines[2], 1), "a pinned peer was dropped")
}

type nullCarrier struct{}

func (nullCarrier) Send(protocol.NodeNumber, []byte, int) error { return nil }

// What needs no device.
func TestNew(t *testing.T) {
	good := Config{Number: 2, PrivateKey: enginetest.Key(t), TUN: enginetest.NewTUN(1420), Carrier: nullCarrier{}}
	_, err := New(good)
	require.NoError(t, err)
	for name, spoil := range map[string]func(*Config){
		"number":  func(c *Config) { c.Number = 0 },
		"key":     func(c *Config) { c.PrivateKey = protocol.WireGuardPrivateKey{} },
		"tun":     func(c *Config) { c.TUN = nil },
		"carrier": func(c *Config) { c.Carrier = nil },
		"idle":    func(c *Config) { c.IdleAfter = -1 },
	} {
		c := good
		spoil(&c)
		_, err := New(c)
		assert.Error(t, err, name)
	}
}

// lookup finds what a search through all prefixes finds.
func TestLookup(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.Custom(func(t *rapid.T) netip.Prefix {
			if rapid.Bool().Draw(t, "v6") {
				a := [16]byte{0: 0xfd, 15: rapid.Byte().Draw(t, "last"), 1: rapid.Byte().Draw(t, "second")}
				return netip.PrefixFrom(netip.AddrFrom16(a), rapid.IntRange(0, 128).Draw(t, "bits")).Masked()
			}
			a := [4]byte{10, rapid.Byte().Draw(t, "second"), 0, rapid.Byte().Draw(t, "last")}
			return netip.PrefixFrom(netip.AddrFrom4(a), rapid.IntRange(0, 32).Draw(t, "bits")).Masked()
		})
		peers := map[protocol.NodeNumber]*peer{}
		owner := map[netip.Prefix]*peer{}
		for i, p := range rapid.SliceOfDistinct(prefix, rapid.ID[netip.Prefix]).Draw(t, "prefixes") {
			n := protocol.NodeNumber(i%5 + 1)
			if peers[n] == nil {
				peers[n] = &peer{cfg: engine.Peer{Number: n}}
			}
			peers[n].cfg.AllowedIPs = append(peers[n].cfg.AllowedIPs, p)
			owner[p] = peers[n]
		}
		table := newTable(peers)
		dst := prefix.Draw(t, "destination").Addr()
		var want *peer
		best := -1
		for p, o := range owner {
			if p.Contains(dst) && p.Bits() > best {
				want, best = o, p.Bits()
			}
		}
		if got := table.lookup(dst); got != want {
			t.Fatalf("lookup(%s) = %v, want %v", dst, got, want)
		}
	})
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		sizes []int
		want  []int // messages in each group
	}{
		{[]int{100}, []int{1}},
		{[]int{100, 100, 100}, []int{3}},
		{[]int{100, 100, 50, 100}, []int{3, 1}},
		{[]int{50, 100}, []int{1, 1}},
		{[]int{100, 50, 50}, []int{2, 1}},
		{repeat(1452, 64), []int{45, 19}},
		{repeat(100, 128), []int{64, 64}},
		{[]int{65000, 600}, []int{1, 1}},
	} {
		bufs := make([][]byte, len(c.sizes))
		for i, s := range c.sizes {
			bufs[i] = make([]byte, s)
		}
		var got []int
		for len(bufs) > 0 {
			n := run(bufs)
			got = append(got, n)
			bufs = bufs[n:]
		}
		assert.Equal(t, c.want, got, "%v", c.sizes)
	}
}

func repeat(v, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = v
	}
	return out
}

// The queue is bounded: beyond its chunks it drops, counts, and never waits.
func TestQueueBounded(t *testing.T) {
	q := newQueue()
	ep := newEndpoint(7)
	q.push(ep, make([]byte, 100), 100)
	assert.Empty(t, q.full, "pushed while closed")
	recv := q.open()
	const size, each = 1452, 40
	fit := maxChunks * (chunkSize / (size * each)) * each
	for range maxChunks + 10 {
		q.push(ep, make([]byte, size*each), size)
	}
	assert.Equal(t, uint64(10*each), q.dropped.Load())
	packets, sizes, eps := make([][]byte, batchSize), make([]int, batchSize), make([]conn.Endpoint, batchSize)
	for i := range packets {
		packets[i] = make([]byte, 65535)
	}
	got := 0
	for got < fit {
		n, err := recv(packets, sizes, eps)
		require.NoError(t, err)
		for i := range n {
			require.Equal(t, size, sizes[i])
			require.Same(t, ep, eps[i])
		}
		got += n
	}
	q.close()
	_, err := recv(packets, sizes, eps)
	assert.Error(t, err)
	// What is too large or makes no sense is not taken.
	q.open()
	q.push(ep, make([]byte, chunkSize+1), 100)
	q.push(ep, make([]byte, 100), 0)
	q.push(ep, nil, 100)
	assert.Empty(t, q.full)
}

func TestParseCounters(t *testing.T) {
	key := func(b byte) (k protocol.WireGuardPublicKey) { k[0] = b; return k }
	line := func(k protocol.WireGuardPublicKey) string { return fmt.Sprintf("public_key=%x\n", k[:]) }
	got, err := parseCounters("private_key=00\nlisten_port=1\n" +
		line(key(1)) + "rx_bytes=5\ntx_bytes=6\nlast_handshake_time_sec=7\nlast_handshake_time_nsec=8\nallowed_ip=10.0.0.0/8\n" +
		line(key(2)) + "rx_bytes=0\ntx_bytes=0\nlast_handshake_time_sec=0\nlast_handshake_time_nsec=0\n")
	require.NoError(t, err)
	assert.Equal(t, map[protocol.WireGuardPublicKey]counters{
		key(1): {rx: 5, tx: 6, handshake: time.Unix(7, 8)}, key(2): {}}, got)
	for _, bad := range []string{"public_key=zz\n", "public_key=00\n", line(key(1)) + "rx_bytes=x\n"} {
		_, err := parseCounters(bad)
		assert.Error(t, err, bad)
	}
}

// Endpoints differ between peers in all that the device tells them apart by.
func TestEndpoint(t *testing.T) {
	a, b := newEndpoint(2), newEndpoint(3)
	assert.NotEqual(t, a.DstToBytes(), b.DstToBytes())
	assert.NotEqual(t, a.DstIP(), b.DstIP())
	assert.NotEqual(t, a.DstToString(), b.DstToString())
}
