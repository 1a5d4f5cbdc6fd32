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
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"causeway/agent/clock"
	"causeway/agent/config"
	"causeway/agent/debug"
	"causeway/agent/desired"
	"causeway/agent/dns"
	"causeway/agent/flows"
	"causeway/agent/health"
	"causeway/agent/hublink"
	"causeway/agent/identity"
	"causeway/agent/inventory"
	"causeway/agent/onhost"
	"causeway/agent/repair"
	"causeway/agent/service"
	"causeway/agent/upgrade"
	"causeway/netns"
	"causeway/netns/look"
	"causeway/netns/policy"
	svc "causeway/netns/service"
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
	onhost.Tunnel
	hublink.Tunnel
	Run(context.Context) error
	Port() uint16 // UDP, once it is ready
	View(protocol.NodeNumber) (protocol.PathView, bool)
	Dropped() map[string]uint64
	Drops() protocol.Drops
}

// Host is the agent's use of netns.Host.
type Host interface {
	onhost.Host
	Found(context.Context, netns.Config) ([]string, error)
	Disk() *protocol.DiskSpace
}

// Look is the agent's use of look.Host.
type Look interface {
	onhost.Look
	Flow(context.Context, netns.Plan, look.Flow) protocol.FlowEvidence
	Pod(context.Context, look.Flow) *protocol.PodEvidence
	Way(to netip.Addr, mark uint32) (link, learned int)
	Prove(ctx context.Context, w protocol.ProveWatch, inject look.Inject, ready func()) error
	ProveSend(ctx context.Context, secret uint32, peer func(netip.Addr) bool) ([]protocol.ProveSent, error)
	ProveSeen(ctx context.Context, secret uint32) (protocol.ProveSeens, error)
}

// Agent is a running or startable agent: what is desired (desired), what is kept on the host (onhost), which
// hub it talks to (hublink), and what goes on beside these.
type Agent struct {
	cfg   Config
	log   zerolog.Logger
	ready chan struct{}

	own      *identity.Own
	live     *config.Live
	board    *health.Board
	want     *desired.Desired
	host     *onhost.Keeper
	link     *hublink.Link
	tunnel   Tunnel
	facts    *inventory.Collector
	inv      *inventory.Publisher
	flows    *flows.Watcher
	services *service.Engine
	names    *names
	upgrades *upgrades
	answers  *answers
	debug    *debug.Server
}

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
	proxy := hublink.ProxyFor(cfg.Settings, id.Joined)
	names := hublink.NewNames(cfg.Store, hublink.Lookup, cfg.Log)
	node, err := tunnel.NewNode(tunnel.NodeConfig{
		Number: id.Number, PrivateKey: id.WireGuardKey, BootID: boot, KeyEpoch: id.KeyEpoch,
		Interface: t.Interface, MTU: t.MTU, ListenPort: t.ListenPort, LastPort: port, Mark: netns.DefaultMark, Engine: t.Engine, Queues: t.Queues, UAPI: t.UAPI, PrivateCandidates: t.PrivateCandidates, Proxy: proxy, Lookup: names.Lookup,
		Log: cfg.Log,
		Excluded: func(ifname string, a netip.Addr) bool {
			return ifname == t.Interface || containerInterface(ifname, netns.LeadsOut) || containsAddr(overlay, a)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("set up tunnel: %w", err)
	}
	host := netns.NewHost(cfg.Store.Dir(), cfg.Log)
	return build(cfg, id, boot, parts{tunnel: node, host: host, look: look.At(host), names: names, counted: policy.Counted, listen: dns.Listen, resolved: resolvedDir, told: identity.SplitDNSTold, now: time.Now, booted: clock.ThisBoot,
		dial:  hublink.Dialer(func() string { return node.Device().Name }),
		fetch: hublink.ListFetcher(hublink.ProxyFor(cfg.Settings, id.Joined), names.Lookup)})
}

// parts are what an agent is put together of; tests give it doubles.
type parts struct {
	tunnel  Tunnel
	host    Host
	look    Look
	dial    func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error)
	names   *hublink.Names
	fetch   hublink.ListFetch
	now     func() time.Time  // the wall clock
	booted  func() clock.Boot // the boot clock
	counted func() (policy.Counts, error)
	listen  func(context.Context, netip.AddrPort) (*dns.Sockets, error)
	// resolved is where systemd-resolved is, told what root told it.
	resolved, told string
}

// build puts an agent together, each part of those before it.
func build(cfg Config, id identity.Identity, boot protocol.BootID, p parts) (*Agent, error) {
	if cfg.Socket == "" {
		cfg.Socket = cfg.Settings.Debug.Socket
	}
	if cfg.UpgradeDir == "" {
		cfg.UpgradeDir = upgrade.DefaultDir
	}
	a := &Agent{cfg: cfg, log: cfg.Log.With().Str("node", id.Name).Str("site", id.Site).Logger(), ready: make(chan struct{}), live: config.NewLive(cfg.Settings), tunnel: p.tunnel}
	started, reg, statusDue := time.Now().UTC(), prometheus.NewRegistry(), make(chan struct{}, 1)
	count := newCounters(reg)
	a.board = newBoard(started, func(c protocol.Condition) { tellCondition(a.log, c, statusDue) })
	a.own = identity.NewOwn(cfg.Store, id, func(err error) { a.board.SetError(health.State, err) })
	var err error
	a.want, err = desired.New(desired.Config{Store: cfg.Store, Own: a.own, Live: a.live, Board: a.board, Log: a.log, Wall: p.now, Boot: p.booted})
	if err != nil {
		return nil, err
	}
	incidents, err := repair.OpenLog(cfg.Store.IncidentFile(), p.now())
	if err != nil {
		a.log.Warn().Err(err).Msg("incidents")
	}
	table := svc.NewTable()
	a.host, err = onhost.New(onhost.Config{Store: cfg.Store, Own: a.own, Live: a.live, Want: a.want, Board: a.board, Tunnel: p.tunnel, Host: p.host, Look: p.look, Incidents: incidents, Services: table, Now: p.now,
		Mended: count.mended, GaveUp: count.gaveUp, Log: a.log})
	if err != nil {
		return nil, err
	}
	contact := newContact(p.booted)
	a.services = service.New(service.Config{Contact: contact.ago, Tracked: service.Tracked, View: serviceView(a.host, a.own, a.live, p.tunnel, ownAddresses), News: a.host.WatchFacts(), Table: table, Heard: received(p.tunnel), Path: reached(p.tunnel), Told: func() { wake(statusDue) }, Moved: func() { a.names.refresh() }, Fault: func(cause string) { a.board.Set(health.Services, cause) }, Note: func(text string) { a.board.SetNote(health.Services, text) }, Log: a.log})
	a.facts = inventory.NewCollector(cfg.Settings.Inventory)
	a.flows = flows.New(flows.Config{View: func() flows.View { return flowView(a.host, a.own) }, Blind: func(cause, note string) {
		if cause != "" {
			a.board.Set(health.Policy, cause)
		} else {
			a.board.SetNote(health.Policy, note)
		}
	}, Counted: p.counted, Now: p.now, Log: a.log})
	gather := &gatherer{flows: a.flows, version: cfg.Version, live: a.live, want: a.want, host: a.host, tunnel: p.tunnel, facts: a.facts, rates: map[protocol.NodeNumber][2]uint64{}}
	a.names = &names{host: a.host, own: a.own, want: a.want, board: a.board, server: dns.New(dns.Config{Counted: count.named}), listen: p.listen, resolved: p.resolved, told: p.told, file: cfg.Store.SplitDNSFile(), log: a.log, due: make(chan struct{}, 1)}
	gather.told = a.names.setContainers
	a.names.setUsable(a.services.Usable)
	a.inv = inventory.New(inventory.PublisherConfig{Facts: gather.gather, Changes: a.facts.Changes(), Number: id.Number, Site: id.Site, Boot: boot, File: cfg.Store.InventoryFile(), Incidents: incidents, Flows: a.flows, Switches: a.services.Switches(),
		Report: func(err error) { a.board.SetError(health.NATS, err); count.published(err) }, Log: a.log})
	var upgraded atomic.Pointer[protocol.UpgradeStatus]
	a.link, err = hublink.New(hublink.Config{Own: a.own, Live: a.live, Want: a.want, Host: a.host, Board: a.board, Tunnel: p.tunnel, Incidents: incidents, Names: p.names, Fetch: p.fetch, Dial: p.dial, Now: p.now,
		Boot: boot, Version: cfg.Version, Due: statusDue, Upgrade: upgraded.Load, Services: a.services.Readiness, Fences: a.services.Fences, Contact: contact.note, Clock: contact.now, Announces: a.facts.Changed, NATS: a.inv.Run, Began: count.sessionBegan, Ended: count.sessionEnded, Log: a.log})
	if err != nil {
		return nil, err
	}
	a.upgrades = &upgrades{log: a.log, dir: cfg.UpgradeDir, state: cfg.Store.Dir(), version: cfg.Version, live: a.live, want: a.want, link: a.link, told: &upgraded}
	an := &answers{log: a.log, dir: cfg.Store.Dir(), version: cfg.Version, boot: boot, started: started, own: a.own, live: a.live, board: a.board, want: a.want, host: a.host, link: a.link, tunnel: p.tunnel, net: p.host, look: p.look, flows: a.flows,
		measuring: make(chan struct{}, 1)}
	an.life, an.stop = context.WithCancelCause(context.Background())
	a.answers = an
	registerMetrics(an, p.now, reg)
	reg.MustRegister(a.services)
	a.debug = debug.New(debug.Config{Status: an.status, Peers: an.peers, Paths: p.tunnel.Paths, Netmap: an.netmap,
		Routes: an.routes, Ping: an.ping, Trace: an.trace, Evidence: an.evidence, Connections: an.connections, MeasureOffer: an.measureOffer, MeasureRun: an.measureRun, Prove: an.prove, ProveSend: an.proveSend, ProveSeen: an.proveSeen, Capture: an.capture, Leave: an.leave, Repair: a.host.Repair, Release: an.release, Hubs: an.hubs, SetHubs: an.setHubs, Incidents: incidents.Newest, RotateKey: a.link.RotateByHand, Flows: debug.ReadFlows, Policy: an.policy, Services: a.services.View,
		Logs: cfg.Logs, Allow: cfg.Settings.Debug.Allow, Deny: cfg.Settings.Debug.Deny, Used: an.used, Metrics: reg})
	return a, nil
}

// newBoard has the agent's conditions.
func newBoard(started time.Time, changed func(protocol.Condition)) *health.Board {
	b := health.New(started, changed,
		health.Spec{Name: health.Tunnel, Cause: "starting"},
		health.Spec{Name: health.Hub, Cause: "no hub has answered yet", DependsOn: []string{health.Tunnel}},
		health.Spec{Name: health.Control, Cause: "not connected yet", DependsOn: []string{health.Hub}},
		health.Spec{Name: health.NATS, Cause: "not connected yet", DependsOn: []string{health.Control}},
		health.Spec{Name: health.Netmap, Cause: "no netmap yet", DependsOn: []string{health.Control}},
		health.Spec{Name: health.Routes, Cause: "not applied yet", DependsOn: []string{health.Tunnel}},
		health.Spec{Name: health.Firewall, Cause: "not looked at yet", DependsOn: []string{health.Routes}},
		health.Spec{Name: health.State}, health.Spec{Name: health.Keys}, health.Spec{Name: health.Repair}, health.Spec{Name: health.Clock},
		health.Spec{Name: health.Held}, health.Spec{Name: health.Local}, health.Spec{Name: health.Paths}, health.Spec{Name: health.Policy}, health.Spec{Name: health.Services}, health.Spec{Name: health.DNS, DependsOn: []string{health.Routes}}, health.Spec{Name: health.HubList, DependsOn: []string{health.Control}})
	for _, c := range []string{health.State, health.Keys, health.Repair, health.Clock, health.Held, health.Local, health.Paths, health.Policy, health.Services, health.DNS, health.HubList} {
		b.Set(c, "")
	}
	return b
}

// tellCondition logs a condition that changed, and has the hub told.
func tellCondition(log zerolog.Logger, c protocol.Condition, statusDue chan<- struct{}) {
	if c.OK {
		e := log.Info().Str("condition", c.Name)
		if c.Note != "" {
			e = e.Str("note", c.Note)
		}
		e.Msg("condition holds")
	} else {
		log.Warn().Str("condition", c.Name).Str("cause", c.Cause).Msg("condition does not hold")
	}
	wake(statusDue)
}

// wake puts something into a channel that has room for one, unless something is there.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Ready is closed when the tunnel is up and what was known of the netmap is
// applied. It does not wait for a hub.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

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
