package probe

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"causeway/protocol"
)

// Bounds of what one peer can make us keep.
const (
	maxCandidates = 16 // from the netmap
	maxObserved   = 8  // sources seen in authenticated questions
)

// Hub is a hub of the hub list.
type Hub struct {
	Number protocol.NodeNumber
	Key    protocol.WireGuardPublicKey
	Addrs  []netip.AddrPort // UDP
	// Stream is what a stream to the hub is called here (protocol.StreamAddr);
	// zero: there is none.
	Stream netip.AddrPort
}

// Peer is a peer of the netmap.
type Peer struct {
	Number     protocol.NodeNumber
	Key        protocol.WireGuardPublicKey
	Candidates []netip.AddrPort
	Direct     bool
}

// Hop is where a datagram goes and what its reserved bytes say.
type Hop struct {
	Addr   netip.AddrPort
	Number protocol.NodeNumber

	path, leg *Tally // of the path to a peer, and of that to the hub which it leads over
	large     bool   // for what the path does not carry
}

// Sent counts what was sent there, as Tally.Sent.
func (h Hop) Sent(kind protocol.MessageType, n, segment int) {
	if h.large {
		h.path.sentLarge(kind, n, segment)
	} else {
		h.path.Sent(kind, n, segment)
	}
	h.leg.Sent(kind, n, segment)
}

// Relay is where a peer's messages that come over a hub are counted.
type Relay struct {
	Hub   protocol.NodeNumber
	Tally *Tally
}

// Route is how a peer or hub is reached now.
type Route struct {
	Kind protocol.PathKind // PathNone: not at all
	Hop  Hop
	Live []Hop // every live path, the chosen one first: for handshakes
	// Stream leads over a hub's stream, which has no path MTU; zero: none is up.
	Stream Hop
	Since  time.Time
	RTT    time.Duration
	// Size is the largest datagram, in bytes behind the UDP header, that is
	// known to arrive; 0: not known yet. An idle peer keeps what it had.
	Size int
	// Relays are a peer's, one for each hub.
	Relays []Relay
}

func (r Route) same(o Route) bool {
	return slices.Equal(r.Relays, o.Relays) && r.Kind == o.Kind && r.Hop == o.Hop && r.Size == o.Size && r.Stream == o.Stream && slices.Equal(r.Live, o.Live)
}

// hub is a hub as an agent probes it.
type hub struct {
	Hub
	keys
	proof
	paths   []*path
	chosen  *path
	counter uint64
	route   Route
	trial   trial
}

// peer is a peer as an agent probes it.
type peer struct {
	Peer
	keys
	proof
	paths       []*path
	chosen      *path
	chosenSince time.Time
	traffic     time.Time // last one
	wanted      time.Time // last question of a peer that has traffic
	answers     bucket
	strangers   bucket // answers to boot ids that are not proven
	spent       meter  // questions to addresses that have proven nothing
	seen        seen
	route       Route
	trial       trial
}

// Agent judges an agent's paths.
type Agent struct {
	cfg      Config
	own      ring
	hubs     map[protocol.NodeNumber]*hub
	peers    map[protocol.NodeNumber]*peer
	active   map[protocol.NodeNumber]*peer
	hubAddrs map[netip.AddrPort]*path
	hubOf    map[netip.AddrPort]*hub
	seq      uint64
	pathID   uint16

	since       time.Time // hubs with streams were set
	heard       bool      // a hub has answered over UDP once
	streamUntil time.Time // streams are wanted
	showing     showing
	spend       spend
	noInterface bool // of our own tunnel
	overruns
}

// NewAgent returns an Agent that knows nobody yet.
func NewAgent(cfg Config) *Agent {
	cfg.fill()
	a := &Agent{cfg: cfg, hubs: map[protocol.NodeNumber]*hub{}, peers: map[protocol.NodeNumber]*peer{}, active: map[protocol.NodeNumber]*peer{},
		hubAddrs: map[netip.AddrPort]*path{}, hubOf: map[netip.AddrPort]*hub{}}
	a.SetKeys([]OwnKey{{cfg.PrivateKey, cfg.KeyEpoch}})
	return a
}

// SetInterface says whether our own tunnel has its interface, which peers are told.
func (a *Agent) SetInterface(there bool) { a.noInterface = !there }

// SetKeys replaces our own static keys. The first is the one to begin with,
// the others are good as well; there is at least one.
func (a *Agent) SetKeys(keys []OwnKey) { a.own.set(keys) }

func (a *Agent) newPath(kind protocol.PathKind) *path {
	a.pathID++
	return &path{id: a.pathID, kind: kind, tally: new(Tally)}
}

// SetHubs replaces the hubs. It fails, changing nothing, if a number or an
// address is there twice.
func (a *Agent) SetHubs(now time.Time, hubs []Hub, out *Output) error {
	numbers, addrs := map[protocol.NodeNumber]bool{}, map[netip.AddrPort]bool{}
	hubs = slices.Clone(hubs)
	for i := range hubs {
		hubs[i].Addrs = plainAddrs(hubs[i].Addrs)
	}
	for _, h := range hubs {
		if h.Stream.IsValid() {
			if !protocol.IsStream(h.Stream) || addrs[h.Stream] {
				return fmt.Errorf("set hubs: stream address %s of hub %d is not valid or there twice", h.Stream, h.Number)
			}
			addrs[h.Stream] = true
		}
		if !h.Number.Valid() || h.Number == a.cfg.Self || numbers[h.Number] {
			return fmt.Errorf("set hubs: hub number %d is not valid, our own, or there twice", h.Number)
		}
		numbers[h.Number] = true
		for _, ad := range h.Addrs {
			if !ad.IsValid() || addrs[ad] {
				return fmt.Errorf("set hubs: address %s of hub %d is not valid or there twice", ad, h.Number)
			}
			addrs[ad] = true
		}
	}
	old := a.hubs
	a.hubs = map[protocol.NodeNumber]*hub{}
	clear(a.hubAddrs)
	clear(a.hubOf)
	for _, c := range hubs {
		h := old[c.Number]
		if h == nil {
			h = &hub{}
		}
		if h.Key != c.Key { // rotated: it is the same hub, at the same addresses
			h.keys = keys{}
		}
		h.Hub = c
		keep := h.paths
		h.paths = nil
		for _, ad := range c.Addrs {
			i := slices.IndexFunc(keep, func(p *path) bool { return p.addr == ad })
			var p *path
			if i >= 0 {
				p = keep[i]
			} else {
				p = a.newPath(protocol.PathNone)
				p.addr, p.next = ad, now
			}
			h.paths = append(h.paths, p)
			a.hubAddrs[ad], a.hubOf[ad] = p, h
		}
		a.newStream(h, keep)
		if !slices.Contains(h.paths, h.chosen) {
			h.chosen = nil
		}
		a.hubs[c.Number] = h
		a.chooseHub(now, h, out)
	}
	for n := range old {
		if a.hubs[n] == nil {
			out.Routes = append(out.Routes, n)
		}
	}
	for _, p := range a.peers {
		p.paths = slices.DeleteFunc(p.paths, func(q *path) bool {
			return q.kind == protocol.PathRelay && a.hubs[q.hub.Number] != q.hub || q.kind == protocol.PathDirect && a.hubAddrs[q.addr] != nil
		})
		a.choose(now, p, out)
	}
	out.Changed = true
	return nil
}

// SetPeers replaces the peers. It fails, changing nothing, if a number is
// there twice.
func (a *Agent) SetPeers(now time.Time, peers []Peer, out *Output) error {
	numbers := map[protocol.NodeNumber]bool{}
	for _, p := range peers {
		if !p.Number.Valid() || p.Number == a.cfg.Self || numbers[p.Number] {
			return fmt.Errorf("set peers: peer number %d is not valid, our own, or there twice", p.Number)
		}
		numbers[p.Number] = true
	}
	old := a.peers
	a.peers = make(map[protocol.NodeNumber]*peer, len(peers))
	for _, c := range peers {
		p := old[c.Number]
		if p == nil {
			p = &peer{}
		}
		if p.Key != c.Key { // rotated: it is the same node, and its paths lead where they led
			p.keys = keys{}
		}
		c.Candidates = plainAddrs(c.Candidates)
		p.Peer = c
		a.peers[c.Number] = p
		a.setCandidates(now, p)
		a.choose(now, p, out)
	}
	for n := range old {
		if a.peers[n] == nil {
			delete(a.active, n)
			out.Routes = append(out.Routes, n)
		}
	}
	out.Changed = true
	return nil
}

// plainAddrs copies l with addresses in the form in which sockets report them.
func plainAddrs(l []netip.AddrPort) []netip.AddrPort {
	out := make([]netip.AddrPort, len(l))
	for i, a := range l {
		out[i] = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	return out
}

func (a *Agent) setCandidates(now time.Time, p *peer) {
	want := map[netip.AddrPort]bool{}
	if p.Direct {
		for _, c := range p.Candidates {
			if fit(c) && len(want) < maxCandidates && a.hubAddrs[c] == nil && (a.cfg.Private != PrivateOff || !private(c.Addr())) {
				want[c] = true
			}
		}
	}
	p.paths = slices.DeleteFunc(p.paths, func(q *path) bool {
		if q.kind != protocol.PathDirect {
			return false
		}
		q.netmap = want[q.addr]
		delete(want, q.addr)
		// A path that answers outlives the candidate that led to it.
		return !p.Direct || !q.netmap && !q.alive(now) && now.Sub(q.lastSeen) > seenFor
	})
	for _, c := range p.Candidates { // in order, so that runs are repeatable
		if want[c] {
			delete(want, c)
			q := a.newPath(protocol.PathDirect)
			q.addr, q.netmap, q.next = c, true, now
			q.rare = a.cfg.Private == PrivateAuto && private(c.Addr())
			p.paths = append(p.paths, q)
		}
	}
}

// Traffic says that data was sent to or came from peer n at the time now. An
// idle peer's paths are looked for at the next Tick.
func (a *Agent) Traffic(now time.Time, n protocol.NodeNumber) {
	if p := a.peers[n]; p != nil {
		if now.After(p.traffic) {
			p.traffic = now
		}
		a.activate(now, p)
	}
}

func (a *Agent) activate(now time.Time, p *peer) {
	if a.active[p.Number] != nil {
		return
	}
	a.active[p.Number] = p
	for _, q := range p.paths {
		if q.rare && q.lastAnswer.IsZero() && q.tries > len(searchTries) {
			continue // traffic that comes and goes brings no new tries
		}
		q.tries, q.next, q.unanswered, q.asked = 0, now, time.Time{}, q.asked[:0]
		q.udpSizes.again(now)
		q.tcpSizes.again(now)
	}
}

// Hold says that a handshake initiation of peer or hub n has arrived over src.
// Once n has proven its boot id by a question asked from now on, n is in
// Output.Released: then the initiation may be used without the risk that news
// of a restart, coming later, throws the new session away. renew says that it
// is another initiation than the one held before.
func (a *Agent) Hold(now time.Time, n protocol.NodeNumber, src netip.AddrPort, renew bool) {
	if h := a.hubs[n]; h != nil {
		if !h.holding || renew {
			h.holding, h.holdSeq = true, a.seq
		}
		for _, p := range h.paths {
			if p.addr == src || p.alive(now) {
				p.soon(now)
			}
		}
		return
	}
	p := a.peers[n]
	if p == nil {
		return
	}
	if !p.holding || renew {
		p.holding, p.holdSeq = true, a.seq
	}
	p.wanted = now
	a.activate(now, p)
	a.relays(now, p)
	for _, q := range p.paths {
		if q.alive(now) || q.addr == src || q.kind == protocol.PathRelay && a.hubOf[src] == q.hub {
			q.soon(now)
		}
	}
}

// relays makes sure that p has one relay path for each hub.
func (a *Agent) relays(now time.Time, p *peer) {
	for _, n := range a.hubNumbers() {
		a.relay(now, p, a.hubs[n])
	}
}

func (a *Agent) relay(now time.Time, p *peer, h *hub) *path {
	for _, q := range p.paths {
		if q.kind == protocol.PathRelay && q.hub == h {
			return q
		}
	}
	q := a.newPath(protocol.PathRelay)
	q.hub, q.next = h, now
	p.paths = append(p.paths, q)
	return q
}

func (a *Agent) hubNumbers() []protocol.NodeNumber {
	l := make([]protocol.NodeNumber, 0, len(a.hubs))
	for n := range a.hubs {
		l = append(l, n)
	}
	slices.Sort(l)
	return l
}

// Route is how peer or hub n is reached now.
func (a *Agent) Route(n protocol.NodeNumber) Route {
	if h := a.hubs[n]; h != nil {
		return h.route
	}
	if p := a.peers[n]; p != nil {
		r := p.route
		if p.chosen != nil {
			r.RTT = p.chosen.rtt
		}
		return r
	}
	return Route{Kind: protocol.PathNone}
}

// HubAlive reports whether hub n has bound our address and answered lately.
func (a *Agent) HubAlive(now time.Time, n protocol.NodeNumber) bool {
	h := a.hubs[n]
	return h != nil && h.chosen != nil && h.chosen.alive(now)
}

// Sources lists the addresses from which a peer's datagrams are taken on a
// direct path: proven ones, and those that authenticated questions came from
// and that are being proven now.
func (a *Agent) Sources() map[netip.AddrPort]protocol.NodeNumber {
	m := map[netip.AddrPort]protocol.NodeNumber{}
	taken := map[netip.AddrPort]time.Time{}
	for n, p := range a.peers {
		for _, q := range p.paths {
			if q.kind != protocol.PathDirect || q.lastAnswer.IsZero() && q.lastSeen.IsZero() {
				continue
			}
			// Where two peers were seen at one address, the last one to prove it has it.
			if at, ok := taken[q.addr]; ok && (at.After(q.lastAnswer) || at.Equal(q.lastAnswer) && m[q.addr] < n) {
				continue
			}
			m[q.addr], taken[q.addr] = n, q.lastAnswer
		}
	}
	return m
}

// Arrivals lists where messages from an address are counted: those of Sources and HubAddrs.
func (a *Agent) Arrivals() map[netip.AddrPort]*Tally {
	m := map[netip.AddrPort]*Tally{}
	for ad, n := range a.Sources() {
		if q := a.find(a.peers[n], nil, ad); q != nil {
			m[ad] = q.tally
		}
	}
	for ad, p := range a.hubAddrs {
		m[ad] = p.tally
	}
	return m
}

// HubAddrs lists the hubs' addresses.
func (a *Agent) HubAddrs() map[netip.AddrPort]protocol.NodeNumber {
	m := map[netip.AddrPort]protocol.NodeNumber{}
	for ad, h := range a.hubOf {
		m[ad] = h.Number
	}
	return m
}

// status is how p is reached.
func (a *Agent) status(now time.Time, p *peer) protocol.PathStatus {
	r := a.Route(p.Number)
	s := protocol.PathStatus{Peer: p.Number, Path: r.Kind, Idle: a.active[p.Number] == nil, Addr: r.Hop.Addr, Since: r.Since, RTT: r.RTT}
	if r.Size > 0 {
		s.MTU = r.Size - protocol.MinTransportSize
	}
	if p.chosen != nil {
		s.Loss = p.chosen.loss(now)
	}
	return s
}

// Statuses lists hubs, and peers that are or were talked to, by number.
func (a *Agent) Statuses(now time.Time) []protocol.PathStatus {
	var l []protocol.PathStatus
	for n, h := range a.hubs {
		s := protocol.PathStatus{Peer: n, Path: h.route.Kind, Addr: h.route.Hop.Addr, Since: h.route.Since}
		if h.chosen != nil {
			s.RTT, s.Loss = h.chosen.rtt, h.chosen.loss(now)
		}
		l = append(l, s)
	}
	for _, p := range a.peers {
		if p.traffic.IsZero() && !p.known {
			continue
		}
		l = append(l, a.status(now, p))
	}
	slices.SortFunc(l, func(x, y protocol.PathStatus) int { return cmp.Compare(x.Peer, y.Peer) })
	return l
}
