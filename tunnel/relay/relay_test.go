package relay_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/relay"
	"causeway/tunnel/underlay"
)

func TestRelayedGroups(t *testing.T) {
	h, a, b := pair(t, false)
	for i, size := range []int{64, 80, 1452} {
		msg := transport(byte(i), 40, size)
		// The engine's buffer may be overwritten.
		require.NoError(t, a.Send(b.number, bytes.Clone(msg), size))
		eventually(t, "group through the relay", func() bool { return b.dev.has(a.number, msg) })
	}
	require.NoError(t, b.Send(a.number, transport(9, 1, 64), 64))
	eventually(t, "answer", func() bool { return a.dev.has(b.number, transport(9, 1, 64)) })
	require.Equal(t, protocol.PathRelay, a.path(b.number))

	s := h.Stats()
	require.Equal(t, 2, s.Bound)
	require.GreaterOrEqual(t, s.Datagrams, uint64(3*40+1))
	require.GreaterOrEqual(t, s.Bytes, uint64(39*1452))
	require.Empty(t, h.dev.all(), "nothing of it was for the hub")
	for _, g := range b.dev.all() {
		require.Equal(t, h.addr, g.from.Addr)
	}
}

func TestToTheHubAndBack(t *testing.T) {
	h, a, _ := pair(t, false)
	msg := transport(1, 8, 200)
	require.NoError(t, a.Send(hubNumber, bytes.Clone(msg), 200))
	eventually(t, "group for the hub", func() bool { return h.dev.has(a.number, msg) })
	require.NoError(t, h.Send(a.number, bytes.Clone(msg), 200))
	eventually(t, "group from the hub", func() bool { return a.dev.has(hubNumber, msg) })
	require.Equal(t, []netip.AddrPort{a.addr()}, h.Bound(a.number))
	select {
	case <-h.BoundChanged():
	default:
		t.Fatal("nobody was told of the binding")
	}
}

// Engines start beside what carries for them. What they begin with before the
// sockets are open is not lost: they would say it again after five seconds only.
func TestHandshakeBeforeRun(t *testing.T) {
	first := func(size int, of byte) []byte {
		b := bytes.Repeat([]byte{of}, size)
		copy(b, []byte{of, 0, 0, 0})
		return b
	}
	initiation, response := first(protocol.InitiationSize, byte(protocol.MessageInitiation)), first(protocol.ResponseSize, byte(protocol.MessageResponse))
	h := newHub(t)
	a := newNode(t, h, 2)
	a.bound()
	a.stop()
	h.stop()

	h.make(nil)
	require.NoError(t, h.Send(a.number, bytes.Clone(response), len(response)))
	require.ErrorIs(t, h.Send(a.number, transport(1, 1, 64), 64), underlay.ErrNotRunning)
	h.run()
	a.make(nil)
	require.NoError(t, a.Send(hubNumber, bytes.Clone(initiation), len(initiation)))
	require.ErrorIs(t, a.Send(hubNumber, transport(1, 1, 64), 64), underlay.ErrNotRunning)
	a.run()
	eventually(t, "the node's initiation at the hub", func() bool { return h.dev.has(a.number, initiation) })
	eventually(t, "the hub's response at the node", func() bool { return a.dev.has(hubNumber, response) })
}

func TestWithoutOffloads(t *testing.T) {
	h := newHub(t)
	h.stop()
	h.start(func(c *relay.Config) { c.NoOffload = true })
	a, b := newNode(t, h, 2), newNode(t, h, 3)
	a.stop()
	a.start(func(c *underlay.Config) { c.NoOffload = true })
	a.meet(b, false)
	b.meet(a, false)
	a.bound()
	b.bound()
	msg := transport(5, 30, 1300)
	require.NoError(t, a.Send(b.number, bytes.Clone(msg), 1300))
	eventually(t, "group", func() bool { return b.dev.has(a.number, msg) })
	require.NoError(t, b.Send(a.number, bytes.Clone(msg), 1300))
	eventually(t, "group", func() bool { return a.dev.has(b.number, msg) })
}

func TestForbiddenPair(t *testing.T) {
	h, a, b := pair(t, false)
	classes := relay.NewClasses(2)
	h.nodes[0].Class, h.nodes[1].Class = classes[0], classes[1]
	classes[0].Allow(classes[0])
	require.NoError(t, h.SetNodes(h.nodes))
	require.NoError(t, b.Send(a.number, transport(1, 1, 64), 64))
	require.NoError(t, a.Send(b.number, transport(1, 1, 64), 64))
	eventually(t, "counted", func() bool { return h.Stats().Dropped[relay.DropForbidden] >= 2 })
	require.Len(t, h.Bound(a.number), 1, "the binding stays")
	require.Empty(t, a.dev.all())
	require.Empty(t, b.dev.all())

	classes = relay.NewClasses(2)
	classes[0].Allow(classes[1])
	h.nodes[0].Class, h.nodes[1].Class = classes[0], classes[1]
	require.NoError(t, h.SetNodes(h.nodes))
	require.NoError(t, a.Send(b.number, transport(2, 1, 64), 64))
	eventually(t, "allowed", func() bool { return b.dev.has(a.number, transport(2, 1, 64)) })
}

func TestRemovedNodeIsUnboundAtOnce(t *testing.T) {
	h, a, b := pair(t, false)
	h.nodes = h.nodes[1:]
	require.NoError(t, h.SetNodes(h.nodes))
	require.Empty(t, h.Bound(a.number))
	require.NoError(t, a.Send(b.number, transport(1, 1, 64), 64))
	require.NoError(t, a.Send(hubNumber, transport(1, 1, 64), 64))
	eventually(t, "counted", func() bool { return h.Stats().Dropped[relay.DropUnbound] >= 2 })
	require.ErrorIs(t, h.Send(a.number, transport(1, 1, 64), 64), underlay.ErrUnknownPeer)
	require.NoError(t, b.Send(a.number, transport(1, 1, 64), 64))
	eventually(t, "counted", func() bool { return h.Stats().Dropped[relay.DropAddressee] >= 1 })
	require.Empty(t, h.dev.all())
	eventually(t, "the agent notices", func() bool { return !a.HubBound(hubNumber) })
}

// Whatever a stranger sends is dropped, counted and not answered.
func TestStranger(t *testing.T) {
	h, a, b := pair(t, false)
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(h.addr))
	require.NoError(t, err)
	defer c.Close()
	plain, named := transport(1, 1, 64), transport(1, 1, 64)
	protocol.SetMessageNumber(named, b.number)
	keys, err := protocol.NewProbeKeys(newKey(t), h.key.Public())
	require.NoError(t, err)
	q := protocol.Probe{Kind: protocol.ProbeHubQuestion, From: a.number, To: hubNumber, Nonce: 1, Boot: protocol.BootID{1}}
	for _, s := range []struct {
		b      []byte
		reason string
	}{
		{plain, relay.DropUnbound}, {named, relay.DropUnbound}, {[]byte("GET / HTTP/1.0\r\n\r\n"), relay.DropMalformed}, {[]byte{4}, relay.DropMalformed},
		{q.Append(nil, &keys.Send), "probe_unauthenticated"},
		{protocol.Probe{Kind: protocol.ProbeHubQuestion, From: 999, To: hubNumber}.Append(nil, &keys.Send), "probe_unknown_sender"},
		{protocol.Probe{Kind: protocol.ProbeQuestion, From: a.number, To: hubNumber}.Append(nil, &keys.Send), "probe_misaddressed"},
		{make([]byte, protocol.ProbeSize), relay.DropMalformed},
	} {
		before := h.Stats().Dropped[s.reason]
		_, err := c.Write(s.b)
		require.NoError(t, err)
		eventually(t, s.reason, func() bool { return h.Stats().Dropped[s.reason] > before })
	}
	require.NoError(t, c.SetReadDeadline(time.Now()))
	_, err = c.Read(make([]byte, 2000))
	require.Error(t, err, "a stranger got an answer")
	require.Empty(t, h.dev.all())
	require.Empty(t, b.dev.all())
}

// Nobody can speak in another's name: who sends is known by the address that a probe
// proved, and the relay writes the number. From ports beside the nodes' own, every kind of
// message with every number goes nowhere; what a node sends is its own.
func TestForgedSenders(t *testing.T) {
	h, a, b := pair(t, false)
	c := newNode(t, h, 0x030004)
	for _, x := range []*node{a, b} {
		c.meet(x, false)
		x.meet(c, false)
	}
	c.bound()
	nodes := []*node{a, b, c}
	numbers := []protocol.NodeNumber{0, hubNumber, 2, 0x010003, protocol.MaxNodeNumber}
	for _, x := range nodes {
		numbers = append(numbers, x.number)
	}
	var kinds [][]byte
	for kind, size := range map[byte]int{1: 148, 2: 92, 3: 64, 4: 80} {
		m := bytes.Repeat([]byte("forged"), size)[:size]
		copy(m, []byte{kind, 0, 0, 0})
		kinds = append(kinds, m)
	}
	before := h.Stats()
	forged := uint64(0)
	for range 5 { // addresses
		s, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(h.addr))
		require.NoError(t, err)
		defer s.Close()
		for _, m := range kinds {
			for _, n := range numbers {
				protocol.SetMessageNumber(m, n)
				_, err := s.Write(m)
				require.NoError(t, err)
				forged++
			}
		}
	}
	eventually(t, "all counted", func() bool { return h.Stats().Dropped[relay.DropUnbound]-before.Dropped[relay.DropUnbound] == forged })
	require.Equal(t, before.Datagrams, h.Stats().Datagrams)

	// In the name of each by each node that is bound.
	pairs := 0
	for i, x := range nodes {
		for _, y := range nodes {
			if x == y {
				continue
			}
			msg := transport(byte(10+i), 1, 100)
			require.NoError(t, x.Send(y.number, bytes.Clone(msg), 100))
			eventually(t, "delivered", func() bool { return y.dev.has(x.number, msg) })
			for _, z := range nodes {
				require.False(t, z != x && y.dev.has(z.number, msg), "what node %d sent is called node %d's", x.number, z.number)
			}
			pairs++
		}
	}
	for _, x := range []*device{h.dev, a.dev, b.dev, c.dev} {
		for _, g := range x.all() {
			require.NotContains(t, string(g.data), "forged")
		}
	}
	t.Logf("%d forged messages, 0 forwarded; %d pairs, each sender is who it is", forged, pairs)
}

func TestHubRestart(t *testing.T) {
	h, a, b := pair(t, false)
	h.stop()
	eventually(t, "missed", func() bool { return !a.HubBound(hubNumber) && !b.HubBound(hubNumber) })
	require.ErrorIs(t, a.Send(b.number, transport(1, 1, 64), 64), underlay.ErrNoPath)
	h.start(nil)
	a.bound() // how fast is shown in virtual time
	b.bound()
	eventually(t, "told of the restart", func() bool { return len(a.dev.restartedBy()) == 1 && len(b.dev.restartedBy()) == 1 })
	require.Equal(t, []protocol.NodeNumber{hubNumber}, a.dev.restartedBy())
	msg := transport(3, 3, 90)
	require.NoError(t, a.Send(b.number, bytes.Clone(msg), 90))
	eventually(t, "relayed again", func() bool { return b.dev.has(a.number, msg) })
}

func initiation(index uint32) []byte {
	b := make([]byte, protocol.InitiationSize)
	b[0] = 1
	binary.LittleEndian.PutUint32(b[4:], index)
	b[100] = byte(index)
	return b
}

func response(index, receiver uint32) []byte {
	b := make([]byte, protocol.ResponseSize)
	b[0] = 2
	binary.LittleEndian.PutUint32(b[4:], index)
	binary.LittleEndian.PutUint32(b[8:], receiver)
	return b
}

func TestAgentRestart(t *testing.T) {
	h, a, b := pair(t, false)
	require.NoError(t, a.Send(b.number, transport(1, 1, 100), 100))
	eventually(t, "met", func() bool { return b.dev.has(a.number, transport(1, 1, 100)) })
	eventually(t, "probed", func() bool { return a.path(b.number) == protocol.PathRelay && b.path(a.number) == protocol.PathRelay })
	// An initiation waits for the proof of the boot id, so b knows a's from here on.
	require.NoError(t, a.Send(b.number, initiation(1), protocol.InitiationSize))
	eventually(t, "initiation", func() bool { return b.dev.has(a.number, initiation(1)) })
	require.Empty(t, b.dev.restartedBy())

	a.stop()
	a.start(nil)
	a.bound()
	require.NoError(t, a.Send(b.number, initiation(2), protocol.InitiationSize))
	eventually(t, "initiation of the new run", func() bool { return b.dev.has(a.number, initiation(2)) })
	require.Equal(t, []protocol.NodeNumber{a.number}, b.dev.restartedBy(), "told before the initiation")
	require.Equal(t, []protocol.NodeNumber{a.number}, h.dev.restartedBy())
}

func TestHandshakeIsRepeatedUntilAnswered(t *testing.T) {
	h, a, b := pair(t, false)
	// b is away when a sends.
	b.stop()
	require.NoError(t, a.Send(b.number, initiation(5), protocol.InitiationSize))
	b.start(nil)
	b.bound()
	eventually(t, "repeated", func() bool { return b.dev.has(a.number, initiation(5)) })
	require.NoError(t, b.Send(a.number, response(6, 5), protocol.ResponseSize))
	eventually(t, "answered", func() bool { return a.dev.has(b.number, response(6, 5)) })
	confirm := transport(0, 2, 32)[:32]
	binary.LittleEndian.PutUint32(confirm[4:], 6)
	require.NoError(t, a.Send(b.number, bytes.Clone(confirm), 32))
	eventually(t, "confirmed", func() bool { return b.dev.has(a.number, confirm) })
	_ = h
}

// When initiations cross, only the lower number's is delivered.
func TestCrossedInitiations(t *testing.T) {
	_, a, b := pair(t, false)
	require.NoError(t, a.Send(b.number, initiation(1), protocol.InitiationSize))
	require.NoError(t, b.Send(a.number, initiation(2), protocol.InitiationSize))
	eventually(t, "the lower one's", func() bool { return b.dev.has(a.number, initiation(1)) })
	require.NoError(t, b.Send(a.number, response(3, 1), protocol.ResponseSize))
	eventually(t, "answer", func() bool { return a.dev.has(b.number, response(3, 1)) })
	require.False(t, a.dev.has(b.number, initiation(2)))
}

func TestDirectPath(t *testing.T) {
	h, a, b := pair(t, true)
	msg := transport(1, 4, 100)
	require.NoError(t, a.Send(b.number, bytes.Clone(msg), 100))
	eventually(t, "at once by relay", func() bool { return b.dev.has(a.number, msg) })

	a.peers[0].Candidates = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9"), b.addr()}
	require.NoError(t, a.SetPeers(a.peers))
	eventually(t, "a moves to direct", func() bool { return a.path(b.number) == protocol.PathDirect })
	// b has no candidate of a; a's question was one.
	eventually(t, "b moves to direct", func() bool { return b.path(a.number) == protocol.PathDirect })
	require.NoError(t, a.Send(b.number, bytes.Clone(msg), 100))
	eventually(t, "direct delivery", func() bool {
		all := b.dev.all()
		last := all[len(all)-1]
		return last.from == underlay.Source{Peer: a.number, Addr: a.addr()} && bytes.Equal(last.data, msg)
	})
	// Policy takes it away again, and the relay carries on.
	for _, x := range []*node{a, b} {
		x.peers[0].Direct = false
		require.NoError(t, x.SetPeers(x.peers))
		require.Equal(t, protocol.PathRelay, x.path(x.peers[0].Number))
	}
	b.dev.clear()
	require.NoError(t, a.Send(b.number, bytes.Clone(msg), 100))
	eventually(t, "relay again", func() bool { return b.dev.has(a.number, msg) })
	require.Equal(t, h.addr, b.dev.all()[0].from.Addr)
}

// The direct path goes away, as with a firewall: the relay has the traffic.
// That it takes no more than two seconds is shown in virtual time.
func TestDirectPathDies(t *testing.T) {
	_, a, b := pair(t, true)
	wall := newWall(t, b.addr())
	a.peers[0].Candidates = []netip.AddrPort{wall.addr}
	require.NoError(t, a.SetPeers(a.peers))
	require.NoError(t, a.Send(b.number, transport(1, 1, 100), 100))
	eventually(t, "direct", func() bool { return a.path(b.number) == protocol.PathDirect })
	wall.close()
	i := byte(0)
	eventually(t, "relayed", func() bool {
		i++
		msg := transport(i, 1, 100)
		if a.Send(b.number, msg, 100) != nil {
			return false
		}
		return a.path(b.number) == protocol.PathRelay
	})
}

func TestRunFailsOnABusyPort(t *testing.T) {
	h := newHub(t)
	r, err := relay.New(relay.Config{Self: 1, PrivateKey: h.key, BootID: newBoot(t), Listen: h.addr, NewReader: func() underlay.Receiver { return h.dev }})
	require.NoError(t, err)
	require.ErrorContains(t, r.Run(t.Context()), "the port is in use by another program")
}

func TestPlainMode(t *testing.T) {
	h := newHub(t)
	newPlain := func(n protocol.NodeNumber) *node {
		x := &node{host: host{t: t, key: newKey(t)}, number: n, hub: h}
		x.start(func(c *underlay.Config) { c.Plain = true })
		return x
	}
	a, b := newPlain(1001), newPlain(1002)
	a.SetPlainPeer(5, b.addr())
	for _, msg := range [][]byte{initiation(1), transport(1, 4, 300)} {
		require.NoError(t, a.Send(5, bytes.Clone(msg), min(300, len(msg))))
		eventually(t, "delivered", func() bool { return b.dev.has(0, msg) })
	}
	require.Equal(t, underlay.Source{Addr: a.addr(), Local: b.addr().Addr()}, b.dev.all()[0].from)
}
