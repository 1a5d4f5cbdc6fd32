package probe

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// bare is where h leads, without what counts there.
func (h Hop) bare() Hop { return Hop{Addr: h.Addr, Number: h.Number} }

func bare(l []Hop) (out []Hop) {
	for _, h := range l {
		out = append(out, h.bare())
	}
	return out
}

func (h *simHub) tally(n protocol.NodeNumber, at netip.AddrPort) *Tally {
	for _, p := range h.Places(n) {
		if p.To == at {
			return p.Tally
		}
	}
	return nil
}

// arrived counts a message of WireGuard's as the underlay does.
func (a *simAgent) arrived(from netip.AddrPort, kind protocol.MessageType, b []byte) {
	a.Arrivals()[from].Received(kind, len(b), len(b))
	if h := a.hubOf[from]; h != nil {
		if p := a.Agent.peers[protocol.MessageNumber(b)]; p != nil {
			for _, r := range a.Route(p.Number).Relays {
				if r.Hub == h.Number {
					r.Tally.Received(kind, len(b), len(b))
				}
			}
		}
	}
}

// message sends one message of WireGuard's, as the underlay does: handshakes over every live path.
func (a *simAgent) message(n protocol.NodeNumber, kind protocol.MessageType, size int) {
	r := a.Route(n)
	hops := []Hop{r.Hop}
	if kind != protocol.MessageTransport {
		hops = r.Live
	}
	for _, h := range hops {
		if !h.Addr.IsValid() {
			continue
		}
		d := make([]byte, size)
		d[0] = byte(kind)
		protocol.SetMessageNumber(d, h.Number)
		h.Sent(kind, size, size)
		switch {
		case h.Addr != simStream:
			a.w.send(a.addr, h.Addr, d)
		case a.stream.IsValid():
			a.w.send(a.stream, a.w.hub.addr, d)
		}
	}
}

// every has do happen again and again.
func (w *world) every(d time.Duration, do func()) {
	var again func()
	again = func() { do(); w.later(d, again) }
	w.later(d, again)
}

func isProbe(p packet) bool { return protocol.MessageType(p.data[0]) == protocol.MessageProbe }

// What filters on the way do to WireGuard's messages, and not to probes.
var dataFates = []struct {
	name string
	size int // of what is sent, each way, 5 a second
	lost func(p packet, a, b *simAgent) bool
}{
	{"over 60 bytes", 96, func(p packet, a, b *simAgent) bool { return len(p.data) > 60 && (p.to == a.addr || p.to == b.addr) }},
	{"over 1000 bytes", 1452, func(p packet, a, b *simAgent) bool {
		return len(p.data) > 1000 && (p.to == a.addr || p.to == b.addr)
	}},
	{"one direction", 600, func(p packet, a, b *simAgent) bool { return p.to == b.addr }},
	{"all of it", 200, func(p packet, a, b *simAgent) bool { return p.to == a.addr || p.to == b.addr }},
}

// A direct path that carries probes and no data is left within two seconds, for good as far
// as it matters: it is tried again, more and more seldom.
func TestDirectPathWithoutData(t *testing.T) {
	for _, c := range dataFates {
		t.Run(c.name, func(t *testing.T) {
			w, a, b := directPair(t)
			w.every(200*time.Millisecond, func() {
				a.message(11, protocol.MessageTransport, c.size)
				b.message(10, protocol.MessageTransport, c.size)
				a.message(11, protocol.MessageTransport, 32) // a keepalive, or what else is small
			})
			w.pass(10 * time.Second)
			require.Equal(t, direct, a.kind(11))
			require.Equal(t, direct, b.kind(10))
			w.lost = func(p packet) bool {
				return p.from != w.hub.addr && !isProbe(p) && c.lost(p, a, b)
			}
			took := w.until(t, 5*time.Second, func() bool { return a.kind(11) == relayed && b.kind(10) == relayed })
			t.Log("left after", took, a.Suspects(w.now))
			require.Len(t, a.Suspects(w.now), 1)
			before := a.moves
			if c.size != 96 && os.Getenv("CAUSEWAY_SOAK") == "" {
				return
			}
			for range 5 {
				w.pass(time.Minute)
			}
			t.Log("moves in five minutes:", a.moves-before)
			require.Greater(t, a.moves-before, 1, "it is tried again")
			require.Less(t, a.moves-before, 8, "and more and more seldom")
			w.lost = nil
			w.until(t, 10*time.Minute, func() bool { return a.kind(11) == direct && b.kind(10) == direct })
		})
	}
}

// TCP sends hardly anything where nothing arrives: a burst, of which some still got through, and then
// again and again what was lost, with longer and longer pauses, in packets of different sizes. The other end
// sends nothing but answers. Both leave the path before TCP has waited for long.
func TestPathWithoutDataUnderTCP(t *testing.T) {
	w, a, b := directPair(t)
	w.pass(10 * time.Second)
	burst := func() {
		for range 20 {
			a.message(11, protocol.MessageTransport, 1452)
		}
		for _, size := range []int{96, 500, 500} {
			a.message(11, protocol.MessageTransport, size)
		}
		b.message(10, protocol.MessageTransport, 96)
	}
	for range 10 {
		burst()
		w.pass(100 * time.Millisecond)
	}
	require.Equal(t, direct, a.kind(11))
	burst()
	w.lost = func(p packet) bool { return p.from != w.hub.addr && !isProbe(p) && (p.to == a.addr || p.to == b.addr) }
	burst()
	var again func(time.Duration)
	again = func(pause time.Duration) {
		w.later(pause, func() {
			a.message(11, protocol.MessageTransport, 1452)
			a.message(11, protocol.MessageTransport, 96)
			again(2 * pause)
		})
	}
	again(200 * time.Millisecond)
	took := w.until(t, 2*time.Second, func() bool { return a.kind(11) == relayed && b.kind(10) == relayed })
	t.Log("left after", took, a.Suspects(w.now), b.why(w.now, b.Agent.peers[10]))
	require.Contains(t, b.why(w.now, b.Agent.peers[10]), "the other end says")
	w.lost = nil
	w.until(t, time.Minute, func() bool { return a.kind(11) == direct && b.kind(10) == direct })
}

// The hub's UDP address answers probes and takes no first message, or gives none back: the
// stream is dialled and used.
func TestHubPathWithoutData(t *testing.T) {
	for name, lost := range map[string]func(w *world, p packet) bool{
		"first message": func(w *world, p packet) bool { return p.data[0] == 1 },
		"the answer":    func(w *world, p packet) bool { return p.data[0] == 2 },
		"large, to it":  func(w *world, p packet) bool { return len(p.data) > 1000 && p.to == w.hub.addr },
		"large, of it":  func(w *world, p packet) bool { return len(p.data) > 1000 && p.from == w.hub.addr },
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := streamWorld(t, all)
			streams := func(p packet) bool { return protocol.IsStream(p.from) || protocol.IsStream(p.to) }
			w.every(250*time.Millisecond, func() {
				a.message(simHubNumber, protocol.MessageInitiation, protocol.InitiationSize)
				if to := w.hub.Places(10); len(to) > 0 {
					d := make([]byte, protocol.ResponseSize)
					d[0] = 2
					for _, p := range to {
						p.Tally.Sent(protocol.MessageResponse, len(d), len(d))
						w.send(w.hub.addr, p.To, d)
					}
				}
				b.message(10, protocol.MessageTransport, 1452)
				a.message(11, protocol.MessageTransport, 1452)
			})
			w.pass(5 * time.Second)
			require.Equal(t, direct, a.kind(simHubNumber))
			require.Zero(t, a.dialled)
			w.lost = func(p packet) bool { return !isProbe(p) && !streams(p) && lost(w, p) }
			took := w.until(t, 5*time.Second, func() bool { return a.kind(simHubNumber) == protocol.PathStream })
			t.Log("stream after", took, a.Suspects(w.now))
			require.NotEmpty(t, a.Suspects(w.now))
			if strings.Contains(name, "message") || strings.Contains(name, "answer") {
				w.pass(2 * time.Minute)
				require.Equal(t, protocol.PathStream, a.kind(simHubNumber), "until a handshake has passed")
			}
			w.lost = nil
			t.Log("UDP again after", w.until(t, 3*time.Minute, func() bool { return a.kind(simHubNumber) == direct }))
		})
	}
}

// What is larger than any path goes over the hub's stream and may be lost behind the hub: the relay's
// path is not accused of that, and still is of what it loses of its own.
func TestLargerThanThePath(t *testing.T) {
	w, a, b := streamWorld(t, all)
	a.message(11, protocol.MessageTransport, 1452)
	w.pass(5 * time.Second)
	a.NeedStreams(w.now)
	w.until(t, 5*time.Second, func() bool { return a.Route(11).Stream.Addr.IsValid() })
	w.every(50*time.Millisecond, func() {
		a.message(11, protocol.MessageTransport, 200)
		b.message(10, protocol.MessageTransport, 200)
	})
	lose := func() {
		for range 5 {
			a.NeedStreams(w.now)
			a.Route(11).Stream.Sent(protocol.MessageTransport, 5*9000, 9000)
			w.pass(time.Second)
		}
	}
	lose()
	require.Empty(t, a.Suspects(w.now))
	w.lost = func(p packet) bool {
		return !isProbe(p) && (p.from == w.hub.addr || p.to == w.hub.addr) && !protocol.IsStream(p.from) && !protocol.IsStream(p.to)
	}
	w.every(50*time.Millisecond, func() { a.Route(11).Relays[0].Tally.Sent(protocol.MessageTransport, 200, 200) })
	w.until(t, 5*time.Second, func() bool { return len(a.Suspects(w.now)) > 0 })
}

// Whoever knows nothing of counts is judged by probes, as before.
func TestDataWithoutCounts(t *testing.T) {
	w, a, b := directPair(t)
	w.every(50*time.Millisecond, func() { a.message(11, protocol.MessageTransport, 1452) })
	w.lost = func(p packet) bool {
		if m, err := protocol.ParseProbe(p.data); err == nil && m.HasCounts() {
			m.Flags &^= protocol.ProbeCounts
			k, _ := b.Agent.peers[10].keys.sender(&b.own, a.key.Public())
			if p.from != b.addr {
				return false
			}
			copy(p.data, m.Append(nil, &k.Send))
		}
		return !isProbe(p) && p.to == b.addr
	}
	w.pass(time.Minute)
	require.Equal(t, direct, a.kind(11))
	require.Empty(t, a.Suspects(w.now))
}

// Healthy paths, two minutes each and an hour in soaks: loss, reordering, one-sided traffic, a receiver whose socket
// overflows, counts that begin anew.
func TestNoFalseSuspicion(t *testing.T) {
	for name, set := range map[string]func(w *world, a, b *simAgent){
		"loss of 5 %": func(w *world, a, b *simAgent) {
			w.lost = func(packet) bool { return w.rand()%100 < 5 }
		},
		"reordering": func(w *world, a, b *simAgent) { w.jitter = 40 * time.Millisecond },
		"no room": func(w *world, a, b *simAgent) {
			w.every(time.Second, func() { b.Overrun(w.now) })
			w.lost = func(p packet) bool { return p.to == b.addr && !isProbe(p) && w.rand()%100 < 90 }
		},
		"counts begin anew": func(w *world, a, b *simAgent) {
			w.every(7*time.Second, func() {
				for _, q := range b.Agent.peers[10].paths {
					*q.tally = Tally{}
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, a, b := directPair(t)
			set(w, a, b)
			w.every(200*time.Millisecond, func() {
				a.message(11, protocol.MessageTransport, 1452)
				if w.rand()%10 == 0 {
					b.message(10, protocol.MessageTransport, 96)
				}
			})
			seen := 0
			w.every(time.Second, func() { seen += len(a.Suspects(w.now)) + len(b.Suspects(w.now)) })
			for range healthyFor() {
				w.pass(time.Minute)
			}
			require.Zero(t, seen)
		})
	}
}

// healthyFor is for how many minutes healthy paths are watched.
func healthyFor() int {
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		return 60
	}
	return 2
}

// policed lets rate bytes a second of what goes to addr pass, in bursts of at most a tenth of it.
func policed(w *world, addr netip.AddrPort, rate float64) func(packet) bool {
	var tokens float64
	last := w.now
	return func(p packet) bool {
		if p.to != addr || p.from == w.hub.addr {
			return false
		}
		tokens = min(tokens+w.now.Sub(last).Seconds()*rate, rate/10)
		last = w.now
		if tokens < float64(len(p.data)) {
			return true
		}
		tokens -= float64(len(p.data))
		return false
	}
}

// A direct path that is policed is left for the relay, which carries what is sent, and soon
// enough; where the relay carries no more, the traffic comes back, and trials become rare.
func TestPolicedPath(t *testing.T) {
	for name, both := range map[string]bool{"the relay carries more": false, "it does not": true} {
		t.Run(name, func(t *testing.T) {
			w, a, b := directPair(t)
			w.every(5*time.Millisecond, func() { a.message(11, protocol.MessageTransport, 1452) }) // 2.3 Mbit/s
			w.pass(3 * time.Second)
			direct1, relay1 := policed(w, b.addr, 60_000), func(packet) bool { return false }
			if both {
				n := 0
				relay1 = func(p packet) bool { // four of five
					n++
					return p.from == w.hub.addr && p.to == b.addr && !isProbe(p) && n%5 != 0
				}
			}
			w.lost = func(p packet) bool { return direct1(p) || relay1(p) }
			t.Log("left after", w.until(t, 15*time.Second, func() bool { return a.kind(11) == relayed }))
			before := a.moves
			w.pass(20 * time.Second)
			if !both {
				require.Equal(t, relayed, a.kind(11))
				require.Equal(t, before, a.moves)
				require.Contains(t, a.Suspects(w.now)[0].Why, "Mbit/s")
				return
			}
			require.Equal(t, direct, a.kind(11))
			require.Equal(t, before+1, a.moves)
			w.pass(30 * time.Second)
			w.pass(30 * time.Second)
			require.Equal(t, before+1, a.moves, "no further trial so soon")
		})
	}
}

// A transfer that is over before the trial is has shown what the relay carries, and also if it
// is more than the other end's socket has room for.
func TestPolicedPathOfAShortTransfer(t *testing.T) {
	w, a, b := directPair(t)
	sending := true
	w.every(100*time.Millisecond, func() {
		if sending && a.kind(11) == relayed {
			b.Overrun(w.now)
		}
	})
	w.every(5*time.Millisecond, func() {
		for n := 0; sending && n < 1 || sending && n < 5 && a.kind(11) == relayed; n++ {
			a.message(11, protocol.MessageTransport, 1452)
		}
	})
	w.pass(3 * time.Second)
	w.lost = policed(w, b.addr, 60_000)
	w.until(t, 15*time.Second, func() bool { return a.kind(11) == relayed })
	w.pass(2 * time.Second)
	sending = false
	w.pass(10 * time.Second)
	require.Equal(t, relayed, a.kind(11))
	require.Contains(t, a.Suspects(w.now)[0].Why, "Mbit/s")
}

// Nor does it matter that it is over before the other path's counts are looked at for the first time.
func TestPolicedPathOfABurst(t *testing.T) {
	w, a, b := directPair(t)
	left := 6000 // messages that go over the relay, at once
	w.every(5*time.Millisecond, func() {
		if a.kind(11) != relayed {
			a.message(11, protocol.MessageTransport, 1452)
			return
		}
		for n := 0; left > 0 && n < 200; n++ {
			a.message(11, protocol.MessageTransport, 1452)
			left--
		}
	})
	w.pass(3 * time.Second)
	w.lost = policed(w, b.addr, 60_000)
	w.until(t, 15*time.Second, func() bool { return a.kind(11) == relayed })
	w.pass(12 * time.Second)
	require.Zero(t, left)
	require.Equal(t, relayed, a.kind(11))
	require.Contains(t, a.Suspects(w.now)[0].Why, "Mbit/s")
}

// Candidates in private ranges that do not answer get a few questions and then hardly any,
// however often traffic comes and goes; none while a good direct path is there, or never.
func TestPrivateCandidates(t *testing.T) {
	inside := netip.MustParseAddrPort("192.168.7.7:4000")
	count := func(set PrivateCandidates, direct bool) (n int) {
		w := newWorld(t, 2)
		a, b := w.agent(10), w.agent(11)
		a.cfg.Private = set
		c := []netip.AddrPort{inside}
		if direct {
			c = []netip.AddrPort{b.addr}
		}
		a.candidates(11, c...)
		for i := range 6 { // traffic for a while, and again
			a.busy[11], a.next = true, w.now
			w.pass(5 * time.Second)
			if direct && i == 0 {
				a.candidates(11, b.addr, inside)
			}
			delete(a.busy, 11)
			w.pass(15 * time.Second)
		}
		for _, p := range w.log {
			if p.to == inside {
				n++
			}
		}
		return n
	}
	require.LessOrEqual(t, count(PrivateAuto, false), len(searchTries)+1)
	require.NotZero(t, count(PrivateAuto, false))
	require.Zero(t, count(PrivateAuto, true), "a good direct path is there")
	require.Zero(t, count(PrivateOff, false))
	require.Greater(t, count(PrivateOn, false), 20)
}
