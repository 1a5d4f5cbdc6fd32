package underlay

import (
	"errors"
	"iter"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"causeway/protocol"
	"causeway/tunnel/underlay/handshake"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
)

// Config configures an agent's underlay. Self, PrivateKey, BootID and
// NewReader are needed, unless Plain: then NewReader alone.
type Config struct {
	Self       protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	BootID     protocol.BootID
	KeyEpoch   uint32
	ListenPort uint16 // UDP, the same for IPv4 and IPv6; 0: any free port
	LastPort   uint16 // taken first, where any will do: what peers and NATs know of the last run stays true. 0: none
	Mark       uint32 // SO_MARK of every socket; 0: none

	// NewReader is called in Run, once for each socket. What it returns is
	// called by that socket's goroutine alone.
	NewReader func() Receiver

	// OnRestart is called when a peer or hub has proven a new boot id, before
	// anything that its new run sent is delivered: forget all its sessions. It
	// may call Send and nothing else of Underlay. Calls do not overlap.
	OnRestart func(protocol.NodeNumber)
	// OnHubBound is called when a hub binds our address (true) and when it has
	// stopped answering (false). It must not block. May be nil.
	OnHubBound func(hub protocol.NodeNumber, bound bool)
	// OnCandidates is called when Candidates has changed. It must not block. May be nil.
	OnCandidates func()
	// OnUDPBlocked is called when UDPBlocked has changed. It must not block. May be nil.
	OnUDPBlocked func()
	// Proxy chooses the HTTP proxy for streams to a hub's https URL; nil: none.
	Proxy func(*url.URL) (*url.URL, error)
	// Lookup finds the addresses of hubs and proxies for streams; nil: DNS does.
	Lookup sock.Lookup
	// Excluded says which of the host's own addresses are no candidates. May be nil.
	Excluded func(ifname string, a netip.Addr) bool

	// Private says how candidates in private ranges are tried.
	Private probe.PrivateCandidates

	// Plain is for interoperation tests with other WireGuard programs alone:
	// zeros to and from any address, no probes, no relay. Peers are set by
	// SetPlainPeer. A peer is answered from the address that it sent to.
	Plain bool
	// NoOffload leaves UDP_GRO and UDP_SEGMENT unused.
	NoOffload bool

	Log zerolog.Logger
}

// Hub is a hub as an agent reaches it.
type Hub struct {
	Number protocol.NodeNumber
	Key    protocol.WireGuardPublicKey
	Addrs  []netip.AddrPort // UDP, resolved
	HTTPS  []string         // host:port, for streams; empty: none
}

// Peer is another node as an agent reaches it.
type Peer struct {
	Number     protocol.NodeNumber
	Key        protocol.WireGuardPublicKey
	Candidates []netip.AddrPort
	Direct     bool // a direct path is allowed
}

// Errors of Send.
var (
	ErrUnknownPeer = errors.New("underlay: no such peer")
	ErrNoPath      = errors.New("underlay: no path to the peer")
	ErrNotRunning  = errors.New("underlay: not running")
	ErrTooLarge    = errors.New("underlay: larger than what the path carries")
)

// Underlay is an agent's sockets and paths. Its methods may be called
// concurrently, and before Run.
type Underlay struct {
	cfg   Config
	start time.Time
	ready chan struct{}
	table *handshake.Table
	drops Drops

	conns   atomic.Pointer[conns]
	peers   atomic.Pointer[map[protocol.NodeNumber]*remote]
	sources atomic.Pointer[map[netip.AddrPort]source]

	wake    chan struct{}
	traffic chan protocol.NodeNumber // peers that were idle

	candidates   atomic.Pointer[[]netip.AddrPort]
	streamNeeded atomic.Bool // for what no path by UDP carries

	streams        atomic.Pointer[map[netip.AddrPort]*hubStream]
	streamsChanged chan struct{}
	streamsWanted  atomic.Bool
	udpBlocked     atomic.Bool

	mu     sync.Mutex // guards what follows
	agent  *probe.Agent
	out    probe.Output
	held   map[protocol.NodeNumber]*held
	events []event

	lastStream uint64

	draining sync.Mutex // held while events are worked off, in order
}

// remote is a peer or hub as Send and the readers see it.
type remote struct {
	number protocol.NodeNumber
	hub    bool
	route  atomic.Pointer[probe.Route]
	poked  atomic.Int64 // when the runner was last told of traffic, since start
	rx, tx atomic.Uint64
	local  atomic.Pointer[netip.Addr] // plain mode: what is sent from; nil: the kernel chooses
}

// source is who sends from an address, and where that is counted.
type source struct {
	*remote
	tally *probe.Tally
}

// OwnKey is a static key of ours and its epoch.
type OwnKey = probe.OwnKey

type conns struct{ v4, v6 *sock.Conn }

// New checks cfg. It opens nothing.
func New(cfg Config) (*Underlay, error) {
	if cfg.NewReader == nil {
		return nil, errors.New("underlay: no NewReader")
	}
	if !cfg.Plain && (!cfg.Self.Valid() || cfg.PrivateKey.IsZero() || cfg.BootID == (protocol.BootID{})) {
		return nil, errors.New("underlay: node number, private key or boot id is missing")
	}
	u := &Underlay{cfg: cfg, start: time.Now(), ready: make(chan struct{}), wake: make(chan struct{}, 1),
		streamsChanged: make(chan struct{}, 1), traffic: make(chan protocol.NodeNumber, 256), held: map[protocol.NodeNumber]*held{}}
	u.agent = probe.NewAgent(probe.Config{Self: cfg.Self, PrivateKey: cfg.PrivateKey, KeyEpoch: cfg.KeyEpoch, Boot: cfg.BootID, Private: cfg.Private})
	u.table = handshake.New(cfg.Self, u.sendHandshake, u.poke)
	u.peers.Store(&map[protocol.NodeNumber]*remote{})
	u.sources.Store(&map[netip.AddrPort]source{})
	u.candidates.Store(&[]netip.AddrPort{})
	u.streams.Store(&map[netip.AddrPort]*hubStream{})
	return u, nil
}

// Ready is closed when the sockets are open.
func (u *Underlay) Ready() <-chan struct{} { return u.ready }

// SetKeys replaces our own static keys, of which there is at least one: the
// first is the one to begin with, the others are good as well.
func (u *Underlay) SetKeys(keys []OwnKey) {
	u.mu.Lock()
	defer u.after(nil)
	u.agent.SetKeys(keys)
}

// SetHubs replaces the hubs. A hub that stays keeps what is known of it.
func (u *Underlay) SetHubs(hubs []Hub) error {
	u.mu.Lock()
	defer u.after(nil)
	if err := u.setHubs(hubs); err != nil {
		return err
	}
	u.setRemotes(true, func(yield func(protocol.NodeNumber) bool) {
		for _, h := range hubs {
			if !yield(h.Number) {
				return
			}
		}
	})
	return nil
}

// SetPeers replaces the peers. A peer that stays keeps its paths, with another key too.
func (u *Underlay) SetPeers(peers []Peer) error {
	l := make([]probe.Peer, len(peers))
	for i, p := range peers {
		l[i] = probe.Peer{Number: p.Number, Key: p.Key, Candidates: p.Candidates, Direct: p.Direct}
	}
	u.mu.Lock()
	defer u.after(nil)
	if err := u.agent.SetPeers(time.Now(), l, &u.out); err != nil {
		return err
	}
	u.setRemotes(false, func(yield func(protocol.NodeNumber) bool) {
		for _, p := range peers {
			if !yield(p.Number) {
				return
			}
		}
	})
	return nil
}

// setRemotes replaces the hubs or the peers in u.peers. u.mu is held.
func (u *Underlay) setRemotes(hubs bool, numbers iter.Seq[protocol.NodeNumber]) {
	old := *u.peers.Load()
	m := make(map[protocol.NodeNumber]*remote, len(old))
	for n, r := range old {
		if r.hub != hubs {
			m[n] = r
		}
	}
	for n := range numbers {
		r := old[n]
		if r == nil || r.hub != hubs {
			r = &remote{number: n, hub: hubs}
			route := u.agent.Route(n)
			r.route.Store(&route)
			r.poked.Store(-int64(pokeEvery))
		}
		m[n] = r
	}
	for n := range old {
		if m[n] == nil {
			u.table.Forget(n)
			delete(u.held, n)
		}
	}
	u.peers.Store(&m)
}

// Candidates are the host's own addresses on the sockets' port.
func (u *Underlay) Candidates() []netip.AddrPort { return slices.Clone(*u.candidates.Load()) }

// Paths says how each hub, and each peer that is or was talked to, is reached now.
func (u *Underlay) Paths() []protocol.PathStatus {
	u.mu.Lock()
	l := u.agent.Statuses(time.Now())
	u.mu.Unlock()
	u.shown(l)
	peers := *u.peers.Load()
	for i := range l {
		if r := peers[l[i].Peer]; r != nil {
			l[i].RxBytes, l[i].TxBytes = r.rx.Load(), r.tx.Load()
		}
	}
	return l
}

// View is how peer n is reached and why so; false: n is no peer.
func (u *Underlay) View(n protocol.NodeNumber) (protocol.PathView, bool) {
	u.mu.Lock()
	v, ok := u.agent.View(time.Now(), n)
	u.mu.Unlock()
	v.Addr = u.at(v.Addr)
	for i := range v.Candidates {
		v.Candidates[i].Addr = u.at(v.Candidates[i].Addr)
	}
	return v, ok
}

// Ways lists the ways to a peer or hub that are tried.
func (u *Underlay) Ways(n protocol.NodeNumber) []protocol.Way {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.agent.Ways(time.Now(), n)
}

// Suspects lists paths that answer probes and carry no data, or little.
func (u *Underlay) Suspects() []protocol.SuspectPath {
	u.mu.Lock()
	l := u.agent.Suspects(time.Now())
	u.mu.Unlock()
	for i := range l {
		l[i].Addr = u.at(l[i].Addr)
	}
	return l
}

// SetInterface says whether the tunnel has its interface, which peers are told.
func (u *Underlay) SetInterface(there bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.agent.SetInterface(there)
}

// HubBound reports whether the hub has bound our address and answered lately.
func (u *Underlay) HubBound(n protocol.NodeNumber) bool {
	r := (*u.peers.Load())[n]
	return r != nil && r.hub && r.route.Load().Kind != protocol.PathNone
}

// Port is the UDP port of the sockets; 0 before Ready.
func (u *Underlay) Port() uint16 {
	c := u.conns.Load()
	switch {
	case c == nil:
		return 0
	case c.v4 != nil:
		return c.v4.LocalAddr().Port()
	}
	return c.v6.LocalAddr().Port()
}

// Dropped counts datagrams that were not delivered or not sent, by reason.
func (u *Underlay) Dropped() map[string]uint64 { return u.drops.Map() }
