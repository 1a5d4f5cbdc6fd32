// Package onhost is what a node keeps on its host: addresses, routes, rules and walls as the
// netmap has them, the peers that the tunnel may talk to, what is closed and what stays the host's
// own, and the repair of what others change of it.
//
//	k, err := onhost.New(cfg)
//	k.Start(ctx)      // what is wanted, as it is known, is applied
//	out := k.Apply(ctx)
//	f := k.Facts()    // of the last apply
//
// It asks package desired what is wanted, and knows no hub: whoever has one reads Applied and Remade.
package onhost

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"causeway/agent/config"
	"causeway/agent/desired"
	"causeway/agent/health"
	"causeway/agent/held"
	"causeway/agent/identity"
	"causeway/agent/items"
	"causeway/agent/netmapcheck"
	"causeway/agent/repair"
	"causeway/netns"
	"causeway/netns/look"
	svc "causeway/netns/service"
	"causeway/protocol"
	"causeway/tunnel"
)

// Tunnel is the use of tunnel.Node here.
type Tunnel interface {
	SetPeers([]tunnel.NodePeer) error
	SetLocal([]netip.Prefix)
	SetInterface(there bool)
	Paths() []protocol.PathStatus
	Device() tunnel.Device
	Reattach() (made bool, err error)
	Inject(packet []byte) error
}

// Host is the use of netns.Host here.
type Host interface {
	Apply(context.Context, netns.Plan) error
	ForeignRoutes(context.Context, netns.Config) ([]netns.Foreign, error)
	Gateways(context.Context, netns.Config) ([]netip.Addr, error)
	Ranges(context.Context, netns.Config) ([]netip.Prefix, error)
	Apart(context.Context, netns.Config) ([]netip.Addr, error)
	Uses(context.Context, netns.Config) (netns.Uses, error)
	RouteMTUs(context.Context, netns.Config) (map[netip.Prefix]int, error)
	Watch(context.Context) (<-chan []netns.Change, error)
	Drift(context.Context, ...netns.Kind) ([]netns.Drift, error)
	Mend(context.Context, []netns.Drift) error
	PutRight() []netns.Drift
	AccessDrops(context.Context) (map[string]uint64, error)
}

// Look is the use of look.Host here.
type Look interface {
	ForwardBlockedBy(context.Context) (string, error)
	Try(context.Context, look.Inject) (look.Trial, error)
	Passing() ([]look.Passing, error)
}

// Config is what a Keeper is made of.
type Config struct {
	Store     *identity.Store
	Own       *identity.Own
	Live      *config.Live
	Want      *desired.Desired
	Board     *health.Board
	Tunnel    Tunnel
	Host      Host
	Look      Look
	Incidents *repair.Log
	Services  *svc.Table       // of the host; whoever leads services' traffic switches it
	Now       func() time.Time // the wall clock, for what people read
	// Mended and GaveUp hear of each repair, and of each subject that is changed again and again.
	Mended, GaveUp func(kind string)
	Log            zerolog.Logger
}

// Keeper keeps a host as it shall be. Its methods may be called concurrently.
type Keeper struct {
	log      zerolog.Logger
	store    *identity.Store
	own      *identity.Own
	live     *config.Live
	want     *desired.Desired
	board    *health.Board
	tunnel   Tunnel
	host     Host
	look     Look
	services *svc.Table
	now      func() time.Time
	applied  chan Outcome
	remade   chan struct{}

	firewallDue  chan struct{} // the firewalls are to be looked at
	firewallShut bool          // the last trial was blocked; FollowFirewall's alone
	hadDevice    atomic.Bool   // the tunnel had one
	facts        atomic.Pointer[Facts]
	readers      []chan struct{} // of the facts
	passing      passing

	mu         sync.Mutex // one at a time changes tunnel and host, and what is known of them
	walled     bool       // what nftables drop is dropped, as of the last apply
	fought     bool       // but others take that down, and no peer is reached
	bookNew    bool       // there was none at the start: what the stored netmap routes was so before
	bookLost   bool       // none could be read at the start
	bookStored bool       // it is on disk
	applies    uint64
	repairs    *repairs
}

// Facts are how the host is, as the last apply left it. Nothing that they point to is ever changed.
type Facts struct {
	Result   netmapcheck.Result
	Plan     netns.Plan
	Ranges   func() *held.Cover // what the plan routes or holds closed, made at the first question
	Errors   []string
	Expired  bool // the netmap was too old
	Apart    []held.Exception
	Items    []items.Held
	Services []items.Service             // of a netmap that is too old too: names stay what they were
	Site     string                      // the node's
	Serial   uint64                      // counts the applies
	Owned    *netmapcheck.Owned          // what the host had of its own then; nil: not known
	Book     held.Book                   // what was ever routed
	MTUs     map[protocol.NodeNumber]int // of peers' paths, as routes have them
}

// New reads what an earlier run held, and changes nothing. Its error is a shortage.
func New(cfg Config) (*Keeper, error) {
	k := &Keeper{log: cfg.Log, store: cfg.Store, own: cfg.Own, live: cfg.Live, want: cfg.Want, board: cfg.Board, tunnel: cfg.Tunnel, host: cfg.Host, look: cfg.Look, services: cfg.Services, now: cfg.Now,
		applied: make(chan Outcome, 1), remade: make(chan struct{}, 1), firewallDue: make(chan struct{}, 1)}
	k.facts.Store(&Facts{Ranges: rangesOf(netns.Plan{})})
	k.repairs = newRepairs(k, cfg)
	return k, k.loadBook()
}

// Facts are how the host is. They are there without waiting for it.
func (k *Keeper) Facts() Facts { return *k.facts.Load() }

// rangesOf are tens of thousands: for who asks, once for each plan.
func rangesOf(p netns.Plan) func() *held.Cover {
	return sync.OnceValue(func() *held.Cover { return held.NewCover(p.Routes, p.Held) })
}

// learn changes the facts. k.mu is held.
func (k *Keeper) learn(change func(*Facts)) {
	f := k.Facts()
	change(&f)
	k.facts.Store(&f)
	for _, c := range k.readers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// WatchFacts returns a channel that gets something when the facts are others. It is for one reader.
func (k *Keeper) WatchFacts() <-chan struct{} {
	c := make(chan struct{}, 1)
	k.mu.Lock()
	k.readers = append(k.readers, c)
	k.mu.Unlock()
	return c
}

// Start takes over what an earlier run left on the host, and applies what is wanted.
func (k *Keeper) Start(ctx context.Context) {
	k.recallMTUs(ctx)
	k.recallRanges(ctx)
	k.Reapply(ctx)
}

// Outcome is what became of an apply.
type Outcome struct {
	Number uint64 // ascending: the outcome of a lower one is outdated
	Ack    protocol.NetmapAck
}

// Apply makes tunnel and host match what is wanted. What others changed meanwhile is mended first, as
// such.
func (k *Keeper) Apply(ctx context.Context) (out Outcome) {
	k.ApplyWith(ctx, func() bool { return true }, func(o Outcome) { out = o })
	return out
}

// ApplyWith is Apply of what change makes of what is wanted; done hears of the outcome. No other apply
// comes between the three. If change returns false nothing is applied.
func (k *Keeper) ApplyWith(ctx context.Context, change func() bool, done func(Outcome)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.repairs.first(ctx)
	if !change() {
		return
	}
	ack := k.apply(ctx)
	k.applies++
	done(Outcome{k.applies, ack})
}

// Reapply is Apply once more, as after a change on the host: the outcome comes by Applied.
func (k *Keeper) Reapply(ctx context.Context) {
	out := k.Apply(ctx)
	for {
		select {
		case k.applied <- out:
			return
		case <-k.applied: // nobody has heard of the one before, which is outdated
		}
	}
}

// Applied gives the outcome of the last Reapply.
func (k *Keeper) Applied() <-chan Outcome { return k.applied }

// Remade gives something when the tunnel's device was made anew: what is bound to it is dead.
func (k *Keeper) Remade() <-chan struct{} { return k.remade }

// alivePoll is how often Hold looks whether a change is done.
const alivePoll = 20 * time.Millisecond

// Hold keeps the host as it is until release is called: no change is half done. It fails if ctx
// ends while one does not end.
func (k *Keeper) Hold(ctx context.Context) (release func(), err error) {
	for !k.mu.TryLock() {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("a change to the host's network does not end: %w", ctx.Err())
		case <-time.After(alivePoll):
		}
	}
	return k.mu.Unlock, nil
}

// MTU is what a peer's path carries inside, as routes have it; 0: not known.
func (k *Keeper) MTU(peer protocol.NodeNumber) int { return k.Facts().MTUs[peer] }

// setMTUsOfPaths has the routes to peers have these from the next apply on.
func (k *Keeper) setMTUsOfPaths(m map[protocol.NodeNumber]int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.learn(func(f *Facts) { f.MTUs = maps.Clone(m) })
}
