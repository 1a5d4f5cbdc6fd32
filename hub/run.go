package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"causeway/hub/admin"
	"causeway/hub/bus"
	"causeway/hub/conns"
	"causeway/hub/disk"
	"causeway/hub/dns"
	"causeway/hub/facts/event"
	"causeway/hub/facts/flow"
	"causeway/hub/facts/incident"
	"causeway/hub/facts/inventory"
	"causeway/hub/facts/services"
	"causeway/hub/facts/switches"
	"causeway/hub/fleet"
	"causeway/hub/join"
	"causeway/hub/metrics"
	"causeway/hub/reconcile"
	"causeway/hub/release"
	"causeway/hub/session"
	"causeway/hub/state"
	"causeway/protocol"
)

// Run works until ctx ends, and then returns nil. An error is one line that says
// what to do.
//
// It opens what another process may hold and what lies on disk, builds the parts upon that, and
// works on tasks until one fails. The doors to it are opened when the tunnel is there.
func (h *Hub) Run(ctx context.Context) error {
	r := &run{Hub: h, log: h.cfg.Log, outside: h.cfg.NATSURL != ""}
	defer r.close()
	if err := r.start(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	work := func(tasks []task) {
		for _, t := range tasks {
			g.Go(func() error { return t.run(ctx) })
		}
	}
	work(r.tasks())
	g.Go(func() error { // the doors are opened last
		select {
		case <-r.tunnel.Ready():
		case <-ctx.Done():
			return nil
		}
		if err := r.listenInside(); err != nil {
			return err
		}
		work(r.doors())
		r.log.Info().Str("public_udp", r.public.UDP[0]).Str("public_https", r.public.HTTPS[0]).Str("admin_socket", h.cfg.AdminSocket).Str("listen_admin", h.admin).Str("listen_nats", h.nats).Str("listen_metrics", h.metrics).Str("dns_zone", h.zoneText()).
			Uint32("number", uint32(r.number)).Uint64("sequence", r.store.State().Seq).Msg("hub ready")
		h.parts.Store(r.shared)
		close(h.ready)
		return nil
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	r.log.Info().Msg("hub stopped")
	return nil
}

// run is one Run: what it has opened and built.
type run struct {
	*Hub
	log     zerolog.Logger
	outside bool // state log and inventory lie in an external NATS
	undo    []cleanup

	// Opened: see start.
	files   *conns.Files
	sockets struct {
		https, local, admin, nats, metrics, dnsTCP net.Listener // nil: not served
		dnsUDP                                     *net.UDPConn
	}
	keys       join.Keys
	fresh      bool           // no log can have been set back: there was none, or it lies elsewhere
	marker     *state.Marker  // of the log
	reading    *state.Reading // the log inside; nil: it lies elsewhere
	guard      *disk.Guard
	bus        *bus.Server
	agentsConn *nats.Conn
	agentsJS   jetstream.JetStream
	external   *external // nil: the server inside
	events     event.Log
	store      *state.Store

	// Built upon that: see build.
	public     protocol.Hub
	number     protocol.NodeNumber
	overlay    []netip.Addr
	tunnel     Tunnel
	inventory  *inventory.Store
	incidents  *incident.Store
	flows      *flow.Store
	switches   *switches.Store
	services   *services.Publisher
	news       *event.News
	fleet      *fleet.Table
	sessions   *session.Server
	boots      reconcile.Boots // that the tunnel sees
	reconciler *reconcile.Loop
	joins      *join.Server
	releases   release.Library
	ca         *admin.CA // nil: neither admins nor readers are let in from elsewhere
	api        *admin.Server
	natsUsers  bus.Readers
	figures    metrics.Config
	names      *dns.Server                                      // nil: no public names are answered
	shared     *parts                                           // what other methods of Hub need
	inside     struct{ control, bulk, packages []net.Listener } // the tunnel, at each overlay address
}

// cleanup is undone when Run ends, last in first out.
type cleanup struct {
	name string
	do   func()
}

func (r *run) after(name string, do func()) { r.undo = append(r.undo, cleanup{name, do}) }

func (r *run) close() {
	for i := len(r.undo) - 1; i >= 0; i-- {
		r.undo[i].do()
	}
}

// task is one thing that a hub does all the time, until ctx ends.
type task struct {
	name string
	run  func(context.Context) error
}

// tasks are what this hub does before its doors are open, too.
func (r *run) tasks() []task {
	l := []task{
		{"state", func(ctx context.Context) error { return r.store.Run(ctx) }},
		{"archives", func(ctx context.Context) error { return r.store.WatchArchives(ctx) }},
		{"disk", func(ctx context.Context) error { return watchDisk(ctx, r.guard, r.bus, r.log) }},
		{"sessions", func(ctx context.Context) error { return r.sessions.Run(ctx) }},
		{"reconcile", func(ctx context.Context) error { return r.reconciler.Run(ctx) }},
		{"hub list", func(ctx context.Context) error { return r.renewList(ctx, r.shared, r.public) }},
		{"inventory", func(ctx context.Context) error { return r.inventory.Run(ctx) }},
		{"incidents", func(ctx context.Context) error { return r.incidents.Run(ctx) }},
		{"flows", func(ctx context.Context) error { return r.flows.Run(ctx) }},
		{"switches", func(ctx context.Context) error { return r.switches.Run(ctx) }},
		{"events", func(ctx context.Context) error { return r.news.Run(ctx) }},
		{"tunnel", func(ctx context.Context) error { return explainUDP(r.udp, r.tunnel.Run(ctx)) }},
	}
	if !r.outside { // several hubs would write what each knows alone
		l = append(l, task{"services for readers", func(ctx context.Context) error { return r.services.Run(ctx) }})
	} else {
		l = append(l,
			task{"external NATS", func(ctx context.Context) error { return r.external.watch(ctx) }},
			task{"inventory to external NATS", func(ctx context.Context) error {
				return r.bus.Forward(ctx, r.external.js, protocol.SubjectInventoryAll)
			}},
			task{"flows to external NATS", func(ctx context.Context) error { return r.bus.Forward(ctx, r.external.js, protocol.SubjectFlowsAll) }},
			task{"what waits at other hubs", func(ctx context.Context) error { return r.external.tellOthers(ctx, r.fleet) }})
	}
	if r.names != nil {
		l = append(l,
			task{"what public names lead to", r.followNames},
			task{"public names", func(ctx context.Context) error { return r.names.Serve(ctx, r.sockets.dnsUDP, r.sockets.dnsTCP) }})
	}
	if r.metrics != "" {
		l = append(l, task{"metrics", func(ctx context.Context) error { return metrics.New(r.figures).Serve(ctx, r.sockets.metrics) }})
	}
	return l
}

// doors are served once the tunnel is there.
func (r *run) doors() []task {
	var l []task
	for i := range r.overlay {
		l = append(l,
			task{"control", func(ctx context.Context) error { return r.sessions.Serve(ctx, r.inside.control[i]) }},
			task{"bulk", func(ctx context.Context) error { return r.sessions.ServeBulk(ctx, r.inside.bulk[i]) }},
			task{"packages", func(ctx context.Context) error { return r.releases.Serve(ctx, r.inside.packages[i]) }})
	}
	l = append(l,
		task{"https", func(ctx context.Context) error { return r.joins.Serve(ctx, r.sockets.https) }},
		task{"admin socket", func(ctx context.Context) error { return r.api.Serve(ctx, r.sockets.local) }})
	if r.admin != "" {
		l = append(l, task{"admin", func(ctx context.Context) error { return r.api.ServeRemote(ctx, r.sockets.admin) }})
	}
	if r.nats != "" {
		l = append(l, task{"NATS users", func(ctx context.Context) error { return r.bus.ServeReaders(ctx, r.sockets.nats, r.natsUsers) }})
	}
	return l
}

// listenInside opens the ports that nodes reach through the tunnel.
func (r *run) listenInside() error {
	for _, a := range r.overlay {
		control, err := r.tunnel.Listen(netip.AddrPortFrom(a, protocol.ControlPort))
		if err != nil {
			return fmt.Errorf("listen for control connections: %w", err)
		}
		bulk, err := r.tunnel.Listen(netip.AddrPortFrom(a, protocol.BulkPort))
		if err != nil {
			return fmt.Errorf("listen for bulk connections: %w", err)
		}
		packages, err := r.tunnel.Listen(netip.AddrPortFrom(a, protocol.PackagePort))
		if err != nil {
			return fmt.Errorf("listen for agents that upgrade: %w", err)
		}
		r.inside.control, r.inside.bulk, r.inside.packages = append(r.inside.control, control), append(r.inside.bulk, bulk), append(r.inside.packages, packages)
	}
	return nil
}
