package probe

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

const (
	relayed = protocol.PathRelay
	direct  = protocol.PathDirect
	none    = protocol.PathNone
)

func TestBoundWithinTwoRoundTrips(t *testing.T) {
	w := newWorld(t, 2)
	w.pass(4*w.delay + 2*time.Millisecond)
	for _, n := range w.numbers() {
		require.True(t, w.agent(n).HubAlive(w.now, simHubNumber))
		require.Equal(t, []netip.AddrPort{w.agent(n).addr}, w.hub.Bound(n))
		require.Equal(t, direct, w.agent(n).kind(simHubNumber))
		require.Equal(t, Hop{Addr: w.hub.addr}, w.agent(n).Route(simHubNumber).Hop.bare())
		require.Empty(t, w.agent(n).restarted)
	}
	w.pass(10 * time.Minute)
	require.Empty(t, w.hub.restarted)
	require.Len(t, w.hub.Bound(10), 1)
	require.Zero(t, w.questions(), "idle peers are not probed")
}

func TestRelayAtOnceThenDirect(t *testing.T) {
	w := newWorld(t, 2)
	w.pass(time.Second)
	a, b := w.agent(10), w.agent(11)
	require.Equal(t, relayed, a.kind(11), "the relay needs no probe first")
	require.Equal(t, Hop{Addr: w.hub.addr, Number: 11}, a.Route(11).Hop.bare())

	a.candidates(11, netip.MustParseAddrPort("203.0.113.9:9"), b.addr)
	a.busy[11] = true
	a.next = w.now
	w.pass(4 * w.delay)
	require.Equal(t, direct, a.kind(11))
	require.Equal(t, Hop{Addr: b.addr, Number: 10}, a.Route(11).Hop.bare(), "on a direct path the number is the sender's")
	require.Equal(t, 2*w.delay, a.Route(11).RTT)
	w.pass(4 * w.delay)
	require.Equal(t, direct, b.kind(10), "b found a by its question")
	require.Equal(t, protocol.NodeNumber(10), b.Sources()[a.addr])
	require.NotContains(t, a.Sources(), netip.MustParseAddrPort("203.0.113.9:9"), "a candidate is no source")
	require.Contains(t, bare(a.Route(11).Live), Hop{Addr: w.hub.addr, Number: 11}, "handshakes go over the relay too")

	delete(a.busy, 11)
	w.pass(activeFor + askedFor + time.Second)
	n := w.questions()
	w.pass(10 * time.Minute)
	require.Equal(t, n, w.questions(), "idle peers are not probed")
	require.Equal(t, relayed, a.kind(11), "nothing is known of an idle peer's direct path")
}

// directPair has traffic on a direct path both ways.
func directPair(t *testing.T) (w *world, a, b *simAgent) {
	w = newWorld(t, 2)
	a, b = w.agent(10), w.agent(11)
	a.candidates(11, b.addr)
	b.candidates(10, a.addr)
	a.busy[11], b.busy[10] = true, true
	w.pass(3 * time.Second)
	require.Equal(t, direct, a.kind(11))
	require.Equal(t, direct, b.kind(10))
	return w, a, b
}

func between(a, b *simAgent) func(packet) bool {
	return func(p packet) bool { return p.from == a.addr && p.to == b.addr || p.from == b.addr && p.to == a.addr }
}

func TestSilentPathIsLeftWithinTwoSeconds(t *testing.T) {
	w, a, b := directPair(t)
	w.lost = between(a, b)
	w.pass(2 * time.Second)
	require.Equal(t, relayed, a.kind(11))
	require.Equal(t, relayed, b.kind(10))
	w.lost = nil
	w.pass(10 * time.Second)
	require.Equal(t, direct, a.kind(11), "it comes back")
}

func TestOneWayLossIsALoss(t *testing.T) {
	w, a, b := directPair(t)
	w.lost = func(p packet) bool { return p.from == a.addr && p.to == b.addr }
	w.pass(2 * time.Second)
	require.Equal(t, relayed, a.kind(11))
	require.Equal(t, relayed, b.kind(10))
}

// A path that comes and goes is not taken up again each time.
func TestNoFlapping(t *testing.T) {
	w, a, b := directPair(t)
	switches, last := 0, a.kind(11)
	for i := range 60 { // a minute of three seconds good, three bad
		if i%6 < 3 {
			w.lost = nil
		} else {
			w.lost = between(a, b)
		}
		w.pass(time.Second)
		if k := a.kind(11); k != last {
			switches, last = switches+1, k
		}
	}
	require.Less(t, switches, 8)
}

func TestLightLossKeepsThePath(t *testing.T) {
	w, a, b := directPair(t)
	w.lost = func(p packet) bool { return between(a, b)(p) && w.rand()%100 < 2 }
	for range 120 {
		w.pass(time.Second)
		require.Equal(t, direct, a.kind(11))
	}
}

func TestHubRestartHealsWithinTwoSeconds(t *testing.T) {
	w, a, b := directPair(t)
	w.lost = func(p packet) bool { return p.to == w.hub.addr || p.from == w.hub.addr }
	w.pass(20 * time.Second)
	require.False(t, a.HubAlive(w.now, simHubNumber))
	require.Equal(t, none, a.kind(simHubNumber))
	require.Equal(t, direct, a.kind(11), "peers do not need the hub")
	w.startHub()
	w.lost = nil
	w.pass(1500 * time.Millisecond)
	for _, x := range []*simAgent{a, b} {
		require.True(t, x.HubAlive(w.now, simHubNumber))
		require.Equal(t, []protocol.NodeNumber{simHubNumber}, x.restarted)
		require.Equal(t, []netip.AddrPort{x.addr}, w.hub.Bound(x.number))
	}
}

func TestNewNATMappingIsBoundWithinTwoSeconds(t *testing.T) {
	w, a, b := directPair(t)
	old := a.addr
	a.addr = netip.MustParseAddrPort("198.51.100.200:7777")
	w.pass(2 * time.Second)
	require.Equal(t, a.addr, w.hub.Bound(10)[0])
	require.Empty(t, w.hub.restarted)
	w.pass(2 * time.Second)
	require.Equal(t, Hop{Addr: a.addr, Number: 11}, b.Route(10).Hop.bare(), "b followed to the new address")
	w.pass(BindingFor + time.Second)
	require.NotContains(t, w.hub.Bound(10), old)
}

func TestAgentRestartIsToldOnce(t *testing.T) {
	w, a, b := directPair(t)
	a.start()
	a.candidates(11, b.addr)
	a.busy[11] = true
	w.pass(2 * time.Second)
	require.Equal(t, []protocol.NodeNumber{10}, b.restarted)
	require.Equal(t, []protocol.NodeNumber{10}, w.hub.restarted)
	require.Empty(t, a.restarted, "the one that restarted knows nothing old")
	require.Equal(t, []netip.AddrPort{a.addr}, w.hub.Bound(10))
}

// An initiation is released by the answer to a question asked after it came.
func TestHold(t *testing.T) {
	w := newWorld(t, 2)
	w.pass(time.Second)
	a, b := w.agent(10), w.agent(11)
	a.Hold(w.now, 11, w.hub.addr, true)
	a.next = w.now
	w.pass(3 * w.delay)
	require.Empty(t, a.released)
	w.pass(2 * w.delay)
	require.Equal(t, []protocol.NodeNumber{11}, a.released)

	// b restarts between: the restart comes first.
	a.released = nil
	b.start()
	w.pass(100 * time.Millisecond)
	a.Hold(w.now, 11, w.hub.addr, true)
	var out Output
	a.Tick(w.now, &out)
	for _, s := range out.Sends {
		w.send(a.addr, s.To, s.Data)
	}
	w.pass(5 * w.delay)
	require.Equal(t, []protocol.NodeNumber{11}, a.restarted)
	require.Equal(t, []protocol.NodeNumber{11}, a.released)

	a.Hold(w.now, simHubNumber, w.hub.addr, true)
	a.next = w.now
	w.pass(5 * w.delay)
	require.Equal(t, []protocol.NodeNumber{11, simHubNumber}, a.released)
}

func TestNoMoreThanTwentyAnswersASecond(t *testing.T) {
	w := newWorld(t, 2)
	w.pass(time.Second)
	a, b := w.agent(10), w.agent(11)
	keys, err := protocol.NewProbeKeys(b.key, a.key.Public())
	require.NoError(t, err)
	hubKeys, err := protocol.NewProbeKeys(b.key, w.hub.key.Public())
	require.NoError(t, err)
	answers, challenges, limited := 0, 0, 0
	for i := range 1000 { // in one second
		now := w.now.Add(time.Duration(i) * time.Millisecond)
		q := protocol.Probe{Number: 11, Kind: protocol.ProbeQuestion, From: 11, To: 10, Boot: b.boot, Nonce: w.rand()}
		var out Output
		if a.Receive(now, w.hub.addr, q.Append(nil, &keys.Send), &out) == Limited {
			limited++
		}
		for _, s := range out.Sends {
			if m, _ := protocol.ParseProbe(s.Data); m.Kind == protocol.ProbeAnswer {
				answers++
			}
		}
		h := protocol.Probe{Kind: protocol.ProbeHubQuestion, From: 11, To: simHubNumber, Boot: b.boot, Nonce: w.rand()}
		out.Reset()
		w.hub.Receive(now, b.addr, netip.Addr{}, h.Append(nil, &hubKeys.Send), &out)
		challenges += len(out.Sends)
	}
	require.InDelta(t, 40, answers, 2, "a full bucket and a second's worth")
	require.InDelta(t, 40, challenges, 4)
	require.Equal(t, 1000-answers, limited)
}

func TestAnswersAreNoLongerThanQuestions(t *testing.T) {
	w, a, b := directPair(t)
	keys, err := protocol.NewProbeKeys(b.key, a.key.Public())
	require.NoError(t, err)
	for _, pad := range []uint16{0, 1, 1000} {
		q := protocol.Probe{Number: 11, Kind: protocol.ProbeQuestion, From: 11, To: 10, Boot: b.boot, Nonce: w.rand(), Padding: pad}.Append(nil, &keys.Send)
		var out Output
		require.Equal(t, OK, a.Receive(w.now, b.addr, q, &out))
		require.Len(t, out.Sends, 1)
		require.LessOrEqual(t, len(out.Sends[0].Data), len(q))
	}
}

func TestDirectForbidden(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.agent(10), w.agent(11)
	b.peers[0].Direct = false
	b.candidates(10, a.addr)
	a.candidates(11, b.addr)
	a.busy[11] = true
	a.next = w.now
	w.pass(5 * time.Second)
	require.Equal(t, relayed, a.kind(11), "b does not answer directly")
	require.Empty(t, b.Sources())
}

func TestRefusedSets(t *testing.T) {
	w := newWorld(t, 2)
	a := w.agent(10)
	var out Output
	k := w.newKey().Public()
	at := netip.MustParseAddrPort("192.0.2.1:1")
	require.Error(t, a.SetPeers(w.now, []Peer{{Number: 3, Key: k}, {Number: 3, Key: k}}, &out))
	require.Error(t, a.SetPeers(w.now, []Peer{{Number: 10, Key: k}}, &out))
	require.Error(t, a.SetPeers(w.now, []Peer{{Key: k}}, &out))
	require.Error(t, a.SetHubs(w.now, []Hub{{Number: 1, Key: k, Addrs: []netip.AddrPort{at, at}}}, &out))
	require.Error(t, a.SetHubs(w.now, []Hub{{Number: 1, Key: k}, {Number: 1, Key: k}}, &out))
	require.Error(t, w.hub.SetNodes(w.now, []Node{{Number: 1, Key: k}}, &out))
	require.Empty(t, out.Sends)
	require.Len(t, a.Agent.peers, 1, "nothing was changed")
}
