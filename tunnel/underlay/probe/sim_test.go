package probe

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// fataler is *testing.T or *rapid.T.
type fataler interface {
	require.TestingT
	Helper()
}

type packet struct {
	at       time.Time
	from, to netip.AddrPort
	data     []byte
}

// world is one hub, some agents and the network between them, in virtual time.
type world struct {
	t      fataler
	now    time.Time
	hub    *simHub
	agents map[protocol.NodeNumber]*simAgent
	queue  []packet
	log    []packet // all that was ever sent, as an attacker on the path sees it
	delay  time.Duration
	jitter time.Duration // up to as much more, so that packets overtake each other
	// lost says which packets get lost; nil: none.
	lost func(p packet) bool
	// limit is the largest datagram that gets from one address to another; nil: any.
	limit   func(from, to netip.AddrPort) int
	reasons map[Reason]int // of what was delivered
	random  uint64

	withStreams bool
	streams     uint64 // connected so far
	timers      []timer
}

type timer struct {
	at time.Time
	do func()
}

func (w *world) later(d time.Duration, do func()) {
	w.timers = append(w.timers, timer{w.now.Add(d), do})
}

type simHub struct {
	*Binder
	key       protocol.WireGuardPrivateKey
	addr      netip.AddrPort
	boot      protocol.BootID
	restarted []protocol.NodeNumber
}

type simAgent struct {
	*Agent
	w         *world
	number    protocol.NodeNumber
	key       protocol.WireGuardPrivateKey
	addr      netip.AddrPort // as others see it
	was       []netip.AddrPort
	boot      protocol.BootID
	peers     []Peer
	next      time.Time
	restarted []protocol.NodeNumber
	released  []protocol.NodeNumber
	boots     map[protocol.NodeNumber][]protocol.BootID // seen, in order
	busy      map[protocol.NodeNumber]bool              // has traffic all the time
	iface     int                                       // largest datagram that its interface takes; 0: any
	ticks     int
	sizes     []int // that any peer's route had, in order

	hop   map[protocol.NodeNumber]netip.AddrPort // where peers are reached
	moves int                                    // how often that changed

	noStream bool
	stream   netip.AddrPort // while connected, what the hub calls it
	dialled  int
}

// simStream is what agents call their stream to the hub.
var simStream = protocol.StreamAddr(1)

// connect keeps the agent's stream as it is wanted; dialling takes three round trips.
func (a *simAgent) connect() {
	want := a.StreamsWanted(a.w.now) && !a.noStream
	switch {
	case want && !a.stream.IsValid() && a.dialled == 0:
		a.dialled = 1
		a.w.later(6*a.w.delay, func() {
			a.dialled = 0
			if a.noStream {
				return
			}
			a.w.streams++
			a.stream = protocol.StreamAddr(1000 + a.w.streams)
			a.StreamUp(a.w.now, simStream)
			a.next = a.w.now
		})
	case !want && a.stream.IsValid():
		var out Output
		a.w.hub.Unbind(a.stream, &out)
		a.stream = netip.AddrPort{}
		a.StreamDown(a.w.now, simStream, &out)
		a.took(&out)
	}
}

const simHubNumber = 1

func (w *world) rand() uint64 {
	w.random++
	x := w.random * 0x9e3779b97f4a7c15
	x ^= x >> 29
	return x * 0xbf58476d1ce4e5b9
}

func (w *world) newBoot() (b protocol.BootID) {
	for i := range b {
		b[i] = byte(w.rand() >> 24)
	}
	return b
}

func (w *world) newKey() (k protocol.WireGuardPrivateKey) {
	for i := range k {
		k[i] = byte(w.rand() >> 24)
	}
	return k
}

func newWorld(t fataler, agents int) *world {
	w := &world{t: t, now: time.Unix(1_000_000, 0), agents: map[protocol.NodeNumber]*simAgent{}, reasons: map[Reason]int{}, delay: 5 * time.Millisecond}
	w.hub = &simHub{key: w.newKey(), addr: netip.MustParseAddrPort("192.0.2.1:51820")}
	for i := range agents {
		n := protocol.NodeNumber(10 + i)
		w.agents[n] = &simAgent{w: w, number: n, key: w.newKey(), addr: netip.MustParseAddrPort(fmt.Sprintf("198.51.100.%d:4000", n))}
	}
	w.startHub()
	for _, n := range w.numbers() {
		a := w.agents[n]
		for _, m := range w.numbers() {
			if m != n {
				a.peers = append(a.peers, Peer{Number: m, Key: w.agents[m].key.Public(), Direct: true})
			}
		}
		a.start()
	}
	return w
}

func (w *world) numbers() []protocol.NodeNumber {
	var l []protocol.NodeNumber
	for n := range w.agents {
		l = append(l, n)
	}
	slices.Sort(l)
	return l
}

func (w *world) startHub() {
	h := w.hub
	h.boot = w.newBoot()
	h.Binder = NewBinder(Config{Self: simHubNumber, PrivateKey: h.key, Boot: h.boot}, w.now)
	var nodes []Node
	for _, n := range w.numbers() {
		nodes = append(nodes, Node{Number: n, Key: w.agents[n].key.Public()})
	}
	var out Output
	require.NoError(w.t, h.SetNodes(w.now, nodes, &out))
}

func (a *simAgent) start() {
	a.boot = a.w.newBoot()
	a.Agent = NewAgent(Config{Self: a.number, PrivateKey: a.key, Boot: a.boot, Rand: a.w.rand})
	a.boots, a.busy = map[protocol.NodeNumber][]protocol.BootID{}, map[protocol.NodeNumber]bool{}
	var out Output
	h := Hub{Number: simHubNumber, Key: a.w.hub.key.Public(), Addrs: []netip.AddrPort{a.w.hub.addr}, Stream: simStream}
	a.noStream = a.noStream || !a.w.withStreams
	require.NoError(a.w.t, a.SetHubs(a.w.now, []Hub{h}, &out))
	require.NoError(a.w.t, a.SetPeers(a.w.now, a.peers, &out))
	a.next = a.w.now
}

// candidates sets what the netmap says of a peer.
func (a *simAgent) candidates(n protocol.NodeNumber, c ...netip.AddrPort) {
	for i := range a.peers {
		if a.peers[i].Number == n {
			a.peers[i].Candidates = c
		}
	}
	var out Output
	require.NoError(a.w.t, a.SetPeers(a.w.now, a.peers, &out))
	a.took(&out)
}

// took applies an output.
func (a *simAgent) took(out *Output) {
	for _, s := range out.Sends {
		switch {
		case a.iface > 0 && len(s.Data) > a.iface && s.To != simStream:
			var more Output
			a.TooLarge(a.w.now, s.To, len(s.Data), &more)
			a.took(&more)
			a.next = a.w.now
		case s.To != simStream:
			a.w.send(a.addr, s.To, s.Data)
		case a.stream.IsValid():
			a.w.send(a.stream, a.w.hub.addr, s.Data)
		}
	}
	for _, n := range out.Routes {
		if at := a.Route(n).Hop.Addr; a.hop[n] != at {
			if a.hop == nil {
				a.hop = map[protocol.NodeNumber]netip.AddrPort{}
			}
			a.hop[n] = at
			a.moves++
		}
		if s := a.Route(n).Size; s > 0 && (len(a.sizes) == 0 || a.sizes[len(a.sizes)-1] != s) {
			a.sizes = append(a.sizes, s)
		}
	}
	a.restarted = append(a.restarted, out.Restarted...)
	a.released = append(a.released, out.Released...)
	// No boot id comes twice: what was replayed must not flip it back.
	see := func(n protocol.NodeNumber, p *proof) {
		l := a.boots[n]
		if !p.known || len(l) > 0 && l[len(l)-1] == p.boot {
			return
		}
		require.NotContains(a.w.t, l, p.boot, "an old boot id came back")
		a.boots[n] = append(l, p.boot)
	}
	for n, p := range a.Agent.peers {
		see(n, &p.proof)
	}
	for n, h := range a.Agent.hubs {
		see(n, &h.proof)
	}
}

func (w *world) send(from, to netip.AddrPort, data []byte) {
	p := packet{w.now.Add(w.delay), from, to, data}
	if w.jitter > 0 {
		p.at = p.at.Add(time.Duration(w.rand() % uint64(w.jitter)))
	}
	w.log = append(w.log, p)
	if (w.limit == nil || len(data) <= w.limit(from, to)) && (w.lost == nil || !w.lost(p)) {
		w.queue = append(w.queue, p)
	}
}

// deliver gives one packet to whoever has the address.
func (w *world) deliver(p packet) Reason {
	if p.to == w.hub.addr {
		return w.toHub(p)
	}
	for _, n := range w.numbers() {
		if a := w.agents[n]; a.addr == p.to || a.stream.IsValid() && a.stream == p.to {
			from := p.from
			if p.to == a.stream {
				from = simStream
			}
			if len(p.data) > 0 && !isProbe(p) && protocol.ClassifyMessage(p.data) != protocol.MessageUnknown {
				a.arrived(from, protocol.MessageType(p.data[0]), p.data)
				return OK
			}
			var out Output
			r := a.Receive(w.now, from, p.data, &out)
			w.reasons[r]++
			a.took(&out)
			a.next = w.now
			return r
		}
	}
	return Misaddressed
}

func (w *world) toHub(p packet) Reason {
	if len(p.data) >= 4 {
		kind, n := protocol.MessageType(p.data[0]), protocol.MessageNumber(p.data)
		from := w.hub.addrs[p.from]
		if from != nil {
			w.hub.tally(from.Number, p.from).Received(kind, len(p.data), len(p.data))
		}
		if n != 0 { // the switchboard
			to := w.hub.Bound(n)
			if from == nil || len(to) == 0 {
				return Misaddressed
			}
			d := bytes.Clone(p.data)
			protocol.SetMessageNumber(d, from.Number)
			w.hub.tally(n, to[0]).Sent(kind, len(d), len(d))
			w.send(w.hub.addr, to[0], d)
			return OK
		}
		if kind == protocol.MessageTransport || kind == protocol.MessageInitiation {
			return OK
		}
	}
	var out Output
	r := w.hub.Receive(w.now, p.from, netip.Addr{}, p.data, &out)
	for _, s := range out.Sends {
		w.send(w.hub.addr, s.To, s.Data)
	}
	w.hub.restarted = append(w.hub.restarted, out.Restarted...)
	return r
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	end := w.now.Add(d)
	for steps := 0; ; steps++ {
		require.Less(w.t, steps, 200_000, "no end of packets or ticks")
		next := end
		for _, n := range w.numbers() {
			next = earlier(next, w.agents[n].next)
		}
		sort.SliceStable(w.queue, func(i, j int) bool { return w.queue[i].at.Before(w.queue[j].at) })
		if len(w.queue) > 0 {
			next = earlier(next, w.queue[0].at)
		}
		for _, t := range w.timers {
			next = earlier(next, t.at)
		}
		if next.After(w.now) {
			w.now = next
		}
		timers := w.timers
		w.timers = nil
		for _, t := range timers {
			if t.at.After(w.now) {
				w.timers = append(w.timers, t)
			} else {
				t.do()
			}
		}
		var out Output
		w.hub.Tick(w.now, &out)
		for len(w.queue) > 0 && !w.queue[0].at.After(w.now) {
			p := w.queue[0]
			w.queue = w.queue[1:]
			w.deliver(p)
		}
		for _, n := range w.numbers() {
			a := w.agents[n]
			if a.next.After(w.now) {
				continue
			}
			for m := range a.busy {
				a.Traffic(w.now, m)
			}
			var out Output
			a.next = a.Tick(w.now, &out)
			a.ticks++
			a.took(&out)
			a.connect()
			if min := w.now.Add(time.Millisecond); a.next.Before(min) {
				a.next = min
			}
		}
		if !w.now.Before(end) {
			return
		}
	}
}

func (w *world) agent(n protocol.NodeNumber) *simAgent { return w.agents[n] }

func (a *simAgent) kind(n protocol.NodeNumber) protocol.PathKind { return a.Route(n).Kind }

// sentProbes counts agent-to-agent questions sent so far.
func (w *world) questions() (n int) {
	for _, p := range w.log {
		if m, err := protocol.ParseProbe(p.data); err == nil && m.Kind == protocol.ProbeQuestion {
			n++
		}
	}
	return n
}
