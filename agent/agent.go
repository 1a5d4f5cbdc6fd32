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
	"causeway/agent/health"
	"causeway/agent/held"
	"causeway/agent/identity"
	"causeway/agent/inventory"
	"causeway/agent/items"
	"causeway/agent/netmapcheck"
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

// Host is the agent's use of netns.Host.
type Host interface {
	Apply(context.Context, netns.Plan) error
	Found(context.Context, netns.Config) ([]string, error)
	ForeignRoutes(context.Context, netns.Config) ([]netns.Foreign, error)
	Gateways(context.Context, netns.Config) ([]netip.Addr, error)
	Ranges(context.Context, netns.Config) ([]netip.Prefix, error)
	Apart(context.Context, netns.Config) ([]netip.Addr, error)
	Uses(context.Context, netns.Config) (netns.Uses, error)
	ForwardBlockedBy(context.Context) (string, error)
	Try(context.Context, netns.Inject) (netns.Trial, error)
	RouteMTUs(context.Context, netns.Config) (map[netip.Prefix]int, error)
	Flow(context.Context, netns.Plan, netns.Flow) protocol.FlowEvidence
	Pod(context.Context, netns.Flow) *protocol.PodEvidence
	Way(to netip.Addr, mark uint32) (link, learned int)
	Disk() *protocol.DiskSpace
	Watch(context.Context) (<-chan []netns.Change, error)
	Drift(context.Context, ...netns.Kind) ([]netns.Drift, error)
	Mend(context.Context, []netns.Drift) error
	PutRight() []netns.Drift
	AccessDrops(context.Context) (map[string]uint64, error)
	Passing() ([]netns.Passing, error)
}

// Names of the health conditions.
const (
	condTunnel   = "tunnel"
	condHub      = "hub"
	condPaths    = protocol.ConditionPaths
	condControl  = "control"
	condNATS     = "nats"
	condNetmap   = "netmap"
	condRoutes   = "routes"
	condFirewall = "firewall"
	condState    = "state"
	condKeys     = "keys"
	condRepair   = "repair"
	condClock    = "clock"
	condHeld     = "held"
	condLocal    = "local"
	condHubList  = "hub_list"
)

// Agent is a running or startable agent.
type Agent struct {
	cfg     Config
	log     zerolog.Logger
	id      identity.Identity // its keys and hub list change: see changeIdentity
	boot    protocol.BootID
	started time.Time
	ready   chan struct{}
	stop    context.CancelCauseFunc // ends Run; set by Run

	tunnel  Tunnel
	host    Host
	dial    func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error)
	lookup  func(ctx context.Context, host string) ([]netip.Addr, error)
	now     func() time.Time  // the wall clock
	booted  func() clock.Boot // the boot clock
	clock   *clock.Clock      // of both: what time it is for all that grows old
	board   *health.Board
	control *control.Client
	facts   *inventory.Collector
	inv     *inventory.Publisher
	debug   *debug.Server
	metrics *metrics
	repairs *repairs
	passing passing

	names       *names                 // where hubs' names led
	proxied     bool                   // streams may go through a proxy
	dnsError    atomic.Pointer[string] // of the last lookup of hubs' names; nil: it succeeded
	hubsSilent  chan struct{}          // a hub that has a name answers over UDP no more
	fetchList   listFetch              // over HTTPS
	listChanged chan struct{}          // the hub list did
	wallDue     chan struct{}          // and the wall is to be around its hubs
	firewallDue chan struct{}          // the firewalls are to be looked at
	live        atomic.Pointer[live]

	keysDue chan struct{} // look at the keys now

	hadDevice atomic.Bool // the tunnel had one

	firewallShut bool // the last trial was blocked; followFirewall's alone

	measuring chan struct{}   // holds one while a measurement goes on
	runCtx    context.Context // of Run: what outlives the request that began it

	// For gather alone: what paths had carried, and their rates then.
	carried map[protocol.NodeNumber]carried
	rates   map[protocol.NodeNumber][2]uint64

	// Of apply, with applyMu.
	bookNew    bool // there was none at the start: what the stored netmap routes was so before
	bookLost   bool // none could be read at the start
	bookStored bool // it is on disk
	grantDue   bool // id.Granted is not, though it was learned

	applyMu sync.Mutex // one at a time changes tunnel and host
	walled  bool       // what nftables drop is dropped, as of the last apply; with applyMu
	fought  bool       // but others take that down, and no peer is reached; with applyMu
	idMu    sync.Mutex // one at a time changes the identity; after applyMu, before mu

	mu         sync.Mutex
	hubSays    string              // why a hub gives no session, by its own word
	marked     *protocol.StateMark // the newest that came by itself in this run
	hubs       protocol.HubList
	signed     protocol.SignedHubList
	newest     newest
	held       *identity.StoredNetmap
	pins       map[protocol.NodeNumber]identity.Pin
	gone       gone
	pinsLost   error // what the pins were is not known: no peer's key is believed
	result     netmapcheck.Result
	book       held.Book          // changed with applyMu alone
	apart      []held.Exception   // of the last apply
	items      []items.Held       // likewise
	own        *netmapcheck.Owned // what the host had of its own then; nil: not known
	plan       netns.Plan
	errs       []string // of the last apply
	expired    bool
	left       bool      // the identity is gone: nothing is stored any more
	stored     time.Time // held.Confirmed as it is on disk
	acked      string    // what was last told to the hub of result, as text
	hub        protocol.NodeNumber
	hubVersion string
	endSession context.CancelCauseFunc     // of the control session; nil: there is none
	saidNext   bool                        // the last hello named the next key
	sayOld     bool                        // the hub did not take the next key: hellos name the present one
	refusedKey string                      // why it did not
	nextFirst  bool                        // the next key is tried before the present one
	mtus       map[protocol.NodeNumber]int // of peers' paths, as routes have them; replaced, never changed
	unread     *protocol.UpgradeStatus     // said of a wish while root's result does not read
	upgraded   *protocol.UpgradeStatus     // the last upgrade that was asked for; replaced, never changed
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
	a := &Agent{cfg: cfg, log: cfg.Log.With().Str("node", id.Name).Str("site", id.Site).Logger(), id: id, boot: boot,
		started: time.Now().UTC(), ready: make(chan struct{}), tunnel: t, host: h, dial: dial, lookup: where.ask, names: where, hubsSilent: make(chan struct{}, 1), now: time.Now, booted: clock.ThisBoot,
		listChanged: make(chan struct{}, 1), wallDue: make(chan struct{}, 1), firewallDue: make(chan struct{}, 1), keysDue: make(chan struct{}, 1), measuring: make(chan struct{}, 1), fetchList: listFetcher(proxyFor(cfg.Settings, id.Joined), where.lookup), signed: id.HubList, newest: newest{shown: id.HubListConfirmed}, rates: map[protocol.NodeNumber][2]uint64{}}
	_, given := ownProxy(cfg.Settings)
	a.proxied = given || id.Joined != nil && id.Joined.Proxy != ""
	a.live.Store(liveOf(cfg.Settings))
	var err error
	if a.hubs, err = id.HubList.Open(id.Pin); err != nil {
		return nil, fmt.Errorf("hub list of %s: %w; join again with 'causeway-agent join --replace TOKEN'", cfg.Store.Dir(), err)
	}
	a.clock = clock.New(a.wall, a.boots, clock.State{}, a.hubs.NotBefore)
	if err := a.load(); err != nil {
		return nil, err
	}
	a.clock.Floor(a.hubs.NotBefore)
	if err := t.SetKeys(a.ring()); err != nil {
		return nil, err
	}
	a.board = health.New(a.started, a.conditionChanged,
		health.Spec{Name: condTunnel, Cause: "starting"},
		health.Spec{Name: condHub, Cause: "no hub has answered yet", DependsOn: []string{condTunnel}},
		health.Spec{Name: condControl, Cause: "not connected yet", DependsOn: []string{condHub}},
		health.Spec{Name: condNATS, Cause: "not connected yet", DependsOn: []string{condControl}},
		health.Spec{Name: condNetmap, Cause: "no netmap yet", DependsOn: []string{condControl}},
		health.Spec{Name: condRoutes, Cause: "not applied yet", DependsOn: []string{condTunnel}},
		health.Spec{Name: condFirewall, Cause: "not looked at yet", DependsOn: []string{condRoutes}},
		health.Spec{Name: condState}, health.Spec{Name: condKeys}, health.Spec{Name: condRepair}, health.Spec{Name: condClock},
		health.Spec{Name: condHeld}, health.Spec{Name: condLocal}, health.Spec{Name: condPaths}, health.Spec{Name: condHubList, DependsOn: []string{condControl}})
	for _, c := range []string{condState, condKeys, condRepair, condClock, condHeld, condLocal, condPaths, condHubList} {
		a.board.Set(c, "")
	}
	incidents, err := repair.OpenLog(cfg.Store.IncidentFile(), a.now())
	if err != nil {
		a.log.Warn().Err(err).Msg("incidents")
	}
	a.repairs = newRepairs(a, incidents)
	a.facts = inventory.NewCollector(cfg.Settings.Inventory)
	a.inv = inventory.New(inventory.PublisherConfig{Facts: a.gather, Changes: a.facts.Changes(), Number: id.Number, Site: id.Site, Boot: boot, File: cfg.Store.InventoryFile(), Incidents: incidents,
		Report: func(err error) { a.board.SetError(condNATS, err); a.metrics.published(err) }, Log: a.log})
	a.control = control.New(control.Config{Number: id.Number, Hello: a.hello, Prove: a.prove, Welcome: a.welcome, Netmap: a.takeNetmap, HubList: a.hubListTold, Mark: a.takeMark, Status: a.status,
		NATS: a.inv.Run, Debug: func(c net.Conn) { a.debug.ServeConn(c) }, Bulk: a.bulk, Log: a.log})
	reg := prometheus.NewRegistry()
	a.metrics = newMetrics(a, reg)
	a.debug = debug.New(debug.Config{Status: a.debugStatus, Peers: a.debugPeers, Paths: a.tunnel.Paths, Netmap: a.debugNetmap,
		Routes: a.debugRoutes, Ping: a.ping, Trace: a.trace, Evidence: a.evidence, MeasureOffer: a.measureOffer, MeasureRun: a.measureRun, Capture: a.capture, Leave: a.leave, Repair: a.repairs.ask, Release: a.release, Hubs: a.debugHubs, SetHubs: a.setHubs, Incidents: incidents.Newest, RotateKey: a.rotateByHand, Flows: debug.ReadFlows,
		Logs: cfg.Logs, Allow: cfg.Settings.Debug.Allow, Deny: cfg.Settings.Debug.Deny, Used: a.debugUsed, Metrics: reg})
	return a, nil
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
	a.log.Info().Uint32("number", uint32(a.id.Number)).Str("version", a.cfg.Version).Str("iface", a.cfg.Settings.Tunnel.Interface).
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
		a.board.Set(condTunnel, "")
		if port := a.tunnel.Port(); port != 0 {
			// A full disk is told of elsewhere, and this is no reason to end.
			if err := a.cfg.Store.SavePort(port); err != nil {
				a.log.Warn().Err(err).Msg("cannot keep the tunnel's port for the next run")
			}
		}
		a.recallMTUs(ctx)
		a.recallRanges(ctx)
		a.reapply(ctx)
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
	a.confirm(true)
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
