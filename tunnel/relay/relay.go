// Package relay is the hub's switchboard: it forwards WireGuard's ciphertext
// between nodes by the node numbers in the reserved bytes, from and to
// addresses that probes have bound, and hands the hub's own datagrams to the
// hub's device. It knows no session and keeps none.
package relay

import (
	"cmp"
	"errors"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"causeway/protocol"
	"causeway/tunnel/underlay"
	"causeway/tunnel/underlay/handshake"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
)

// Config configures a switchboard. All but OnRestart and what follows it are needed.
type Config struct {
	Self       protocol.NodeNumber
	PrivateKey protocol.WireGuardPrivateKey
	BootID     protocol.BootID
	// Listen is where to listen, by UDP. An unspecified address means all of the
	// host's, and what comes to one is answered from it; the IPv6 one takes IPv4
	// too. Port 0: any free port.
	Listen netip.AddrPort
	// Loops is how many sockets share the port, each with a goroutine of its own,
	// besides one more that sends control alone; 0: as many as there are
	// processors, at most 8.
	Loops  int
	Limits Limits

	// NewReader is called once for each socket and stream. What it returns is
	// called by that one's goroutine alone.
	NewReader func() underlay.Receiver
	// OnRestart is called when a node has proven a new boot id, before anything
	// that its new run sent is delivered: forget all its sessions. It must not
	// call the relay, but for Send.
	OnRestart func(protocol.NodeNumber, protocol.BootID)
	// NoOffload leaves UDP_GRO and UDP_SEGMENT unused.
	NoOffload bool
	// SocketBuffer is how many bytes each socket may buffer each way; 0: sock's
	// default.
	SocketBuffer int
	// Inherited are the sockets that an earlier run's Hold took. Those of Listen
	// are used, all are closed.
	Inherited []*os.File
	// Hold is given copies of the sockets, which it may not use after it returns.
	// If somebody holds them from then on, so that what comes after this run waits
	// for the next, it returns true. Nil: nobody does.
	Hold func([]*os.File) bool

	Log zerolog.Logger
}

// Node is a node as the switchboard knows it.
type Node struct {
	Number protocol.NodeNumber
	Key    protocol.WireGuardPublicKey
	Class  *Class // with whom the relay forwards for it; nil: Everybody
}

// Stats is what the switchboard did since Run began.
type Stats struct {
	Bound     int    // nodes with a bound address
	Datagrams uint64 // forwarded
	Bytes     uint64 // forwarded
	Dropped   map[string]uint64
}

// Reasons for which datagrams are dropped; those of probes are probe.Reason.
const (
	DropMalformed = "malformed"
	DropUnbound   = "unbound_source"
	DropAddressee = "unknown_addressee"
	DropForbidden = "forbidden_pair"
	DropNowhere   = "addressee_not_bound"
	DropCrossed   = "crossed_initiation"
	DropSend      = "send_error"
	DropFull      = "send_buffer_full"
	DropNode      = "limit_node"    // the sender's limit
	DropPair      = "limit_pair"    // the pair's limit
	DropBound     = "limit_object"  // a limit that operators declared: see SetBounds
	DropControl   = "limit_control" // more probes and handshakes than any node needs
	DropHub       = "limit_hub"     // more for the hub itself than any node needs
)

// DropReasons are the reasons that can be expected on any network.
var DropReasons = []string{DropMalformed, DropUnbound, DropAddressee, DropForbidden, DropNowhere, DropCrossed, DropSend, DropFull, DropNode, DropPair, DropBound, DropControl, DropHub,
	string(probe.Malformed), string(probe.Misaddressed), string(probe.UnknownSender), string(probe.Unauthenticated), string(probe.Replayed), string(probe.Limited)}

// Relay is the switchboard. Its methods may be called concurrently, and before Run.
type Relay struct {
	cfg     Config
	ready   chan struct{}
	changed chan struct{}
	wake    chan struct{}
	conn    atomic.Pointer[sock.Conn] // never sends data, so that its buffer has room for control
	data    atomic.Pointer[sock.Conn] // the first loop's
	table   *handshake.Table
	drops   underlay.Drops
	streams streams

	datagrams, bytes atomic.Uint64

	start time.Time
	pair  rate
	node  rate

	nodes  atomic.Pointer[map[protocol.NodeNumber]*entry]
	bounds atomic.Pointer[bounds]
	byAddr table[owner] // of bound addresses; changed under mu

	mu     sync.Mutex // guards what follows, and restarts
	binder *probe.Binder
	out    probe.Output
}

// entry is a node as the fast path sees it.
type entry struct {
	number protocol.NodeNumber
	class  *Class
	bound  atomic.Pointer[[]probe.Place] // the one to send to first
	meters *meters
}

// owner is who has an address, and where what comes from it is counted.
type owner struct {
	*entry
	tally *probe.Tally
}

// New checks cfg. It opens nothing.
func New(cfg Config) (*Relay, error) {
	if cfg.NewReader == nil {
		return nil, errors.New("relay: no NewReader")
	}
	if !cfg.Self.Valid() || cfg.PrivateKey.IsZero() || cfg.BootID == (protocol.BootID{}) {
		return nil, errors.New("relay: node number, private key or boot id is missing")
	}
	if cfg.Loops < 0 {
		return nil, errors.New("relay: negative number of loops")
	}
	if !cfg.Listen.Addr().IsValid() {
		return nil, errors.New("relay: no address to listen on")
	}
	r := &Relay{cfg: cfg, ready: make(chan struct{}), changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		start: time.Now(), node: newRate(cfg.Limits.Node), pair: newRate(cfg.Limits.Pair)}
	r.binder = probe.NewBinder(probe.Config{Self: cfg.Self, PrivateKey: cfg.PrivateKey, Boot: cfg.BootID}, time.Now())
	r.table = handshake.New(cfg.Self, r.sendHandshake, func() { signal(r.wake) })
	r.nodes.Store(&map[protocol.NodeNumber]*entry{})
	r.bounds.Store(&bounds{})
	return r, nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Ready is closed when the socket is open.
func (r *Relay) Ready() <-chan struct{} { return r.ready }

// LocalAddr is the socket's address; invalid before Ready and after Run.
func (r *Relay) LocalAddr() netip.AddrPort {
	if c := r.conn.Load(); c != nil {
		return c.LocalAddr()
	}
	return netip.AddrPort{}
}

// SetKeys replaces the hub's own static keys, of which there is at least one.
// All are good.
func (r *Relay) SetKeys(keys []underlay.OwnKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.binder.SetKeys(keys)
}

// SetNodes replaces the nodes. A node that is left out loses its binding at once.
func (r *Relay) SetNodes(nodes []Node) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := *r.nodes.Load()
	l := make([]probe.Node, len(nodes))
	m := make(map[protocol.NodeNumber]*entry, len(nodes))
	for i, n := range nodes {
		l[i] = probe.Node{Number: n.Number, Key: n.Key}
		e := &entry{number: n.Number, class: cmp.Or(n.Class, Everybody)}
		if o := old[n.Number]; o != nil {
			e.meters = o.meters
		} else {
			e.meters = new(meters)
		}
		m[n.Number] = e
	}
	if err := r.binder.SetNodes(time.Now(), l, &r.out); err != nil {
		return err
	}
	r.out.Routes = nil // all are made anew
	byAddr := map[netip.AddrPort]*owner{}
	for n, e := range m {
		places := r.binder.Places(n)
		e.bound.Store(&places)
		for _, a := range places {
			byAddr[a.To] = &owner{e, a.Tally}
		}
		e.meters.keep(func(n protocol.NodeNumber) bool { return m[n] != nil })
	}
	for n := range old {
		if m[n] == nil {
			r.table.Forget(n)
		}
	}
	r.nodes.Store(&m)
	r.byAddr.replace(byAddr)
	if r.out.Changed {
		r.out.Changed = false
		signal(r.changed)
	}
	return nil
}

// withdraw hides a node's bindings from the fast path. r.mu is held.
func (r *Relay) withdraw(n protocol.NodeNumber) {
	e := (*r.nodes.Load())[n]
	if e == nil {
		return
	}
	for _, a := range *e.bound.Load() {
		if b := r.byAddr.get(a.To); b != nil && b.entry == e {
			r.byAddr.set(a.To, nil)
		}
	}
	e.bound.Store(new([]probe.Place))
}

// publish makes bindings visible to the fast path and returns what is left to
// do. r.mu is held.
func (r *Relay) publish() probe.Output {
	out := r.out
	r.out = probe.Output{}
	if !out.Changed {
		return out
	}
	for _, n := range out.Routes {
		r.withdraw(n)
	}
	for _, n := range out.Routes {
		if e := (*r.nodes.Load())[n]; e != nil {
			places := r.binder.Places(n)
			e.bound.Store(&places)
			for _, a := range places {
				r.byAddr.set(a.To, &owner{e, a.Tally})
			}
		}
	}
	signal(r.changed)
	return out
}

// Send implements the engine's Carrier for the hub's own device: plain
// WireGuard (zeros) to the address that the node named. Handshake messages go
// to every bound address and again until they are answered; those that come before
// Run has opened the sockets wait for it.
func (r *Relay) Send(to protocol.NodeNumber, datagrams []byte, segment int) error {
	if r.conn.Load() == nil && !handshake.Is(datagrams) {
		return underlay.ErrNotRunning
	}
	e := (*r.nodes.Load())[to]
	if e == nil {
		return underlay.ErrUnknownPeer
	}
	if len(datagrams) < protocol.MinTransportSize {
		return nil
	}
	if segment <= 0 || segment > len(datagrams) {
		segment = len(datagrams)
	}
	if handshake.Is(datagrams) {
		for b := datagrams; len(b) > 0; b = b[min(segment, len(b)):] {
			r.table.Sent(time.Now(), to, b[:min(segment, len(b))])
		}
		return nil
	}
	places := *e.bound.Load()
	if len(places) == 0 {
		return underlay.ErrNoPath
	}
	return r.write(places[0], datagrams, segment)
}

func (r *Relay) sendHandshake(to protocol.NodeNumber, msg []byte) {
	e := (*r.nodes.Load())[to]
	if e == nil {
		return
	}
	for _, a := range *e.bound.Load() {
		if err := r.write(a, msg, len(msg)); err != nil {
			r.cfg.Log.Debug().Uint32("number", uint32(to)).Stringer("addr", a.To).Err(err).Msg("handshake message not sent")
		}
	}
}

// Bound lists the addresses bound for a node, the one that is sent to first.
func (r *Relay) Bound(n protocol.NodeNumber) []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.binder.Bound(n)
}

// Proven is when node n last proved an address; zero: it is bound nowhere.
func (r *Relay) Proven(n protocol.NodeNumber) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.binder.Proven(n)
}

// BoundChanged receives (coalesced) when any node's bound addresses change.
func (r *Relay) BoundChanged() <-chan struct{} { return r.changed }

// Stats returns the counters.
func (r *Relay) Stats() Stats {
	s := Stats{Datagrams: r.datagrams.Load(), Bytes: r.bytes.Load(), Dropped: r.drops.Map()}
	for _, e := range *r.nodes.Load() {
		if b := e.bound.Load(); len(*b) > 0 {
			s.Bound++
		}
	}
	return s
}
