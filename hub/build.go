package hub

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"causeway/hub/admin"
	"causeway/hub/bus"
	"causeway/hub/conns"
	"causeway/hub/disk"
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
	"causeway/tunnel"
)

// start opens and builds all that Run works with. What it has opened when it fails is closed by
// close, as at the end of Run.
func (r *run) start(ctx context.Context) (err error) {
	if r.files, err = conns.OpenFiles(); err != nil {
		return err
	}
	unlock, err := openDataDir(r.cfg.DataDir)
	if err != nil {
		return err
	}
	r.after("data directory", unlock)
	// What another process may hold comes first: nothing is made if it fails.
	if err := r.listen(ctx); err != nil {
		return err
	}
	if err := r.read(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, step := range []func(context.Context) error{r.openBus, r.openStore, r.join, r.buildTunnel, r.openFacts, r.buildLoop, r.buildServers} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// listen opens the hub's sockets, or takes those that a service manager holds.
func (r *run) listen(ctx context.Context) (err error) {
	tcp := func(flag, addr string) func() (net.Listener, error) {
		return func() (net.Listener, error) { return listenTCP(ctx, flag, addr) }
	}
	for _, l := range []struct {
		name   string
		to     *net.Listener
		given  net.Listener
		served bool
		open   func() (net.Listener, error)
	}{
		{"listen-https", &r.sockets.https, r.cfg.Sockets.HTTPS, true, tcp("listen-https", r.https)},
		{"admin-socket", &r.sockets.local, r.cfg.Sockets.Admin, true, func() (net.Listener, error) { return admin.Listen(r.cfg.AdminSocket) }},
		{"listen-admin", &r.sockets.admin, nil, r.admin != "", tcp("listen-admin", r.admin)},
		{"listen-nats", &r.sockets.nats, nil, r.nats != "", tcp("listen-nats", r.nats)},
		{"listen-metrics", &r.sockets.metrics, nil, r.metrics != "", tcp("listen-metrics", r.metrics)},
	} {
		if !l.served {
			continue
		}
		socket := l.given
		if socket == nil {
			if socket, err = l.open(); err != nil {
				return err
			}
		}
		r.after(l.name, func() { socket.Close() })
		*l.to = r.files.Guard(socket)
	}
	return r.listenDNS(ctx)
}

// read reads keys and log, and asks the disk whether it takes a change.
func (r *run) read(ctx context.Context) (err error) {
	if _, err := finishRemake(r.cfg.DataDir); err != nil {
		return fmt.Errorf("finish the repair of the state log: %w", err)
	}
	if r.marker, err = openMarker(r.cfg.DataDir, r.outside); err != nil {
		return err
	}
	r.fresh = r.outside || r.marker.New()
	if r.keys, err = join.LoadKeys(r.cfg.DataDir, r.marker.New()); err != nil {
		return err
	}
	if !r.outside {
		if r.reading, r.marker, err = readLog(ctx, r.cfg.DataDir, r.marker, r.log); err != nil {
			return err
		}
	}
	r.guard = disk.New(r.cfg.DataDir)
	r.guard.Check() // a full disk gives up the reserve: it does for a start
	if err := r.guard.Probe(); err != nil {
		return err
	}
	if r.sockets.admin != nil || r.sockets.nats != nil {
		r.ca, err = admin.OpenCA(filepath.Join(r.cfg.DataDir, admin.CAFile))
	}
	return err
}

// openBus starts the NATS server inside, which agents and readers reach in any case.
func (r *run) openBus(ctx context.Context) (err error) {
	r.bus, err = bus.Start(ctx, bus.Config{Dir: filepath.Join(r.cfg.DataDir, natsDir), Forwarded: r.outside, Space: r.guard.Check, Log: r.log})
	if err != nil {
		return err
	}
	r.after("NATS", r.bus.Close)
	if r.agentsConn, err = r.bus.AgentsConn(); err != nil {
		return err
	}
	r.after("connection to NATS for agents' facts", r.agentsConn.Close)
	r.agentsJS, err = jetstream.New(r.agentsConn)
	return err
}

// openStore opens the state log, inside or in an external NATS.
func (r *run) openStore(ctx context.Context) error {
	c := state.StoreConfig{Marker: r.marker, Disk: r.guard, Log: r.log, Base: r.reading, Vault: state.DirVault(filepath.Join(r.cfg.DataDir, vaultDir)), SnapshotEvery: r.cfg.SnapshotEvery,
		SetBackFile: filepath.Join(r.cfg.DataDir, setBackFile)}
	conn, err := r.bus.StateConn()
	if err != nil {
		return err
	}
	r.after("connection to NATS for the state log", conn.Close)
	if c.JetStream, err = jetstream.New(conn); err != nil {
		return err
	}
	if r.outside {
		if r.external, err = openExternal(ctx, r.cfg, &r.events); err != nil {
			return err
		}
		r.after("external NATS", r.external.conn.Close)
		r.agentsJS, c.JetStream, c.Away = r.external.js, r.external.js, r.external.away
		if c.Vault, err = state.OpenBucketVault(ctx, r.external.js); err != nil {
			return r.external.explain(err)
		}
	}
	r.store, err = state.Open(ctx, c)
	if err == nil && r.outside {
		err = r.external.raise(ctx, state.StreamName)
	}
	return r.external.explain(err)
}

// join makes this hub one of its cluster, which it may make first.
func (r *run) join(ctx context.Context) (err error) {
	if r.public, err = r.publicHub(r.cfg, r.keys.Hub.Public(), r.sockets.https.Addr()); err != nil {
		return err
	}
	if r.number, err = join.EnsureHub(ctx, r.store, r.keys, r.public, r.cfg.Overlay, r.outside); err != nil {
		return err
	}
	if err := r.keys.Published(r.cfg.DataDir); err != nil {
		return err
	}
	r.overlay, err = r.store.State().OverlayOf(r.number)
	return err
}

// buildTunnel makes the switchboard and the control sessions upon it.
func (r *run) buildTunnel(context.Context) error {
	boot, err := protocol.NewBootID()
	if err != nil {
		return err
	}
	r.boots = reconcile.NewBoots()
	r.tunnel, err = r.cfg.Tunnel(tunnel.HubConfig{Number: r.number, PrivateKey: r.keys.Hub, BootID: boot, Listen: anyAddress(r.udp), Overlay: r.overlay,
		SocketBuffer: r.cfg.SocketBuffer, Limits: r.cfg.RelayLimits, Log: r.log,
		Inherited: r.cfg.Sockets.UDP, Hold: r.cfg.Sockets.HoldUDP, OnBoot: r.boots.Saw})
	if err != nil {
		return err
	}
	if err := r.tunnel.SetKeys(hubKeys(r.keys)); err != nil {
		return err
	}
	r.fleet = fleet.New(fleet.Config{Number: r.number, State: r.store.State, Proven: r.tunnel.Proven, Events: &r.events, Log: r.log})
	r.sessions = session.New(session.Config{Number: r.number, Version: r.cfg.Version, Cluster: r.keys.Cluster, Store: r.store, Fleet: r.fleet, Bus: r.bus, Events: &r.events,
		RequireProof: r.cfg.RequireProof, Log: r.log})
	return nil
}

// openFacts opens what nodes tell of themselves.
func (r *run) openFacts(ctx context.Context) (err error) {
	node := nodeName(r.store)
	r.inventory, err = inventory.Open(ctx, inventory.Config{JetStream: r.agentsJS, Conn: r.agentsConn, MaxBytes: bus.MaxInventoryBytes * 3 / 4, Inside: !r.outside, Events: &r.events, Log: r.log, Node: node})
	if err != nil {
		return r.external.explain(err)
	}
	r.incidents = incident.New(incident.Config{JetStream: r.agentsJS, Events: &r.events, Log: r.log, Node: node})
	if err := r.incidents.Open(ctx); err != nil {
		return r.external.explain(err)
	}
	r.flows = flow.New(flow.Config{JetStream: r.agentsJS, Inside: !r.outside, Log: r.log, Node: node})
	if err := r.flows.Open(ctx); err != nil {
		return r.external.explain(err)
	}
	r.switches = switches.New(switches.Config{JetStream: r.agentsJS, Events: &r.events, Log: r.log, Node: node})
	if r.news, err = event.OpenNews(ctx, r.agentsJS, &r.events); err != nil {
		return r.external.explain(err)
	}
	return nil
}

// buildLoop makes what the hub does by itself.
func (r *run) buildLoop(context.Context) error {
	r.reconciler = reconcile.New(reconcile.Config{Cluster: r.keys.Cluster, Store: r.store, Fleet: r.fleet, Sessions: r.sessions, Tunnel: r.tunnel, Boots: r.boots, Facts: r.inventory, Events: &r.events,
		New: r.fresh, Memory: filepath.Join(r.cfg.DataDir, memoryFile), Log: r.log})
	return nil
}

// buildServers makes what answers hosts that join, agents, admins, readers and Prometheus.
func (r *run) buildServers(context.Context) (err error) {
	r.joins, err = join.New(join.Config{Dir: r.cfg.DataDir, Keys: r.keys, Store: r.store, Events: &r.events, Streams: r.tunnel.StreamHandler(), SourceRate: r.cfg.JoinRate,
		Heard: r.reconciler.Heard, Witness: r.store.Witness, Stray: r.fleet.NoteStray, Log: r.log})
	if err != nil {
		return err
	}
	r.releases = release.Open(r.packages)
	if err := r.buildAdmin(); err != nil {
		return err
	}
	r.shared = &parts{store: r.store, keys: r.keys, https: r.sockets.https.Addr(), tunnel: r.tunnel, number: r.number, list: make(chan protocol.Hub), space: r.guard.Check, away: r.bus.Failed}
	r.shared.nats = func(ctx context.Context) error {
		_, err := r.agentsJS.AccountInfo(ctx)
		return err
	}
	if r.outside { // nothing is stored inside
		r.shared.nats = r.agentsConn.FlushWithContext
		r.shared.away = func() bool { return r.external.away() != nil }
	}
	if r.sockets.metrics != nil {
		r.shared.metrics = r.sockets.metrics.Addr()
	}
	return nil
}

// buildAdmin makes the admin API, and what needs its authority.
func (r *run) buildAdmin() (err error) {
	c := admin.Config{Version: r.cfg.Version, Number: r.number, HubKey: r.keys.Hub, ClusterKey: r.keys.Cluster, Pin: r.keys.Cluster.Public().Pin(), Store: r.store, Fleet: r.fleet, Sessions: r.sessions, Reconcile: r.reconciler,
		Inventory: r.inventory, Incidents: r.incidents, Flows: r.flows, Switches: r.switches, Events: &r.events, Releases: r.releases, Disk: r.guard.Check, Relay: r.tunnel.RelayStats, Bound: r.tunnel.Bound, Settings: r.cfg.shown(), PublicZone: r.zoneText(),
		ObjectStatus: func(k state.ObjectKey) map[string]string { return limitStatus(r.tunnel, k) },
		BackupNote:   filepath.Join(r.cfg.DataDir, backupNote), Log: r.log}
	if r.outside {
		c.Conditions = append(c.Conditions, r.external.condition)
	}
	c.PublicHost, _, _ = net.SplitHostPort(r.public.HTTPS[0])
	c.CA = r.ca
	if r.sockets.admin != nil {
		_, c.AdminPort, _ = net.SplitHostPort(r.sockets.admin.Addr().String())
	}
	r.natsUsers = bus.Readers{Changed: r.store.Watch, User: func(key string) (string, bool) {
		u, ok := r.store.State().NATSUserByKey(key)
		return u.Name, ok
	}}
	if r.sockets.nats != nil {
		_, c.NATSPort, _ = net.SplitHostPort(r.sockets.nats.Addr().String())
		if r.natsUsers.TLS, err = c.CA.ServerTLS(c.PublicHost); err != nil {
			return err
		}
	}
	r.api = admin.New(c)
	r.natsUsers.Refused = r.api.RefusedNATS
	r.services = services.New(services.Config{JetStream: r.agentsJS, List: r.api.Services, Log: r.log})
	r.figures = metrics.Config{Version: r.cfg.Version, State: r.fleet.State, Standings: r.fleet.Standings, Relay: r.tunnel.RelayStats, Events: r.events.Count, Conditions: r.api.Conditions,
		Findings: r.api.Findings, DiskFree: r.guard.Free, Certificates: map[string]time.Time{"https": r.joins.CertificateExpires()}, Unready: r.unready,
		More: []prometheus.Collector{r.joins.Metrics(), r.inventory.Metrics(), r.flows.Metrics(), r.bus.Metrics(), r.files.Metrics(), r.reconciler.Metrics()}}
	if r.names != nil {
		r.figures.More = append(r.figures.More, r.names.Metrics()...)
	}
	if c.CA != nil {
		r.figures.Certificates["admin-ca"] = c.CA.Expires()
	}
	return nil
}
