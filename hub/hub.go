package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"causeway/hub/admin"
	"causeway/hub/bus"
	"causeway/hub/conns"
	"causeway/hub/control"
	"causeway/hub/disk"
	"causeway/hub/event"
	"causeway/hub/incident"
	"causeway/hub/inventory"
	"causeway/hub/join"
	"causeway/hub/metrics"
	"causeway/hub/release"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel"
)

// Tunnel is the hub's side of the tunnel: tunnel.Hub.
type Tunnel interface {
	control.Tunnel
	Run(context.Context) error
	SetKeys([]tunnel.OwnKey) error
	Ready() <-chan struct{}
	Listen(netip.AddrPort) (net.Listener, error)
	RelayStats() tunnel.RelayStats
	StreamHandler() http.Handler
}

// startTimeout bounds opening the state log and the inventory.
const startTimeout = 2 * time.Minute

// Ready is closed when the hub answers joins, agents and admins.
func (h *Hub) Ready() <-chan struct{} { return h.ready }

// Run works until ctx ends, and then returns nil. An error is one line that says
// what to do.
func (h *Hub) Run(ctx context.Context) error {
	log := h.cfg.Log
	files, err := conns.OpenFiles()
	if err != nil {
		return err
	}
	unlock, err := openDataDir(h.cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()

	// What another process may hold comes first: nothing is made if it fails.
	httpsListener := h.cfg.Sockets.HTTPS
	if httpsListener == nil {
		if httpsListener, err = listenTCP(ctx, "listen-https", h.https); err != nil {
			return err
		}
	}
	defer httpsListener.Close()
	adminListener := h.cfg.Sockets.Admin
	if adminListener == nil {
		if adminListener, err = admin.Listen(h.cfg.AdminSocket); err != nil {
			return err
		}
	}
	defer adminListener.Close()
	var remoteListener net.Listener // nil: no admins from elsewhere
	if h.admin != "" {
		if remoteListener, err = listenTCP(ctx, "listen-admin", h.admin); err != nil {
			return err
		}
		defer remoteListener.Close()
	}
	var natsListener net.Listener // nil: no NATS users from elsewhere
	if h.nats != "" {
		if natsListener, err = listenTCP(ctx, "listen-nats", h.nats); err != nil {
			return err
		}
		defer natsListener.Close()
	}
	var metricsListener net.Listener // nil: no metrics
	if h.metrics != "" {
		if metricsListener, err = listenTCP(ctx, "listen-metrics", h.metrics); err != nil {
			return err
		}
		defer metricsListener.Close()
	}

	for _, l := range []*net.Listener{&httpsListener, &adminListener, &remoteListener, &natsListener, &metricsListener} {
		if *l != nil {
			*l = files.Guard(*l)
		}
	}

	outside := h.cfg.NATSURL != ""
	if _, err := finishRemake(h.cfg.DataDir); err != nil {
		return fmt.Errorf("finish the repair of the state log: %w", err)
	}
	marker, err := openMarker(h.cfg.DataDir, outside)
	if err != nil {
		return err
	}
	keys, err := join.LoadKeys(h.cfg.DataDir, marker.New())
	if err != nil {
		return err
	}
	var reading *state.Reading
	if !outside {
		if reading, marker, err = readLog(ctx, h.cfg.DataDir, marker, log); err != nil {
			return err
		}
	}
	sctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	guard := disk.New(h.cfg.DataDir)
	guard.Check() // a full disk gives up the reserve: it does for a start
	if err := guard.Probe(); err != nil {
		return err
	}
	nats, err := bus.Start(sctx, bus.Config{Dir: filepath.Join(h.cfg.DataDir, natsDir), Forwarded: outside, Space: guard.Check, Log: log})
	if err != nil {
		return err
	}
	defer nats.Close()
	stateConn, err := nats.StateConn()
	if err != nil {
		return err
	}
	defer stateConn.Close()
	agentsConn, err := nats.AgentsConn()
	if err != nil {
		return err
	}
	defer agentsConn.Close()
	stateJS, err := jetstream.New(stateConn)
	if err != nil {
		return err
	}
	agentsJS, err := jetstream.New(agentsConn)
	if err != nil {
		return err
	}
	var events event.Log
	storeConfig := state.StoreConfig{JetStream: stateJS, Marker: marker, Disk: guard, Log: log, Base: reading, Vault: state.DirVault(filepath.Join(h.cfg.DataDir, vaultDir)), SnapshotEvery: h.cfg.SnapshotEvery,
		SetBackFile: filepath.Join(h.cfg.DataDir, setBackFile)}
	var ext *external // nil: the server inside
	if outside {
		if ext, err = openExternal(sctx, h.cfg, &events); err != nil {
			return err
		}
		defer ext.conn.Close()
		agentsJS = ext.js
		storeConfig.JetStream, storeConfig.Away = ext.js, ext.away
		if storeConfig.Vault, err = state.OpenBucketVault(sctx, ext.js); err != nil {
			return ext.explain(err)
		}
	}
	store, err := state.Open(sctx, storeConfig)
	if err == nil && outside {
		err = ext.raise(sctx, state.StreamName)
	}
	if err != nil {
		return ext.explain(err)
	}
	public, err := h.publicHub(h.cfg, keys.Hub.Public(), httpsListener.Addr())
	if err != nil {
		return err
	}
	number, err := join.EnsureHub(sctx, store, keys, public, h.cfg.Overlay, outside)
	if err == nil {
		err = keys.Published(h.cfg.DataDir)
	}
	if err != nil {
		return err
	}
	overlay, err := store.State().OverlayOf(number)
	if err != nil {
		return err
	}
	boot, err := protocol.NewBootID()
	if err != nil {
		return err
	}
	var sessions *control.Server // before tun runs
	tun, err := h.cfg.Tunnel(tunnel.HubConfig{Number: number, PrivateKey: keys.Hub, BootID: boot, Listen: anyAddress(h.udp), Overlay: overlay,
		SocketBuffer: h.cfg.SocketBuffer, Limits: h.cfg.RelayLimits, Log: log,
		Inherited: h.cfg.Sockets.UDP, Hold: h.cfg.Sockets.HoldUDP,
		OnBoot: func(n protocol.NodeNumber, b protocol.BootID) { sessions.Booted(n, b) }})
	if err != nil {
		return err
	}
	if err := tun.SetKeys(hubKeys(keys)); err != nil {
		return err
	}
	inv, err := inventory.Open(sctx, inventory.Config{JetStream: agentsJS, Conn: agentsConn, MaxBytes: bus.MaxInventoryBytes * 3 / 4, Events: &events, Log: log,
		Node: nodeName(store)})
	if err != nil {
		return ext.explain(err)
	}
	incidents := incident.New(incident.Config{JetStream: agentsJS, Events: &events, Log: log, Node: nodeName(store)})
	if err := incidents.Open(sctx); err != nil {
		return ext.explain(err)
	}
	news, err := inventory.OpenEvents(sctx, agentsJS)
	if err != nil {
		return ext.explain(err)
	}
	events.Tee(news.Add)
	joins, err := join.New(join.Config{Dir: h.cfg.DataDir, Keys: keys, Store: store, Events: &events, Streams: tun.StreamHandler(), SourceRate: h.cfg.JoinRate,
		Heard: func(ctx context.Context) error { return sessions.Heard(ctx) }, Witness: store.Witness, Log: log})
	if err != nil {
		return err
	}
	sessions = control.New(control.Config{Number: number, Version: h.cfg.Version, Cluster: keys.Cluster, Store: store, Bus: nats, Tunnel: tun, Events: &events,
		RequireProof: h.cfg.RequireProof, Memory: filepath.Join(h.cfg.DataDir, memoryFile), Log: log})
	releases := release.Open(h.packages)
	adminConfig := admin.Config{Version: h.cfg.Version, Number: number, HubKey: keys.Hub, Pin: keys.Cluster.Public().Pin(), Store: store, Control: sessions,
		Inventory: inv, Incidents: incidents, Events: &events, Releases: releases, Disk: guard.Check, Relay: tun.RelayStats, Bound: tun.Bound, Settings: h.cfg.shown(),
		BackupNote: filepath.Join(h.cfg.DataDir, backupNote), Log: log}
	if outside {
		adminConfig.Conditions = append(adminConfig.Conditions, ext.condition)
	}
	adminConfig.PublicHost, _, _ = net.SplitHostPort(public.HTTPS[0])
	if remoteListener != nil || natsListener != nil {
		if adminConfig.CA, err = admin.OpenCA(filepath.Join(h.cfg.DataDir, admin.CAFile)); err != nil {
			return err
		}
	}
	if remoteListener != nil {
		_, adminConfig.AdminPort, _ = net.SplitHostPort(remoteListener.Addr().String())
	}
	readers := bus.Readers{Changed: store.Watch, User: func(key string) (string, bool) {
		u, ok := store.State().NATSUserByKey(key)
		return u.Name, ok
	}}
	if natsListener != nil {
		_, adminConfig.NATSPort, _ = net.SplitHostPort(natsListener.Addr().String())
		if readers.TLS, err = adminConfig.CA.ServerTLS(adminConfig.PublicHost); err != nil {
			return err
		}
	}
	api := admin.New(adminConfig)
	readers.Refused = api.RefusedNATS
	figures := metrics.Config{Version: h.cfg.Version, State: sessions.State, Standings: sessions.Standings, Relay: tun.RelayStats, Events: events.Count, Conditions: api.Conditions,
		Findings: api.Findings, DiskFree: guard.Free, Certificates: map[string]time.Time{"https": joins.CertificateExpires()}, Unready: h.unready,
		More: []prometheus.Collector{joins.Metrics(), inv.Metrics(), nats.Metrics(), files.Metrics()}}
	if adminConfig.CA != nil {
		figures.Certificates["admin-ca"] = adminConfig.CA.Expires()
	}
	cancel()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return store.Run(ctx) })
	g.Go(func() error { return store.WatchArchives(ctx) })
	g.Go(func() error { return watchDisk(ctx, guard, nats, log) })
	if outside {
		g.Go(func() error { return ext.watch(ctx) })
		g.Go(func() error { return nats.Forward(ctx, ext.js, protocol.SubjectInventoryAll) })
	}
	if outside {
		g.Go(func() error { return ext.tellOthers(ctx, sessions) })
	}
	g.Go(func() error { return sessions.Run(ctx) })
	g.Go(func() error { return sessions.RunUpgrades(ctx) })
	p := &parts{store: store, keys: keys, https: httpsListener.Addr(), tunnel: tun, number: number, list: make(chan protocol.Hub), space: guard.Check, away: nats.Failed}
	p.nats = func(ctx context.Context) error {
		_, err := agentsJS.AccountInfo(ctx)
		return err
	}
	if outside { // nothing is stored inside
		p.nats = agentsConn.FlushWithContext
		p.away = func() bool { return ext.away() != nil }
	}
	if metricsListener != nil {
		p.metrics = metricsListener.Addr()
		g.Go(func() error { return metrics.New(figures).Serve(ctx, metricsListener) })
	}
	g.Go(func() error { return h.renewList(ctx, p, public) })
	g.Go(func() error { return inv.Run(ctx) })
	g.Go(func() error { return incidents.Run(ctx) })
	g.Go(func() error { return news.Run(ctx) })
	g.Go(func() error { return explainUDP(h.udp, tun.Run(ctx)) })
	g.Go(func() error {
		select {
		case <-tun.Ready():
		case <-ctx.Done():
			return nil
		}
		for _, a := range overlay {
			l, err := tun.Listen(netip.AddrPortFrom(a, protocol.ControlPort))
			if err != nil {
				return fmt.Errorf("listen for control connections: %w", err)
			}
			g.Go(func() error { return sessions.Serve(ctx, l) })
			long, err := tun.Listen(netip.AddrPortFrom(a, protocol.BulkPort))
			if err != nil {
				return fmt.Errorf("listen for bulk connections: %w", err)
			}
			g.Go(func() error { return sessions.ServeBulk(ctx, long) })
			files, err := tun.Listen(netip.AddrPortFrom(a, protocol.PackagePort))
			if err != nil {
				return fmt.Errorf("listen for agents that upgrade: %w", err)
			}
			g.Go(func() error { return releases.Serve(ctx, files) })
		}
		g.Go(func() error { return joins.Serve(ctx, httpsListener) })
		g.Go(func() error { return api.Serve(ctx, adminListener) })
		if remoteListener != nil {
			g.Go(func() error { return api.ServeRemote(ctx, remoteListener) })
		}
		if natsListener != nil {
			g.Go(func() error { return nats.ServeReaders(ctx, natsListener, readers) })
		}
		log.Info().Str("public_udp", public.UDP[0]).Str("public_https", public.HTTPS[0]).Str("admin_socket", h.cfg.AdminSocket).Str("listen_admin", h.admin).Str("listen_nats", h.nats).Str("listen_metrics", h.metrics).
			Uint32("number", uint32(number)).Uint64("sequence", store.State().Seq).Msg("hub ready")
		h.parts.Store(p)
		close(h.ready)
		return nil
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info().Msg("hub stopped")
	return nil
}

// nodeName names a node, and says whether it is one of the cluster.
func nodeName(store *state.Store) func(protocol.NodeNumber) (string, bool) {
	return func(n protocol.NodeNumber) (string, bool) {
		node, ok := store.State().Nodes[n]
		return node.Name, ok && node.Live()
	}
}

// renewList signs the hub list anew before it expires and when it is to say
// something else, until ctx ends.
func (h *Hub) renewList(ctx context.Context, p *parts, public protocol.Hub) error {
	t := time.NewTicker(24 * time.Hour)
	defer t.Stop()
	var over <-chan time.Time
	if !p.keys.Old.IsZero() {
		over = time.After(time.Until(p.keys.OldUntil))
	}
	keys := p.keys
	for {
		select {
		case <-ctx.Done():
			return nil
		case public = <-p.list:
		case <-t.C:
		case <-over:
			if err := keys.DropOld(h.cfg.DataDir); err != nil {
				h.cfg.Log.Error().Err(err).Msg("old hub key not removed")
			}
			if err := p.tunnel.SetKeys(hubKeys(keys)); err != nil {
				h.cfg.Log.Error().Err(err).Msg("keys cannot be set")
			}
			h.cfg.Log.Info().Msg("the old hub key is good no more")
			continue
		}
		if _, err := join.EnsureHub(ctx, p.store, keys, public, h.cfg.Overlay, h.cfg.NATSURL != ""); err != nil && ctx.Err() == nil {
			h.cfg.Log.Error().Err(err).Msg("hub list not renewed")
		}
	}
}

// hubKeys are the keys that are good at this hub, the present one first.
func hubKeys(k join.Keys) []tunnel.OwnKey {
	out := []tunnel.OwnKey{{Key: k.Hub}}
	if !k.Old.IsZero() {
		out = append(out, tunnel.OwnKey{Key: k.Old})
	}
	return out
}

// publicHub is how the hub list names this hub.
func (h *Hub) publicHub(cfg Config, key protocol.WireGuardPublicKey, https net.Addr) (protocol.Hub, error) {
	host := cfg.PublicHost
	if host == "" {
		var err error
		if host, err = PublicHost(); err != nil {
			return protocol.Hub{}, err
		}
		h.cfg.Log.Warn().Str("public_host", host).Msg("no public host given, agents are told this address; set --public-host if they reach the hub at another")
	}
	httpsPort := cfg.PublicHTTPSPort
	if a, ok := https.(*net.TCPAddr); ok && httpsPort == 0 {
		httpsPort = uint16(a.Port)
	}
	at := func(port uint16) []string { return []string{net.JoinHostPort(host, strconv.Itoa(int(port)))} }
	return protocol.Hub{WireGuardKey: key, UDP: at(cfg.PublicUDPPort), HTTPS: at(httpsPort)}, nil
}

// anyAddress makes 'every address' explicit: the IPv6 one, which takes IPv4 too,
// where the host has IPv6.
func anyAddress(a netip.AddrPort) netip.AddrPort {
	if a.Addr().IsValid() {
		return a
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	}
	unix.Close(fd)
	return netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())
}

func listenTCP(ctx context.Context, flag, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, explainPort(flag, "tcp", addr, err)
	}
	return l, nil
}

func explainUDP(addr netip.AddrPort, err error) error {
	if err == nil {
		return nil
	}
	at := fmt.Sprintf(":%d", addr.Port())
	if addr.Addr().IsValid() {
		at = addr.String()
	}
	var no syscall.Errno
	if !errors.As(err, &no) {
		return fmt.Errorf("tunnel: %w", err)
	}
	return explainPort("listen-udp", "udp", at, err)
}

// explainPort says what to do about a port that cannot be had.
func explainPort(flag, network, addr string, err error) error {
	_, port, _ := net.SplitHostPort(addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: port %s/%s is taken by another program; stop that, or choose another with --%s", flag, port, network, flag)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%s: an ordinary user may not listen on port %s/%s; set the sysctl net.ipv4.ip_unprivileged_port_start=%s, or choose a port above 1023 with --%s", flag, port, network, port, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%s: this host has no address %s", flag, addr)
	}
	return fmt.Errorf("%s %s: %w", flag, addr, err)
}
