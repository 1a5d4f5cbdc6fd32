// Package hublink is which hub the agent talks to: where hubs are sought, the control session with
// one that answers, this node's keys and their rotation, and what is heard of a hub that gives no
// session.
//
//	l, err := hublink.New(cfg)
//	err = l.Run(ctx, serve) // a session after the other, with the tasks of Resolve and Follow…
//
// It brings what a hub wishes to packages desired and onhost, and tells the hub what became of it.
package hublink

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"causeway/agent/config"
	"causeway/agent/control"
	"causeway/agent/desired"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/agent/onhost"
	"causeway/agent/repair"
	"causeway/protocol"
	"causeway/tunnel"
)

// Tunnel is the use of tunnel.Node here.
type Tunnel interface {
	Ready() <-chan struct{}
	SetKeys([]tunnel.OwnKey) error
	SetHubs([]tunnel.NodeHub) error
	Candidates() []netip.AddrPort
	Paths() []protocol.PathStatus
	Ways(protocol.NodeNumber) []protocol.Way
	Suspects() []protocol.SuspectPath
	HubBound(protocol.NodeNumber) bool
	HubRestarted() <-chan protocol.NodeNumber
	CandidatesChanged() <-chan struct{}
	HubsChanged() <-chan struct{}
	UDPBlocked() bool
	EngineName() string
}

// Config is what a Link is made of.
type Config struct {
	Own       *identity.Own
	Live      *config.Live
	Want      *desired.Desired
	Host      *onhost.Keeper
	Board     *health.Board
	Tunnel    Tunnel
	Incidents *repair.Log
	Names     *Names    // where hubs' names led
	Fetch     ListFetch // over HTTPS
	// Dial connects through the tunnel, from an overlay address.
	Dial    func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error)
	Now     func() time.Time // the wall clock, for what people read
	Boot    protocol.BootID
	Version string
	// Services is what was found of backends beside this node.
	Services func() []protocol.ServiceReadiness
	// Fences are services that this node keeps from serving.
	Fences func() []protocol.ServiceFence
	// Contact hears when this node said something that a hub has heard since, by Clock, which goes on while the host sleeps.
	Contact func(time.Duration)
	Clock   func() time.Duration
	// Due gets something, without waiting, when the hub should have a status.
	Due chan struct{}
	// Upgrade is what is told of upgrades; nil: nothing.
	Upgrade func() *protocol.UpgradeStatus
	// Announces hears that the node announces other routes than before.
	Announces func()
	// NATS runs beside a session: see control.Config.
	NATS func(ctx context.Context, open func(context.Context) (net.Conn, error))
	// Began and Ended hear of sessions that a hub welcomed, and of those and attempts that ended.
	Began, Ended func()
	Log          zerolog.Logger
}

// Link is the agent's end of what is between it and its hubs. Its methods may be called
// concurrently.
type Link struct {
	own       *identity.Own
	live      *config.Live
	want      *desired.Desired
	host      *onhost.Keeper
	board     *health.Board
	tunnel    Tunnel
	incidents *repair.Log
	names     *Names
	fetch     ListFetch
	dial      func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error)
	now       func() time.Time
	log       zerolog.Logger
	cfg       Config

	control     *control.Client
	proxied     bool                   // streams may go through a proxy
	dnsError    atomic.Pointer[string] // of the last lookup of hubs' names; nil: it succeeded
	hubsSilent  chan struct{}          // a hub that has a name answers over UDP no more
	listChanged <-chan struct{}        // the hub list did
	keysDue     chan struct{}          // look at the keys now

	mu         sync.Mutex // of what is below, in memory: nothing waits under it
	hub        protocol.NodeNumber
	hubVersion string
	hubSays    string                  // why a hub gives no session, by its own word
	endSession context.CancelCauseFunc // of the control session; nil: there is none
	newest     newest
	acked      string // what was last told to the hub of an apply, as text
	ackedApply uint64 // of which
	saidNext   bool   // the last hello named the next key
	sayOld     bool   // the hub did not take the next key: hellos name the present one
	refusedKey string // why it did not
	nextFirst  bool   // the next key is tried before the present one
}

// New gives the tunnel this node's keys, and opens nothing.
func New(cfg Config) (*Link, error) {
	id, settings := cfg.Own.Now(), cfg.Live.Now()
	l := &Link{own: cfg.Own, live: cfg.Live, want: cfg.Want, host: cfg.Host, board: cfg.Board, tunnel: cfg.Tunnel, incidents: cfg.Incidents, names: cfg.Names, fetch: cfg.Fetch, dial: cfg.Dial, now: cfg.Now, log: cfg.Log, cfg: cfg,
		hubsSilent: make(chan struct{}, 1), listChanged: cfg.Want.WatchHubs(), keysDue: make(chan struct{}, 1)}
	_, given := ownProxy(settings)
	l.proxied = given || id.Joined != nil && id.Joined.Proxy != ""
	l.control = control.New(control.Config{Number: id.Number, Due: cfg.Due, Hello: l.hello, Prove: l.prove, Welcome: l.welcome, Ended: cfg.Want.SessionEnded, Netmap: l.TakeNetmap, HubList: l.hubListTold, Mark: cfg.Want.TakeMark,
		Status: l.status, Contact: cfg.Contact, Clock: cfg.Clock, NATS: cfg.NATS, Bulk: l.bulk, Log: cfg.Log})
	if err := l.tunnel.SetKeys(l.ring()); err != nil {
		return nil, err
	}
	return l, nil
}

// Connected reports whether there is a control session.
func (l *Link) Connected() bool { return l.control.Connected() }

// Leave tells the hub that this node leaves. It fails if there is none that could hear it.
func (l *Link) Leave(ctx context.Context) error { return l.control.Leave(ctx) }

// Changed has the hub get a status soon.
func (l *Link) Changed() { l.control.Changed() }

// Hub is the hub that the session is, or is to be, with, and its version; 0: none.
func (l *Link) Hub() (protocol.NodeNumber, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hub, l.hubVersion
}

// Bound is a hub that answers; 0: none does.
func (l *Link) Bound() protocol.NodeNumber { return l.boundHub(0) }

// redial ends the control session, if there is one, so that the next begins at once.
func (l *Link) redial(why error) {
	l.mu.Lock()
	end := l.endSession
	l.mu.Unlock()
	if end != nil {
		end(why)
	}
}

// Reloaded ends the control session, so that the next one tells the hub what was configured anew.
func (l *Link) Reloaded() { l.redial(errReloaded) }
