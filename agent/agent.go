// Package agent is the daemon on a node: it holds the tunnel, follows the
// netmap that a hub sends, sets up the host's network for it, reports status
// and inventory, and serves debug endpoints.
//
//	a, err := agent.New(cfg)
//	err = a.Run(ctx)
//
// What it decides alone, before any hub and against one: which prefixes are
// routed (netmapcheck), which keys are a peer's, how long a netmap is good
// without a hub. Interface, routes and rules outlive it, so that a stopped
// agent fails closed.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"causeway/agent/clock"
	"causeway/agent/config"
	"causeway/agent/control"
	"causeway/agent/debug"
	"causeway/agent/desired"
	"causeway/agent/health"
	"causeway/agent/identity"
	"causeway/agent/inventory"
	"causeway/agent/onhost"
	"causeway/agent/repair"
	"causeway/agent/upgrade"
	"causeway/netns"
	"causeway/protocol"
	"causeway/tunnel"
)

// Config is what an Agent is made of.
type Config struct {
	Store    *identity.Store // of a joined node; stays the caller's to close
	Settings config.Config
	Socket   string // debug socket; empty: that of Settings
	Version  string
	Log      zerolog.Logger
	Logs     *debug.Logs // behind Log, so that it can be followed; may be nil
	// UpgradeDir is where root tells of upgrades; empty: upgrade.DefaultDir.
	UpgradeDir string
}

// Tunnel is the agent's use of tunnel.Node.
type Tunnel interface {
	Run(context.Context) error
	Ready() <-chan struct{}
	SetKeys([]tunnel.OwnKey) error
	SetHubs([]tunnel.NodeHub) error
	SetPeers([]tunnel.NodePeer) error
	SetLocal([]netip.Prefix)
	Candidates() []netip.AddrPort
	Paths() []protocol.PathStatus
	View(protocol.NodeNumber) (protocol.PathView, bool)
	Ways(protocol.NodeNumber) []protocol.Way
	Suspects() []protocol.SuspectPath
	SetInterface(there bool)
	HubBound(protocol.NodeNumber) bool
	Port() uint16 // UDP, once it is ready
	HubRestarted() <-chan protocol.NodeNumber
	CandidatesChanged() <-chan struct{}
	HubsChanged() <-chan struct{}
	UDPBlocked() bool
	EngineName() string
	Dropped() map[string]uint64
	Drops() protocol.Drops
	Reattach() (made bool, err error)
	Device() tunnel.Device
	Inject(packet []byte) error
}

// Host is the agent's use of netns.Host: what is kept on it, and what is looked at.
type Host interface {
	onhost.Host
	Found(context.Context, netns.Config) ([]string, error)
	Flow(context.Context, netns.Plan, netns.Flow) protocol.FlowEvidence
	Pod(context.Context, netns.Flow) *protocol.PodEvidence
	Way(to netip.Addr, mark uint32) (link, learned int)
	Disk() *protocol.DiskSpace
	AccessDrops(context.Context) (map[string]uint64, error)
}

// Agent is a running or startable agent.
type Agent struct {
	cfg     Config
	log     zerolog.Logger
	own     *identity.Own
	boot    protocol.BootID
	started time.Time
	ready   chan struct{}
	stop    context.CancelCauseFunc // ends Run; set by Run

	tunnel    Tunnel
	net       Host // for looks at it
	host      *onhost.Keeper
	incidents *repair.Log
	dial      func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error)
	lookup    func(ctx context.Context, host string) ([]netip.Addr, error)
	now       func() time.Time  // the wall clock
	booted    func() clock.Boot // the boot clock
	want      *desired.Desired
	board     *health.Board
	control   *control.Client
	facts     *inventory.Collector
	inv       *inventory.Publisher
	debug     *debug.Server
	metrics   *metrics

	names       *names                 // where hubs' names led
	proxied     bool                   // streams may go through a proxy
	dnsError    atomic.Pointer[string] // of the last lookup of hubs' names; nil: it succeeded
	hubsSilent  chan struct{}          // a hub that has a name answers over UDP no more
	fetchList   listFetch              // over HTTPS
	listChanged <-chan struct{}        // the hub list did
	live        *config.Live

	keysDue chan struct{} // look at the keys now

	measuring chan struct{}   // holds one while a measurement goes on
	runCtx    context.Context // of Run: what outlives the request that began it

	// For gather alone: what paths had carried, and their rates then.
	carried map[protocol.NodeNumber]carried
	rates   map[protocol.NodeNumber][2]uint64

	// Of apply, with applyMu.

	mu         sync.Mutex
	hubSays    string // why a hub gives no session, by its own word
	newest     newest
	acked      string // what was last told to the hub of result, as text
	ackedApply uint64 // of which apply
	hub        protocol.NodeNumber
	hubVersion string
	endSession context.CancelCauseFunc // of the control session; nil: there is none
	saidNext   bool                    // the last hello named the next key
	sayOld     bool                    // the hub did not take the next key: hellos name the present one
	refusedKey string                  // why it did not
	nextFirst  bool                    // the next key is tried before the present one
	unread     *protocol.UpgradeStatus // said of a wish while root's result does not read
	upgraded   *protocol.UpgradeStatus // the last upgrade that was asked for; replaced, never changed
}

// errLeft ends Run after a leave.
var errLeft = errors.New("left")

// New checks cfg and reads the state directory. It opens nothing else.
func New(cfg Config) (*Agent, error) {
	id, err := cfg.Store.Identity()
	if err != nil {
		return nil, err
	}
	boot, err := protocol.NewBootID()
	if err != nil {
		return nil, fmt.Errorf("make boot id: %w", err)
	}
	t := cfg.Settings.Tunnel
	overlay := id.Overlay
	port, err := cfg.Store.Port()
	if err != nil { // any will do
		cfg.Log.Warn().Err(err).Msg("cannot read the port of the last run, another one is taken")
	}
	proxy := proxyFor(cfg.Settings, id.Joined)
	where := newNames(cfg.Store, lookup, cfg.Log)
	node, err := tunnel.NewNode(tunnel.NodeConfig{
		Number: id.Number, PrivateKey: id.WireGuardKey, BootID: boot, KeyEpoch: id.KeyEpoch,
		Interface: t.Interface, MTU: t.MTU, ListenPort: t.ListenPort, LastPort: port, Mark: netns.DefaultMark, Engine: t.Engine, Queues: t.Queues, UAPI: t.UAPI, PrivateCandidates: t.PrivateCandidates, Proxy: proxy, Lookup: where.lookup,
		Log: cfg.Log,
		Excluded: func(ifname string, a netip.Addr) bool {
			return ifname == t.Interface || containerInterface(ifname, netns.LeadsOut) || containsAddr(overlay, a)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("set up tunnel: %w", err)
	}
	return build(cfg, id, boot, node, netns.NewHost(cfg.Store.Dir(), cfg.Log),
		dialer(func() string { return node.Device().Name }), where)
}

// build puts an agent together; tests give it doubles.
func build(cfg Config, id identity.Identity, boot protocol.BootID, t Tunnel, h Host,
	dial func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error),
	where *names) (*Agent, error) {
	if cfg.Socket == "" {
		cfg.Socket = cfg.Settings.Debug.Socket
	}
	if cfg.UpgradeDir == "" {
		cfg.UpgradeDir = upgrade.DefaultDir
	}
	a := &Agent{cfg: cfg, log: cfg.Log.With().Str("node", id.Name).Str("site", id.Site).Logger(), boot: boot,
		started: time.Now().UTC(), ready: make(chan struct{}), tunnel: t, net: h, dial: dial, lookup: where.ask, names: where, hubsSilent: make(chan struct{}, 1), now: time.Now, booted: clock.ThisBoot,
		keysDue: make(chan struct{}, 1), measuring: make(chan struct{}, 1), fetchList: listFetcher(proxyFor(cfg.Settings, id.Joined), where.lookup), rates: map[protocol.NodeNumber][2]uint64{}}
	_, given := ownProxy(cfg.Settings)
	a.proxied = given || id.Joined != nil && id.Joined.Proxy != ""
	a.live = config.NewLive(cfg.Settings)
	a.board = health.New(a.started, a.conditionChanged,
		health.Spec{Name: health.Tunnel, Cause: "starting"},
		health.Spec{Name: health.Hub, Cause: "no hub has answered yet", DependsOn: []string{health.Tunnel}},
		health.Spec{Name: health.Control, Cause: "not connected yet", DependsOn: []string{health.Hub}},
		health.Spec{Name: health.NATS, Cause: "not connected yet", DependsOn: []string{health.Control}},
		health.Spec{Name: health.Netmap, Cause: "no netmap yet", DependsOn: []string{health.Control}},
		health.Spec{Name: health.Routes, Cause: "not applied yet", DependsOn: []string{health.Tunnel}},
		health.Spec{Name: health.Firewall, Cause: "not looked at yet", DependsOn: []string{health.Routes}},
		health.Spec{Name: health.State}, health.Spec{Name: health.Keys}, health.Spec{Name: health.Repair}, health.Spec{Name: health.Clock},
		health.Spec{Name: health.Held}, health.Spec{Name: health.Local}, health.Spec{Name: health.Paths}, health.Spec{Name: health.HubList, DependsOn: []string{health.Control}})
	for _, c := range []string{health.State, health.Keys, health.Repair, health.Clock, health.Held, health.Local, health.Paths, health.HubList} {
		a.board.Set(c, "")
	}
	a.own = identity.NewOwn(cfg.Store, id, func(err error) { a.board.SetError(health.State, err) })
	if err := a.load(); err != nil {
		return nil, err
	}
	if err := t.SetKeys(a.ring()); err != nil {
		return nil, err
	}
	incidents, err := repair.OpenLog(cfg.Store.IncidentFile(), a.now())
	if err != nil {
		a.log.Warn().Err(err).Msg("incidents")
	}
	a.incidents = incidents
	if a.host, err = onhost.New(onhost.Config{Store: cfg.Store, Own: a.own, Live: a.live, Want: a.want, Board: a.board, Tunnel: t, Host: h, Incidents: incidents, Now: func() time.Time { return a.now() },
		Mended: func(kind string) { a.metrics.mended(kind) }, GaveUp: func(kind string) { a.metrics.gaveUp(kind) }, Log: a.log}); err != nil {
		return nil, err
	}
	a.facts = inventory.NewCollector(cfg.Settings.Inventory)
	a.inv = inventory.New(inventory.PublisherConfig{Facts: a.gather, Changes: a.facts.Changes(), Number: id.Number, Site: id.Site, Boot: boot, File: cfg.Store.InventoryFile(), Incidents: incidents,
		Report: func(err error) { a.board.SetError(health.NATS, err); a.metrics.published(err) }, Log: a.log})
	a.control = control.New(control.Config{Number: id.Number, Hello: a.hello, Prove: a.prove, Welcome: a.welcome, Ended: func() { a.want.SessionEnded() }, Netmap: a.takeNetmap, HubList: a.hubListTold, Mark: a.want.TakeMark, Status: a.status,
		NATS: a.inv.Run, Debug: func(c net.Conn) { a.debug.ServeConn(c) }, Bulk: a.bulk, Log: a.log})
	reg := prometheus.NewRegistry()
	a.metrics = newMetrics(a, reg)
	a.debug = debug.New(debug.Config{Status: a.debugStatus, Peers: a.debugPeers, Paths: a.tunnel.Paths, Netmap: a.debugNetmap,
		Routes: a.debugRoutes, Ping: a.ping, Trace: a.trace, Evidence: a.evidence, MeasureOffer: a.measureOffer, MeasureRun: a.measureRun, Capture: a.capture, Leave: a.leave, Repair: a.host.Repair, Release: a.release, Hubs: a.debugHubs, SetHubs: a.setHubs, Incidents: incidents.Newest, RotateKey: a.rotateByHand, Flows: debug.ReadFlows,
		Logs: cfg.Logs, Allow: cfg.Settings.Debug.Allow, Deny: cfg.Settings.Debug.Deny, Used: a.debugUsed, Metrics: reg})
	return a, nil
}

// load reads what an earlier run has left.
func (a *Agent) load() (err error) {
	a.want, err = desired.New(desired.Config{Store: a.cfg.Store, Own: a.own, Live: a.live, Board: a.board, Log: a.log,
		Wall: func() time.Time { return a.now() }, Boot: func() clock.Boot { return a.booted() }})
	if err != nil {
		return err
	}
	a.listChanged = a.want.WatchHubs()
	return nil
}

// Ready is closed when the tunnel is up and what was known of the netmap is
// applied. It does not wait for a hub.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run works until ctx ends, or until a leave was asked for over the debug
// socket; both return nil.
func (a *Agent) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	a.stop, a.runCtx = stop, ctx
	l, err := debug.Listen(ctx, a.cfg.Socket)
	if err != nil {
		return err
	}
	public, err := debug.ListenPublic(ctx, a.cfg.Settings.Debug.Metrics)
	if err != nil {
		l.Close()
		return err
	}
	a.log.Info().Uint32("number", uint32(a.own.Now().Number)).Str("version", a.cfg.Version).Str("iface", a.cfg.Settings.Tunnel.Interface).
		Str("engine", a.tunnel.EngineName()).Msg("agent starts")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.debug.Run(ctx, l, public) })
	// The tunnel ends after the control session, which it carries.
	tunnelCtx, stopTunnel := context.WithCancel(context.WithoutCancel(ctx))
	defer stopTunnel()
	g.Go(func() error {
		err := a.tunnel.Run(tunnelCtx)
		if ctx.Err() != nil || tunnelCtx.Err() != nil {
			return nil
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		return fmt.Errorf("run tunnel: %w", err)
	})
	g.Go(func() error { return a.resolveLoop(ctx) })
	g.Go(func() error {
		defer stopTunnel()
		select {
		case <-ctx.Done():
			return nil
		case <-a.tunnel.Ready():
		}
		a.board.Set(health.Tunnel, "")
		if port := a.tunnel.Port(); port != 0 {
			// A full disk is told of elsewhere, and this is no reason to end.
			if err := a.cfg.Store.SavePort(port); err != nil {
				a.log.Warn().Err(err).Msg("cannot keep the tunnel's port for the next run")
			}
		}
		a.host.Start(ctx)
		if ctx.Err() != nil {
			return nil
		}
		close(a.ready)
		a.log.Info().Str("iface", a.cfg.Settings.Tunnel.Interface).Msg("tunnel is up")
		for _, t := range a.tasks() {
			g.Go(func() error { return t.run(ctx) })
		}
		return a.controlLoop(ctx)
	})
	err = g.Wait()
	a.want.Confirm(true)
	if errors.Is(context.Cause(ctx), errLeft) {
		a.log.Info().Msg("this node has left")
		return nil
	}
	if err == nil {
		a.log.Info().Msg("agent stops; interface, routes and rules stay")
	}
	return err
}

// conditionChanged logs a condition and tells the hub.
func (a *Agent) conditionChanged(c protocol.Condition) {
	if c.OK {
		e := a.log.Info().Str("condition", c.Name)
		if c.Note != "" {
			e = e.Str("note", c.Note)
		}
		e.Msg("condition holds")
	} else {
		a.log.Warn().Str("condition", c.Name).Str("cause", c.Cause).Msg("condition does not hold")
	}
	if a.control != nil {
		a.control.Changed()
	}
}

// engineInterface is how container engines and hypervisors call what they make.
var engineInterface = regexp.MustCompile(`^(docker(\d+|_gwbridge)|br-[0-9a-f]{12}|cni-?(podman)?\d+|podman\d+|nerdctl\d+|veth|virbr\d+|vnet\d+|tap\d+|cali|flannel|cilium|lxc|lxd|incus|kube-)`)

// containerInterface reports whether an interface belongs to containers or
// virtual machines of this host: its addresses reach nobody outside. What the host's default
// route leads by is none, whatever it is called.
func containerInterface(name string, leadsOut func(string) bool) bool {
	return engineInterface.MatchString(name) && !leadsOut(name)
}

func containsAddr(l []netip.Addr, a netip.Addr) bool {
	for _, x := range l {
		if x == a.Unmap() {
			return true
		}
	}
	return false
}
