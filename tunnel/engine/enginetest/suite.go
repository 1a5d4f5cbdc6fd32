package enginetest

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/underlay"
)

// Run tests engines: a is tested, b is at the other end. With the same factory
// twice it tests an engine, with two it tests that they speak one protocol.
func Run(t *testing.T, a, b Factory) {
	for _, c := range []struct {
		name string
		f    func(*testing.T, Factory, Factory)
	}{
		{"exchange", exchange},
		{"sizes", sizes},
		{"bulk", bulk},
		{"loss, copies, reordering", misbehaviour},
		{"handshake copies", handshakeCopies},
		{"corrupted messages", corrupted},
		{"wrong key", wrongKey},
		{"low-order key", lowOrderKey},
		{"longest prefix", longestPrefix},
		{"forged sources", forgedSources},
		{"foreign destinations", foreignDestinations},
		{"set peers refuses", setPeersRefuses},
		{"set peers before run", setPeersBeforeRun},
		{"set peers keeps sessions", setPeersKeepsSessions},
		{"prefix moves", prefixMoves},
		{"peer removed", peerRemoved},
		{"key changes", keyChanges},
		{"preshared key", presharedKey},
		{"restart", restart},
		{"reset", reset},
		{"initiations cross", initiationsCross},
		{"keepalive makes the session", keepalive},
		{"garbage", garbage},
		{"carrier fails", carrierFails},
		{"stop", stop},
		{"tun fails", tunFails},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(t, a, b) })
	}
}

func pair(t *testing.T, a, b Factory) (*Network, *Node, *Node) {
	t.Helper()
	net := NewNetwork()
	t.Cleanup(func() { assert.Empty(t, net.Faults(), "contract of engine.Carrier") })
	x, y := Start(t, net, a, 2, Key(t), 0), Start(t, net, b, 3, Key(t), 0)
	Join(t, x, y)
	return net, x, y
}

func exchange(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	x.Ping(y, x.Addr4(), y.Addr4())
	y.Ping(x, y.Addr4(), x.Addr4())
	x.Ping(y, x.Addr6(), y.Addr6())
	y.Ping(x, y.Addr6(), x.Addr6())
	s := x.stats(y.Number)
	assert.Positive(t, s.RxBytes)
	assert.Positive(t, s.TxBytes)
	assert.WithinDuration(t, time.Now(), s.LastHandshake, time.Minute)
}

// receive collects n payloads that begin with the sequence numbers of sendAll.
func receive(t *testing.T, y *Node, n int) (got []uint32) {
	t.Helper()
	deadline := time.After(patience)
	for len(got) < n {
		select {
		case p := <-y.TUN.Out:
			if b := Payload(p); len(b) >= 8 && string(b[:4]) == "seq " {
				got = append(got, binary.BigEndian.Uint32(b[4:]))
			}
		case <-deadline:
			require.FailNow(t, "packets missing", "%d of %d arrived", len(got), n)
		}
	}
	return got
}

func seqPayload(i, size int) []byte {
	b := binary.BigEndian.AppendUint32([]byte("seq "), uint32(i))
	for len(b) < size {
		b = append(b, byte(i))
	}
	return b
}

// sizes: every packet arrives whole and in order, whatever its size.
func sizes(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	x.Ping(y, x.Addr4(), y.Addr4())
	for size := 8; size <= MTU-20; size += 7 {
		x.Send(x.Addr4(), y.Addr4(), seqPayload(size, size))
		select {
		case p := <-y.TUN.Out:
			for string(Payload(p)[:4]) == "ping" {
				p = <-y.TUN.Out
			}
			require.Equal(t, Packet(x.Addr4(), y.Addr4(), seqPayload(size, size)), p)
		case <-time.After(patience):
			require.FailNow(t, "packet missing", "size %d", size)
		}
	}
}

// bulk: a full stream arrives in order. The end is sent again until it arrives,
// as packets may be lost where a queue is full.
func bulk(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	x.Ping(y, x.Addr4(), y.Addr4())
	const n = 20000
	arrived := make(chan struct{})
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		put := func(p []byte) bool {
			select {
			case x.TUN.In <- Packet(x.Addr4(), y.Addr4(), p):
				return true
			case <-arrived:
				return false
			}
		}
		for i := range n {
			size := 1400
			if i%17 == 0 {
				size = 100 // groups end here
			}
			put(seqPayload(i, size))
		}
		for put(seqPayload(n, 100)) {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-arrived:
			}
		}
	}()
	defer func() { <-sent }()
	defer close(arrived)
	last, count := -1, 0
	deadline := time.After(patience)
	for last < n {
		select {
		case p := <-y.TUN.Out:
			b := Payload(p)
			if string(b[:4]) != "seq " {
				continue
			}
			i := int(binary.BigEndian.Uint32(b[4:]))
			require.Greater(t, i, last, "order")
			last = i
			count++
		case <-deadline:
			require.FailNow(t, "transfer did not end", "at %d", last)
		}
	}
	assert.Greater(t, count, n/2)
}

// misbehaviour: on a bad network what arrives arrives once.
func misbehaviour(t *testing.T, a, b Factory) {
	net, x, y := pair(t, a, b)
	x.Ping(y, x.Addr4(), y.Addr4())
	r := rand.New(rand.NewPCG(1, 2))
	var held [][]byte
	net.SetHook(func(from, to protocol.NodeNumber, d []byte) [][]byte {
		switch v := r.IntN(100); {
		case v < 10:
			return nil
		case v < 20:
			return [][]byte{d, d}
		case v < 40:
			held = append(held, d)
			if len(held) < 20 {
				return nil
			}
			out := append([][]byte{d}, held...)
			held = nil
			return out
		default:
			return [][]byte{d}
		}
	})
	const n = 2000
	for i := range n {
		x.Send(x.Addr4(), y.Addr4(), seqPayload(i, 200))
	}
	seen := map[uint32]bool{}
	for _, i := range receive(t, y, n*8/10) {
		require.False(t, seen[i], "packet %d arrived twice", i)
		seen[i] = true
	}
}

// handshakeCopies: the underlay sends a handshake over every path and again
// until it is answered.
func handshakeCopies(t *testing.T, a, b Factory) {
	net, x, y := pair(t, a, b)
	net.SetHook(func(_, _ protocol.NodeNumber, d []byte) [][]byte {
		if d[0] != 4 {
			return [][]byte{d, d, d, d}
		}
		return [][]byte{d}
	})
	x.Ping(y, x.Addr4(), y.Addr4())
	y.Ping(x, y.Addr4(), x.Addr4())
}

// corrupted: of a message with one wrong bit, wherever it is, nothing arrives
// and no session suffers. Threat model: whoever is on the path.
func corrupted(t *testing.T, a, b Factory) {
	net, x, y := pair(t, a, b)
	r := rand.New(rand.NewPCG(5, 6))
	net.SetHook(func(_, _ protocol.NodeNumber, d []byte) [][]byte {
		bad := append([]byte(nil), d...)
		bit := r.IntN(8 * (len(bad) - 4))
		bad[4+bit/8] ^= 1 << (bit % 8) // behind the type
		return [][]byte{bad, d}
	})
	x.Ping(y, x.Addr4(), y.Addr4())
	const n = 500
	for i := range n {
		x.Send(x.Addr4(), y.Addr4(), seqPayload(i, 100+i))
	}
	seen := map[uint32]bool{}
	for len(seen) < n {
		select {
		case p := <-y.TUN.Out:
			if b := Payload(p); string(b[:4]) == "seq " {
				i := binary.BigEndian.Uint32(b[4:])
				require.False(t, seen[i], "packet %d arrived twice", i)
				require.Equal(t, Packet(x.Addr4(), y.Addr4(), seqPayload(int(i), 100+int(i))), p)
				seen[i] = true
			}
		case <-time.After(patience):
			require.FailNow(t, "packets missing", "%d of %d arrived", len(seen), n)
		}
	}
	y.Ping(x, y.Addr4(), x.Addr4())
}

// wrongKey: with another key for one side there is no session, whoever begins,
// and with the right one there is.
func wrongKey(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	p := y.Peer()
	p.Key = Key(t).Public()
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{p}))
	assert.False(t, x.reaches(y, x.Addr4(), y.Addr4(), time.Second, nil), "a session with a wrong key")
	assert.False(t, y.reaches(x, y.Addr4(), x.Addr4(), time.Second, nil), "a session with an unknown key")
	assert.Zero(t, x.stats(y.Number).LastHandshake)
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{y.Peer()}))
	x.Ping(y, x.Addr4(), y.Addr4())
}

// lowOrderKey: a peer whose key is a low-order point is sent nothing, and
// harms nobody.
func lowOrderKey(t *testing.T, a, b Factory) {
	net, x, y := pair(t, a, b)
	var got int
	net.SetHook(func(_, to protocol.NodeNumber, d []byte) [][]byte {
		if to == 9 {
			got++
		}
		return [][]byte{d}
	})
	net.Join(9)
	low := engine.Peer{Number: 9, Key: protocol.WireGuardPublicKey{1}, Keepalive: time.Second, AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}}
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{low, y.Peer()}))
	x.Send(x.Addr4(), netip.MustParseAddr("10.9.0.1"), []byte("nobody"))
	x.Ping(y, x.Addr4(), y.Addr4())
	net.SetHook(nil)
	assert.Zero(t, got, "messages to a peer whose key is a low-order point")
}

func longestPrefix(t *testing.T, a, b Factory) {
	net := NewNetwork()
	x, y, z := Start(t, net, a, 2, Key(t), 0), Start(t, net, b, 3, Key(t), 0), Start(t, net, b, 4, Key(t), 0)
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{y.Peer("10.0.0.0/8", "fd00::/8"), z.Peer("10.1.0.0/16", "fd00:1::/32")}))
	require.NoError(t, y.Engine.SetPeers([]engine.Peer{x.Peer()}))
	require.NoError(t, z.Engine.SetPeers([]engine.Peer{x.Peer()}))
	x.Ping(y, x.Addr4(), netip.MustParseAddr("10.2.0.1"))
	x.Ping(z, x.Addr4(), netip.MustParseAddr("10.1.0.1"))
	x.Ping(y, x.Addr6(), netip.MustParseAddr("fd00:2::1"))
	x.Ping(z, x.Addr6(), netip.MustParseAddr("fd00:1::1"))
}

func setPeersRefuses(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	x.Ping(y, x.Addr4(), y.Addr4())
	before := x.stats(y.Number)
	other := Key(t).Public()
	prefixes := func(s ...string) (out []netip.Prefix) {
		for _, p := range s {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	for name, peers := range map[string][]engine.Peer{
		"number twice":       {y.Peer(), {Number: y.Number, Key: other}},
		"key twice":          {y.Peer(), {Number: 9, Key: y.Key.Public()}},
		"prefix twice":       {y.Peer("10.0.0.0/8"), {Number: 9, Key: other, AllowedIPs: prefixes("10.0.0.0/8")}},
		"prefix twice, host": {y.Peer("10.0.0.0/8"), {Number: 9, Key: other, AllowedIPs: prefixes("10.1.2.3/8")}},
		"ipv6 prefix twice":  {y.Peer("fd00::/8"), {Number: 9, Key: other, AllowedIPs: prefixes("fd00::/8")}},
		"no number":          {{Number: 0, Key: other}},
		"number too large":   {{Number: protocol.MaxNodeNumber + 1, Key: other}},
		"no key":             {{Number: 9}},
		"own key":            {{Number: 9, Key: x.Key.Public()}},
		"invalid prefix":     {{Number: 9, Key: other, AllowedIPs: []netip.Prefix{{}}}},
		"mapped prefix":      {{Number: 9, Key: other, AllowedIPs: prefixes("::ffff:10.0.0.0/104")}},
		"negative keepalive": {{Number: 9, Key: other, Keepalive: -time.Second}},
		"odd keepalive":      {{Number: 9, Key: other, Keepalive: 1500 * time.Millisecond}},
		"long keepalive":     {{Number: 9, Key: other, Keepalive: 65536 * time.Second}},
	} {
		assert.Error(t, x.Engine.SetPeers(peers), name)
	}
	x.Ping(y, x.Addr4(), y.Addr4())
	assert.Equal(t, before.LastHandshake, x.stats(y.Number).LastHandshake, "refused peers cost the session")
	assert.Len(t, x.Engine.Stats(), 1)
}

func setPeersBeforeRun(t *testing.T, a, b Factory) {
	net := NewNetwork()
	y := Start(t, net, b, 3, Key(t), 0)
	key := Key(t)
	early := func(c Config) (engine.Engine, error) {
		e, err := a(c)
		if err == nil {
			err = e.SetPeers([]engine.Peer{y.Peer()})
		}
		return e, err
	}
	x := Start(t, net, early, 2, key, 0)
	require.NoError(t, y.Engine.SetPeers([]engine.Peer{x.Peer()}))
	x.Ping(y, x.Addr4(), y.Addr4())
}

func setPeersKeepsSessions(t *testing.T, a, b Factory) {
	net, x, y := pair(t, a, b)
	z := Start(t, net, b, 4, Key(t), 0)
	x.Ping(y, x.Addr4(), y.Addr4())
	before := x.stats(y.Number)
	require.NoError(t, z.Engine.SetPeers([]engine.Peer{x.Peer()}))
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{z.Peer(), y.Peer("10.5.0.0/16")}))
	x.Ping(y, x.Addr4(), netip.MustParseAddr("10.5.0.1"))
	x.Ping(z, x.Addr4(), z.Addr4())
	after := x.stats(y.Number)
	assert.Equal(t, before.LastHandshake, after.LastHandshake)
	assert.Greater(t, after.TxBytes, before.TxBytes)
}

func prefixMoves(t *testing.T, a, b Factory) {
	net, x, y := pair(t, a, b)
	z := Start(t, net, b, 4, Key(t), 0)
	require.NoError(t, z.Engine.SetPeers([]engine.Peer{x.Peer()}))
	dst := netip.MustParseAddr("10.6.0.1")
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{y.Peer("10.6.0.0/16"), z.Peer()}))
	x.Ping(y, x.Addr4(), dst)
	x.Ping(z, x.Addr4(), z.Addr4())
	// In both orders: what is set later must not depend on the peers' order.
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{z.Peer("10.6.0.0/16"), y.Peer()}))
	x.Ping(z, x.Addr4(), dst)
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{z.Peer(), y.Peer("10.6.0.0/16")}))
	x.Ping(y, x.Addr4(), dst)
}

func peerRemoved(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	x.Ping(y, x.Addr4(), y.Addr4())
	require.NoError(t, x.Engine.SetPeers(nil))
	assert.False(t, y.reaches(x, y.Addr4(), x.Addr4(), time.Second, nil), "a removed peer still gets through")
	assert.False(t, x.reaches(y, x.Addr4(), y.Addr4(), time.Second, nil), "a removed peer is still sent to")
	assert.Empty(t, x.Engine.Stats())
}

// keyChanges: a number with a new key is another peer.
func keyChanges(t *testing.T, a, b Factory) {
	net, x, y := pair(t, a, b)
	x.Ping(y, x.Addr4(), y.Addr4())
	require.NoError(t, y.Stop())
	y = Start(t, net, b, 3, Key(t), 0)
	require.NoError(t, y.Engine.SetPeers([]engine.Peer{x.Peer()}))
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{y.Peer()}))
	x.Ping(y, x.Addr4(), y.Addr4())
}

func presharedKey(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	psk := [32]byte(Key(t))
	set := func(k [32]byte) func(n, peer *Node) {
		return func(n, peer *Node) {
			p := peer.Peer()
			p.PresharedKey = k
			require.NoError(t, n.Engine.SetPeers([]engine.Peer{p}))
		}
	}
	set(psk)(x, y)
	assert.False(t, x.reaches(y, x.Addr4(), y.Addr4(), time.Second, nil), "a session without the preshared key")
	set(psk)(y, x)
	x.Ping(y, x.Addr4(), y.Addr4())
}

// restart: a peer that starts anew is back at once, whichever side speaks
// first, as its new boot id has the engine reset.
func restart(t *testing.T, a, b Factory) {
	for _, first := range []string{"survivor", "restarted"} {
		net, x, y := pair(t, a, b)
		x.Ping(y, x.Addr4(), y.Addr4())
		y.Ping(x, y.Addr4(), x.Addr4())
		require.NoError(t, y.Stop())
		y = Start(t, net, b, 3, y.Key, 0)
		require.NoError(t, y.Engine.SetPeers([]engine.Peer{x.Peer()}))
		x.Engine.ResetPeer(y.Number)
		began := time.Now()
		if first == "survivor" {
			x.Ping(y, x.Addr4(), y.Addr4())
		} else {
			y.Ping(x, y.Addr4(), x.Addr4())
		}
		assert.Less(t, time.Since(began), 4*time.Second, "%s speaks first: WireGuard's own retry was needed", first)
	}
}

func reset(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	x.Engine.ResetPeer(y.Number) // not used yet
	x.Engine.ResetPeer(99)       // no such peer
	x.Ping(y, x.Addr4(), y.Addr4())
	before := x.stats(y.Number)
	x.Engine.ResetPeer(y.Number)
	y.Engine.ResetPeer(x.Number)
	y.Ping(x, y.Addr4(), x.Addr4())
	x.Ping(y, x.Addr4(), y.Addr4())
	after := x.stats(y.Number)
	assert.Greater(t, after.TxBytes, before.TxBytes, "counters go on")
	assert.True(t, after.LastHandshake.After(before.LastHandshake), "a new session")
}

// initiationsCross: when both sides begin at once one session comes of it,
// without WireGuard's retry after 5 s.
func initiationsCross(t *testing.T, a, b Factory) {
	for range 5 {
		net := NewNetwork()
		x, y := Start(t, net, a, 2, Key(t), 0), Start(t, net, b, 3, Key(t), 0)
		// Initiations are held back until there is one each way.
		held := map[protocol.NodeNumber][]byte{}
		members := map[protocol.NodeNumber]*Member{2: net.members[2], 3: net.members[3]}
		net.SetHook(func(from, to protocol.NodeNumber, d []byte) [][]byte {
			if d[0] == 1 && len(held) < 2 {
				held[from] = d
				if len(held) == 2 {
					members[3].queue <- delivery{2, held[2], len(held[2])}
					members[2].queue <- delivery{3, held[3], len(held[3])}
				}
				return nil
			}
			return [][]byte{d}
		})
		Join(t, x, y)
		began := time.Now()
		x.Send(x.Addr4(), y.Addr4(), []byte("both at once"))
		y.Ping(x, y.Addr4(), x.Addr4())
		x.Ping(y, x.Addr4(), y.Addr4())
		assert.Less(t, time.Since(began), 4*time.Second, "WireGuard's own retry was needed")
	}
}

// keepalive: a peer with keepalives has a session without any traffic.
func keepalive(t *testing.T, a, b Factory) {
	net := NewNetwork()
	x, y := Start(t, net, a, 2, Key(t), 0), Start(t, net, b, 3, Key(t), 0)
	require.NoError(t, y.Engine.SetPeers([]engine.Peer{x.Peer()}))
	p := y.Peer()
	p.Keepalive = 25 * time.Second
	require.NoError(t, x.Engine.SetPeers([]engine.Peer{p}))
	require.Eventually(t, func() bool { return !x.stats(y.Number).LastHandshake.IsZero() }, patience, 5*time.Millisecond)
}

// garbage: what is no WireGuard message, or none of ours, changes nothing.
// Threat model: whoever can send to the node from an address of a peer.
func garbage(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	x.Ping(y, x.Addr4(), y.Addr4())
	r := rand.New(rand.NewPCG(3, 4))
	reader := x.Engine.NewReader()
	for i := range 5000 {
		buf := make([]byte, r.IntN(300))
		for j := range buf {
			buf[j] = byte(r.Uint32())
		}
		if len(buf) >= 4 {
			copy(buf, []byte{byte(i % 6), 0, 0, 0})
		}
		from := underlay.Source{Peer: []protocol.NodeNumber{0, y.Number, 77}[i%3]}
		reader.Receive(from, buf, []int{1, 7, 32, 148, 92, 1452, len(buf) + 1}[i%7])
		reader.Flush()
	}
	reader.Receive(underlay.Source{Peer: y.Number}, nil, 0)
	reader.Receive(underlay.Source{Peer: y.Number}, []byte{4}, 0)
	reader.Flush()
	x.Ping(y, x.Addr4(), y.Addr4())
	y.Ping(x, y.Addr4(), x.Addr4())
}

type failingCarrier struct{ engine.Carrier }

var errCarrier = errors.New("no path")

func (failingCarrier) Send(protocol.NodeNumber, []byte, int) error { return errCarrier }

// carrierFails: an engine whose underlay has no path goes on.
func carrierFails(t *testing.T, a, b Factory) {
	net := NewNetwork()
	broken := func(c Config) (engine.Engine, error) {
		c.Carrier = failingCarrier{}
		return a(c)
	}
	x, y := Start(t, net, broken, 2, Key(t), 0), Start(t, net, b, 3, Key(t), 0)
	Join(t, x, y)
	for range 2000 {
		x.Send(x.Addr4(), y.Addr4(), make([]byte, 1000))
	}
	require.Eventually(t, func() bool { return len(x.TUN.In) == 0 }, patience, time.Millisecond)
	require.NoError(t, x.Stop())
}

func stop(t *testing.T, a, b Factory) {
	_, x, y := pair(t, a, b)
	x.Ping(y, x.Addr4(), y.Addr4())
	halt := make(chan struct{})
	go func() { // traffic while it stops
		defer close(halt)
		for range 3000 {
			select {
			case x.TUN.In <- Packet(x.Addr4(), y.Addr4(), make([]byte, 1000)):
			default:
			}
		}
	}()
	require.NoError(t, x.Stop())
	<-halt
	assert.True(t, x.TUN.Closed(), "the tun device is left open")
	require.NoError(t, x.Engine.SetPeers(nil), "after Run")
	x.Engine.ResetPeer(y.Number)
	r := x.Engine.NewReader()
	r.Receive(underlay.Source{Peer: y.Number}, make([]byte, 148), 148)
	r.Flush()
}

func tunFails(t *testing.T, a, b Factory) {
	net := NewNetwork()
	x := Start(t, net, a, 2, Key(t), 0)
	broken := errors.New("device is gone")
	x.TUN.Fail(broken)
	select {
	case <-x.Ended:
		require.ErrorIs(t, x.Stop(), broken)
		assert.True(t, x.TUN.Closed())
	case <-time.After(patience):
		require.FailNow(t, "engine runs on without its tun device")
	}
}
