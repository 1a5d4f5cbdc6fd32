package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/facts/event"
	"causeway/hub/join"
	"causeway/hub/state"
	"causeway/protocol"
)

// natsCluster is three NATS servers with JetStream.
type natsCluster struct {
	t       *testing.T
	opts    [3]*server.Options
	servers [3]*server.Server
}

func newNATSCluster(t *testing.T) *natsCluster {
	t.Helper()
	c := &natsCluster{t: t}
	ports := freePorts(t, 6)
	var routes []string
	for i := range c.opts {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", ports[3+i]))
	}
	for i := range c.opts {
		c.opts[i] = &server.Options{ServerName: fmt.Sprintf("s%d", i), Host: "127.0.0.1", Port: ports[i], NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
			SyncAlways: true, JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: 8 << 30, Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: ports[3+i]},
			Routes: server.RoutesFromStr(strings.Join(routes, ","))}
		c.start(i)
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.stop(i)
		}
	})
	return c
}

func (c *natsCluster) start(i int) {
	c.t.Helper()
	s, err := server.NewServer(c.opts[i].Clone())
	require.NoError(c.t, err)
	c.servers[i] = s
	s.Start()
	require.True(c.t, s.ReadyForConnections(patience))
}

func (c *natsCluster) stop(i int) {
	if s := c.servers[i]; s != nil {
		s.Shutdown()
		s.WaitForShutdown()
		c.servers[i] = nil
	}
}

func (c *natsCluster) urls() string {
	var out []string
	for _, o := range c.opts {
		out = append(out, fmt.Sprintf("nats://127.0.0.1:%d", o.Port))
	}
	return strings.Join(out, ",")
}

// leader is the server that leads the state log.
func (c *natsCluster) leader(js jetstream.JetStream) int {
	c.t.Helper()
	at := -1
	require.Eventually(c.t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s, err := js.Stream(ctx, state.StreamName)
		if err != nil {
			return false
		}
		for i, o := range c.opts {
			if o.ServerName == s.CachedInfo().Cluster.Leader {
				at = i
			}
		}
		return at >= 0
	}, patience, 50*time.Millisecond)
	return at
}

// freePorts are ports that nobody listens on now.
func freePorts(t *testing.T, n int) (out []int) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).Port)
	}
	return out
}

func condition(w *world, name string) (c protocol.Condition) {
	var st api.Status
	w.must("GET", "/v1/status", nil, &st)
	for _, x := range st.Conditions {
		if x.Name == name {
			return x
		}
	}
	return c
}

// A hub on a cluster of three: the leader of its log is stopped, and once it is back,
// the next leader. Nothing that was acknowledged is lost, of state or inventory, and no
// session ends. In a soak, with two stopped, changes are refused in one line, agents
// that come back are welcomed, and all heals by itself; another hub on the log sees the same.
func TestExternalCluster(t *testing.T) {
	t.Parallel()
	c := newNATSCluster(t)
	w, err := tryStart(t, t.TempDir(), func(cfg *Config) { cfg.NATSURL, cfg.SnapshotEvery = c.urls(), 10 })
	require.NoError(t, err)
	nc, err := nats.Connect(c.urls(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	require.NoError(t, err)
	defer nc.Close()
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	for _, name := range []string{state.StreamName, protocol.InventoryStream} {
		s, err := js.Stream(t.Context(), name)
		require.NoError(t, err, name)
		require.Equal(t, 3, s.CachedInfo().Config.Replicas, name)
	}
	w.site("a")
	one := joined(t, w, "one", api.TokenSpec{Site: "a"})
	a := w.dial(one, nil)
	a.until("a netmap", func(protocol.Netmap) bool { return true })
	alive, sleep := context.WithCancel(t.Context())
	defer sleep()
	go func() { // as agents do
		for alive.Err() == nil {
			a.ready()
			select {
			case <-alive.Done():
			case <-time.After(protocol.StatusInterval):
			}
		}
	}()
	require.True(t, condition(w, "nats").OK)

	// Changes and facts, all the time; what was acknowledged counts.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var sites, facts atomic.Int64
	var factsDone, sitesDone = make(chan struct{}), make(chan struct{})
	var refused atomic.Int64
	go func() {
		defer close(sitesDone)
		for i := 0; ctx.Err() == nil; i++ {
			for ctx.Err() == nil { // the same again until it is taken: it may have been, without an answer
				code, detail := w.call("POST", "/v1/sites", api.SiteSpec{Name: fmt.Sprintf("s%04d", i)}, nil)
				if code < 300 || code == 409 {
					sites.Store(int64(i + 1))
					break
				}
				if code != 503 {
					t.Errorf("site %d: %d %s", i, code, detail)
				}
				refused.Add(1)
			}
		}
	}()
	go func() {
		defer close(factsDone)
		publishFacts(ctx, t, a, one, &facts)
	}()
	progress := func(what string) {
		t.Helper()
		s, f := sites.Load(), facts.Load()
		require.Eventually(t, func() bool { return sites.Load() > s+3 && facts.Load() > f+3 }, 2*patience, 20*time.Millisecond, what)
	}
	progress("at first")
	require.Eventually(t, func() bool {
		s, err := js.Stream(ctx, state.StreamName)
		return err == nil && s.CachedInfo().State.FirstSeq > 1
	}, 2*patience, 50*time.Millisecond, "the log is cut")
	full := os.Getenv("CAUSEWAY_SOAK") != ""
	leaders := 1
	if full {
		leaders = 2
	}
	for round := range leaders {
		i := c.leader(js)
		begin := time.Now()
		c.stop(i)
		progress(fmt.Sprintf("without leader %d", i))
		t.Logf("round %d: changes and facts go on %s after the leader was stopped", round, time.Since(begin).Round(10*time.Millisecond))
		c.start(i)
		require.Eventually(t, func() bool { // both others have all there is
			s, err := js.Stream(ctx, state.StreamName)
			if err != nil || s.CachedInfo().Cluster.Leader == "" {
				return false
			}
			current := 0
			for _, r := range s.CachedInfo().Cluster.Replicas {
				if r.Current && !r.Offline {
					current++
				}
			}
			return current == 2
		}, 2*patience, 50*time.Millisecond)
		progress("with all again")
	}
	cancel()
	<-sitesDone
	<-factsDone
	if full {
		c.outage(t, w, js, one)
	}
	var events []api.Event
	w.must("GET", "/v1/events", nil, &events)
	for _, e := range events {
		require.NotEqual(t, event.NodeDown, e.Kind, "no session ended but by its agent: %v", events)
	}
	hubs := []*world{w}
	if full {
		hubs = append(hubs, c.secondHub(t, w))
	}
	// Everything that was acknowledged is there.
	for _, w := range hubs {
		var list []api.Site
		w.must("GET", "/v1/sites", nil, &list)
		have := map[string]bool{}
		for _, s := range list {
			have[s.Name] = true
		}
		for i := range sites.Load() {
			require.True(t, have[fmt.Sprintf("s%04d", i)], "site %d of %d", i, sites.Load())
		}
		require.Eventually(t, func() bool {
			var inv api.Inventory
			code, _ := w.call("GET", "/v1/inventory/one", nil, &inv)
			return code == 200 && int64(inv.Sequence) >= facts.Load()
		}, patience, 20*time.Millisecond)
	}
	t.Logf("%d sites and %d facts acknowledged, none lost; %d changes refused meanwhile", sites.Load(), facts.Load(), refused.Load())
}

// outage takes the cluster's majority away and gives it back.
func (c *natsCluster) outage(t *testing.T, w *world, js jetstream.JetStream, one *host) {
	stopped := []int{c.leader(js)}
	stopped = append(stopped, (stopped[0]+1)%3)
	for _, i := range stopped {
		c.stop(i)
	}
	require.Eventually(t, func() bool { return !condition(w, "nats").OK }, patience, 50*time.Millisecond)
	begin := time.Now()
	code, detail := w.call("POST", "/v1/sites", api.SiteSpec{Name: "late"}, nil)
	require.Equal(t, 503, code)
	require.Contains(t, detail, "no change is taken until it is back")
	require.Less(t, time.Since(begin), time.Second, "it is refused at once")
	again := w.dial(one, nil) // an agent whose connection broke
	again.until("a netmap", func(protocol.Netmap) bool { return true })
	for _, i := range stopped {
		c.start(i)
	}
	require.Eventually(t, func() bool { return condition(w, "nats").OK }, 2*patience, 50*time.Millisecond)
	require.Eventually(t, func() bool {
		code, _ := w.call("POST", "/v1/sites", api.SiteSpec{Name: "late"}, nil)
		return code < 300 || code == 409
	}, patience, 50*time.Millisecond)
	var events []api.Event
	w.must("GET", "/v1/events", nil, &events)
	kinds := map[string]int{}
	for _, e := range events {
		kinds[e.Kind]++
	}
	require.Positive(t, kinds[event.NATSAway])
	require.Positive(t, kinds[event.NATSBack])
}

// A hub stops when it is told to, also while the server that it is connected to has no
// majority and nothing can be read.
func TestStopWithoutMajority(t *testing.T) {
	t.Parallel()
	c := newNATSCluster(t)
	w, err := tryStart(t, t.TempDir(), func(cfg *Config) { cfg.NATSURL, cfg.ListenMetrics = c.urls(), "127.0.0.1:0" })
	require.NoError(t, err)
	code, line := w.get("/readyz")
	require.Equal(t, "200 ok\n", fmt.Sprint(code, " ", line))
	w.site("a")
	at := 0
	for i, s := range c.servers {
		if s.NumClients() > 0 {
			at = i
		}
	}
	left := (at + 2) % 3
	c.stop((at + 1) % 3)
	c.stop(at)
	require.Eventually(t, func() bool { return c.servers[left].NumClients() > 0 && !condition(w, "nats").OK }, 2*patience, 20*time.Millisecond)
	code, line = w.get("/readyz")
	require.Equal(t, "503 not ready: nats\n", fmt.Sprint(code, " ", line))
	code, _ = w.get("/healthz")
	require.Equal(t, 200, code)
	require.Equal(t, 0.0, w.metric(`causeway_hub_condition{condition="nats"}`))
	require.Equal(t, 0.0, w.metric("causeway_hub_ready"))
	begin := time.Now()
	w.stop()
	t.Logf("stopped within %s", time.Since(begin).Round(10*time.Millisecond))
}

// secondHub starts another hub on the log.
func (c *natsCluster) secondHub(t *testing.T, w *world) *world {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	require.NoError(t, os.MkdirAll(data, 0o700))
	key, err := os.ReadFile(filepath.Join(w.dir, "data", join.ClusterKeyFile))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(data, join.ClusterKeyFile), key, 0o600))
	two, err := tryStart(t, dir, func(cfg *Config) {
		cfg.NATSURL = c.urls()
		cfg.ListenUDP, cfg.ListenHTTPS = "127.0.0.1:51821", "127.0.0.1:0"
	})
	require.NoError(t, err)
	return two
}

// What a node announces and nobody decided on is seen, and decided on, at each hub of a log; the hub that
// the node left forgets it.
func TestHubsTellEachOtherWhatWaits(t *testing.T) {
	t.Parallel()
	c := newNATSCluster(t)
	one, err := tryStart(t, t.TempDir(), func(cfg *Config) { cfg.NATSURL = c.urls() })
	require.NoError(t, err)
	one.site("a")
	h := joined(t, one, "n1", api.TokenSpec{Site: "a"})
	two := c.secondHub(t, one)
	at := func(w *world) *host { // as it dials that hub
		var status api.Status
		w.must("GET", "/v1/status", nil, &status)
		x := *h
		x.hubs.Hubs = []protocol.Hub{{Number: status.Hub.Number}}
		return &x
	}
	announce := func(routes ...string) func(*protocol.Hello) {
		return func(h *protocol.Hello) { h.Routes = prefixes(routes...) }
	}
	pending := func(w *world) (out []string, alike bool) {
		var routes []api.Route
		w.must("GET", "/v1/routes", nil, &routes)
		for _, r := range routes {
			if r.State == protocol.RoutePending {
				out = append(out, r.Prefix.String())
			}
		}
		var n api.Node
		w.must("GET", "/v1/nodes/n1", nil, &n)
		shown := slices.DeleteFunc(n.Routes, func(r api.Route) bool { return r.State != protocol.RoutePending })
		return out, len(shown) == len(out) // node show says what route list says
	}
	both := func(want ...string) {
		t.Helper()
		for i, w := range []*world{one, two} {
			require.Eventually(t, func() bool {
				have, alike := pending(w)
				return alike && slices.Equal(have, want)
			}, patience, 20*time.Millisecond, "hub %d does not show %v", i+1, want)
		}
	}
	a := one.dial(at(one), announce("10.1.0.0/24", "10.2.0.0/24"))
	both("10.1.0.0/24", "10.2.0.0/24")
	var r api.Route
	two.must("POST", "/v1/routes/decide", api.RouteDecision{Node: "n1", Prefix: netip.MustParsePrefix("10.1.0.0/24"), Approve: true}, &r)
	require.Equal(t, protocol.RouteApproved, r.State)
	both("10.2.0.0/24")
	a.until("the approval", func(n protocol.Netmap) bool {
		return slices.Contains(n.Self.Routes, protocol.AnnouncedRoute{Prefix: netip.MustParsePrefix("10.1.0.0/24"), State: protocol.RouteApproved})
	})

	a.m.Close() // away, it is known; at the other hub, that one knows
	<-a.ended
	both("10.2.0.0/24")
	b := two.dial(at(two), announce("10.1.0.0/24", "10.3.0.0/24"))
	both("10.3.0.0/24")
	code, why := one.call("POST", "/v1/routes/decide", api.RouteDecision{Node: "n1", Prefix: netip.MustParsePrefix("10.2.0.0/24"), Approve: true}, nil)
	require.NotEqual(t, 200, code)
	require.Contains(t, why, "does not announce")
	one.must("POST", "/v1/routes/decide", api.RouteDecision{Node: "n1", Prefix: netip.MustParsePrefix("10.3.0.0/24")}, &r)
	require.Equal(t, protocol.RouteRejected, r.State)
	both()
	b.m.Close()
	<-b.ended
}

// publishFacts publishes snapshots over a nats stream of the agent's session, one after
// the other, each until it is acknowledged.
func publishFacts(ctx context.Context, t *testing.T, a *agent, h *host, acked *atomic.Int64) {
	n := h.answer.Number
	nc, err := nats.Connect("nats://hub", nats.SetCustomDialer(natsDialer{a}), nats.SkipHostLookup(), nats.NoReconnect(), nats.CustomInboxPrefix(protocol.InboxPrefix(n)))
	if err != nil {
		t.Error(err)
		return
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Error(err)
		return
	}
	for seq := int64(1); ctx.Err() == nil; seq++ {
		b, err := json.Marshal(protocol.Inventory{Version: protocol.Version, Sequence: uint64(seq), BootID: protocol.BootID{1}, Time: time.Now(), Hostname: "one",
			PodCIDRs: []netip.Prefix{}, Interfaces: []protocol.Interface{}})
		if err != nil {
			t.Error(err)
			return
		}
		for ctx.Err() == nil {
			pctx, done := context.WithTimeout(ctx, 2*time.Second)
			_, err := js.Publish(pctx, protocol.InventorySubject("a", n), b, jetstream.WithMsgID(fmt.Sprint(seq)))
			done()
			if err == nil {
				acked.Store(seq)
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	if !nc.IsConnected() {
		t.Error("the agent's nats connection broke")
	}
}

func TestExternalSettings(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, []byte(content), mode))
		require.NoError(t, os.Chmod(p, mode))
		return p
	}
	const creds = "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------\n-----BEGIN USER NKEY SEED-----\nSUAtopsecret\n------END USER NKEY SEED------\n"
	require.NoError(t, checkCreds(file("good", creds, 0o600)))
	require.NoError(t, checkCreds(file("group", creds, 0o640)))
	for path, says := range map[string]string{
		filepath.Join(dir, "none"):          "there is no file",
		dir:                                 "is no file",
		file("world", creds, 0o644):         "chmod 600",
		file("groupw", creds, 0o660):        "chmod 600",
		file("text", "SUAtopsecret", 0o600): "no file of NATS credentials",
		file("large", creds+strings.Repeat("x", maxCredsFile), 0o600): "too large",
	} {
		err := checkCreds(path)
		require.ErrorContains(t, err, says, path)
		require.NotContains(t, err.Error(), "SUA")
		require.NotContains(t, err.Error(), "\n")
	}
	for _, cfg := range []Config{
		{NATSCreds: "x"}, {NATSCA: "x"}, {NATSReplicas: 3}, {NATSURL: "nats://127.0.0.1:1", NATSReplicas: 6},
		{NATSURL: "http://x"}, {NATSURL: "nats://user:secret@x"}, {JoinRate: -1}, {JoinRate: 1 << 20},
	} {
		cfg.ListenUDP = ":51820"
		_, err := New(cfg)
		require.Error(t, err, "%+v", cfg)
		require.NotContains(t, err.Error(), "secret")
	}
}

// A hub whose external NATS is gone is not stuck: its watchdog does not end it, and
// sessions go on. It only is not ready.
func TestAliveWithoutExternalNATS(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: freePorts(t, 1)[0], NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()})
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	require.True(t, s.ReadyForConnections(patience))
	w, err := tryStart(t, t.TempDir(), func(cfg *Config) { cfg.NATSURL, cfg.ListenMetrics = s.ClientURL(), "127.0.0.1:0" })
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, w.hub.Alive(ctx))
	s.Shutdown()
	s.WaitForShutdown()
	require.Eventually(t, func() bool { return w.hub.unready() == "nats" }, patience, 20*time.Millisecond)
	require.NoError(t, w.hub.Alive(ctx))
}

// updated notes the configuration that a stream gets.
type updated struct {
	jetstream.JetStream
	to jetstream.StreamConfig
}

func (u *updated) UpdateStream(_ context.Context, c jetstream.StreamConfig) (jetstream.Stream, error) {
	u.to = c
	return nil, nil
}

// A change of a stream raises its replicas and never lowers them.
func TestReplicasAreNeverLowered(t *testing.T) {
	for has, want := range map[int]int{1: 3, 3: 3, 5: 5} {
		u := &updated{}
		_, err := replicated{u, 3}.UpdateStream(t.Context(), jetstream.StreamConfig{Replicas: has})
		require.NoError(t, err)
		require.Equal(t, want, u.to.Replicas)
	}
}
