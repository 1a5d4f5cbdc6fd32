package probe

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

const streamed = protocol.PathStream

// streamWorld is a pair with traffic whose network passes streams; udp says
// what else it passes.
func streamWorld(t *testing.T, udp func(packet) bool) (*world, *simAgent, *simAgent) {
	w := newWorld(t, 2)
	w.withStreams = true
	w.lost = func(p packet) bool { return !protocol.IsStream(p.from) && !protocol.IsStream(p.to) && !udp(p) }
	for _, n := range w.numbers() {
		a := w.agent(n)
		a.noStream = false
		a.start()
		for _, m := range a.peers {
			a.busy[m.Number] = true
		}
	}
	return w, w.agent(10), w.agent(11)
}

func all(packet) bool { return true }
func no(packet) bool  { return false }

func TestStreamWhereNoUDPPasses(t *testing.T) {
	w, a, b := streamWorld(t, no)
	w.pass(streamAfter - 10*time.Millisecond)
	require.Zero(t, w.streams, "UDP gets its chance")
	w.pass(500 * time.Millisecond)
	for _, x := range []*simAgent{a, b} {
		require.Equal(t, streamed, x.kind(simHubNumber))
		require.Equal(t, Hop{Addr: simStream}, x.Route(simHubNumber).Hop.bare())
		require.Equal(t, []netip.AddrPort{x.stream}, w.hub.Bound(x.number))
		require.True(t, x.UDPBlocked(w.now))
	}
	require.Equal(t, streamed, a.kind(11))
	require.Equal(t, Hop{Addr: simStream, Number: 11}, a.Route(11).Hop.bare())
	require.Equal(t, Hop{Addr: simStream, Number: 11}, a.Route(11).Stream.bare())
	w.pass(5 * time.Minute)
	require.Equal(t, streamed, a.kind(11))
	require.Equal(t, uint64(2), w.streams, "one for each")
	for _, p := range w.log {
		if m, err := protocol.ParseProbe(p.data); err == nil && (protocol.IsStream(p.from) || protocol.IsStream(p.to)) {
			require.False(t, m.Observed.IsValid(), "a stream's address is nobody's business")
		}
	}
}

func TestNoStreamWhereUDPPasses(t *testing.T) {
	w, a, _ := streamWorld(t, all)
	w.pass(time.Minute)
	require.Zero(t, w.streams)
	require.Equal(t, relayed, a.kind(11))
	require.False(t, a.UDPBlocked(w.now))
}

func TestUDPBlockedInMidFlowAndBack(t *testing.T) {
	pass := true
	w, a, b := streamWorld(t, func(packet) bool { return pass })
	w.pass(10 * time.Second)
	require.Equal(t, relayed, a.kind(11))
	pass = false
	w.pass(1300 * time.Millisecond)
	for _, x := range []*simAgent{a, b} {
		require.Equal(t, streamed, x.kind(simHubNumber))
		require.Equal(t, x.stream, w.hub.Bound(x.number)[0], "the hub sends over it too")
	}
	require.Equal(t, streamed, a.kind(11))
	pass = true
	w.pass(time.Second)
	require.Equal(t, streamed, a.kind(11), "not back at the first answer")
	w.pass(4 * time.Second)
	require.Equal(t, relayed, a.kind(11))
	require.Equal(t, w.agent(10).addr, w.hub.Bound(10)[0])
	require.True(t, a.stream.IsValid(), "kept for a while")
	w.pass(streamKeep + 2*time.Second)
	require.False(t, a.stream.IsValid())
	require.Equal(t, []netip.AddrPort{a.addr}, w.hub.Bound(10))
}

// UDP that comes and goes leaves the traffic on the stream for longer and longer.
func TestStreamDoesNotFlap(t *testing.T) {
	on := true
	w, a, _ := streamWorld(t, func(packet) bool { return on })
	w.pass(5 * time.Second)
	switches, last := 0, a.kind(11)
	for i := range 40 {
		on = i%2 == 1
		w.pass(3 * time.Second)
		if k := a.kind(11); k != last {
			switches, last = switches+1, k
		}
	}
	require.Less(t, switches, 10)
}

// A stream alone that breaks is dialled again, and nothing else is lost.
func TestStreamThatBreaks(t *testing.T) {
	w, a, _ := streamWorld(t, no)
	w.pass(2 * time.Second)
	require.Equal(t, streamed, a.kind(11))
	var out Output
	a.stream = netip.AddrPort{}
	a.StreamDown(w.now, simStream, &out)
	a.took(&out)
	require.Equal(t, none, a.kind(11))
	require.Equal(t, Hop{}, a.Route(11).Stream.bare())
	w.pass(200 * time.Millisecond)
	require.Equal(t, streamed, a.kind(11))
	require.Equal(t, a.stream, w.hub.Bound(10)[0])
}

// What no UDP datagram could be sent over needs a stream beside UDP.
func TestStreamWhenNeeded(t *testing.T) {
	w, a, _ := streamWorld(t, all)
	w.pass(2 * time.Second)
	a.NeedStreams(w.now)
	a.next = w.now
	w.pass(time.Second)
	require.Equal(t, relayed, a.kind(11))
	require.Equal(t, Hop{Addr: simStream, Number: 11}, a.Route(11).Stream.bare())
	require.Equal(t, a.addr, w.hub.Bound(10)[0], "the hub does not move for it")
	w.pass(streamKeep + 2*time.Second)
	require.False(t, a.stream.IsValid())
}

// A cookie for a stream is none for a datagram that names its address.
func TestStreamCookie(t *testing.T) {
	w := newWorld(t, 1)
	s := protocol.StreamAddr(7)
	plain := netip.AddrPortFrom(s.Addr().WithZone(""), s.Port())
	require.True(t, protocol.IsStream(s))
	require.False(t, protocol.IsStream(plain))
	var secret [32]byte
	require.NotEqual(t, w.hub.cookie(&secret, s, 10, 1, 2), w.hub.cookie(&secret, plain, 10, 1, 2))
}
