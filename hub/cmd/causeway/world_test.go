package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/hub"
	"causeway/hub/api"
	"causeway/hub/hubtest"
	"causeway/hub/session/sessiontest"
	"causeway/protocol"
	"causeway/tunnel"
)

// patience bounds what a script waits for.
const patience = 30 * time.Second

// world is a real hub with three nodes. sh-1 of site idc-sh is ready and reaches eu-1 over the relay. eu-1 of cloud-eu
// is degraded, and announces a route that nobody has approved. eu-2 of cloud-eu was there and is away.
type world struct {
	*hubtest.Hub
	dir   string
	began time.Time
	nodes map[string]*node

	running map[string]*background // commands, by the names that a script gives them
	stopped bool
}

// node is a host that has joined, and what its agent would say.
type node struct {
	sync.Mutex // what speaks for it

	w     *world
	host  *sessiontest.Host
	hello protocol.Hello
	agent *sessiontest.Agent // nil: not connected

	upgrade *protocol.UpgradeStatus // the last; nil: none

	mu      sync.Mutex
	answers map[string][]byte // of its debug API, by path
}

// begun says that there is a world's past.
var begun atomic.Bool

// before is the world's past: what a hub had stored when it was stopped, which each world begins with.
var before = sync.OnceValues(func() (*world, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w, err := startWorld()
	if err != nil {
		return nil, err
	}
	if err := w.populate(ctx); err != nil {
		w.end()
		return nil, err
	}
	begun.Store(true)
	return w, w.stop()
})

// startWorld starts a hub in a directory of its own. Of what has a world begins with its data.
func startWorld(of ...*world) (*world, error) {
	dir, err := os.MkdirTemp(memory(), "cw") // short: a socket's path has at most 107 characters
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, began: time.Now().Truncate(time.Second), nodes: map[string]*node{}, running: map[string]*background{}}
	for _, old := range of {
		w.began = old.began
		for name, n := range old.nodes {
			host := *n.host
			w.nodes[name] = &node{w: w, host: &host, hello: n.hello, answers: map[string][]byte{}}
		}
		if err := os.CopyFS(filepath.Join(dir, "data"), os.DirFS(filepath.Join(old.dir, "data"))); err != nil {
			return nil, err
		}
	}
	w.Hub, err = hubtest.Start(dir, func(c *hub.Config) {
		c.ListenAdmin, c.ListenNATS = "127.0.0.1:0", "127.0.0.1:0"
		c.Packages = filepath.Join(dir, "packages")
	})
	if err != nil {
		os.RemoveAll(dir)
	}
	return w, err
}

// memory is a directory that lies in none but memory, if there is one: what hubs write here need not outlast the host.
func memory() string {
	const shm = "/dev/shm"
	if os.Getenv("TMPDIR") == "" && unix.Access(shm, unix.W_OK) == nil {
		return shm
	}
	return ""
}

func newWorld(ctx context.Context) (*world, error) {
	old, err := before()
	if err != nil {
		return nil, err
	}
	w, err := startWorld(old)
	if err != nil {
		return nil, err
	}
	if err := w.wake(ctx); err != nil {
		w.end()
		return nil, err
	}
	return w, nil
}

func newTestWorld(t *testing.T) *world {
	t.Helper()
	w, err := newWorld(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.end()) })
	return w
}

// populate makes what is stored of the world.
func (w *world) populate(ctx context.Context) error {
	for _, s := range []api.SiteSpec{
		{Name: "idc-sh", Ranges: []netip.Prefix{netip.MustParsePrefix("10.201.0.0/16")}, MaxAge: api.MaxAge(72 * time.Hour)},
		{Name: "cloud-eu"},
	} {
		if _, err := w.Client.CreateSite(ctx, s); err != nil {
			return err
		}
	}
	for _, n := range []struct {
		name string
		spec api.TokenSpec
	}{
		{"sh-1", api.TokenSpec{Site: "idc-sh", Labels: map[string]string{"rack": "r12"}, Routes: []netip.Prefix{netip.MustParsePrefix("10.201.1.0/24")}}},
		{"eu-1", api.TokenSpec{Site: "cloud-eu"}},
		{"eu-2", api.TokenSpec{Site: "cloud-eu"}},
	} {
		node, err := w.join(ctx, n.name, n.spec)
		if err != nil {
			return err
		}
		if err := node.up(ctx); err != nil { // the hub learns its key
			return err
		}
	}
	w.nodes["sh-1"].hello.Routes = []netip.Prefix{netip.MustParsePrefix("10.201.1.0/24")}
	w.nodes["eu-1"].hello.Routes = []netip.Prefix{netip.MustParsePrefix("10.202.1.0/24")}
	return nil
}

// wake has happen what is not stored.
func (w *world) wake(ctx context.Context) error {
	sh, eu := w.nodes["sh-1"], w.nodes["eu-1"]
	w.Tunnel.Bind(sh.host.Answer.Number, netip.MustParseAddrPort("192.0.2.7:40112"))
	w.Tunnel.SetRelay(tunnel.RelayStats{BoundNodes: 2, Bytes: 5 << 30, Datagrams: 4000000, Dropped: map[string]uint64{"unbound": 10, "policy": 2, "malformed": 0}},
		map[string]uint64{"branch/idc-sh": 12})
	if err := eu.up(ctx); err != nil {
		return err
	}
	if err := eu.says(ctx, protocol.Status{Conditions: []protocol.Condition{
		{Name: "tunnel", OK: true, Since: ago(3 * time.Hour)},
		{Name: "firewall", Since: ago(10 * time.Minute), Cause: "docker drops\x1b[2J what comes from the tunnel", DependsOn: []string{"routes"}},
	}}); err != nil {
		return err
	}
	if err := sh.up(ctx); err != nil {
		return err
	}
	return sh.says(ctx, protocol.Status{
		Conditions: []protocol.Condition{{Name: "tunnel", OK: true, Since: ago(3 * time.Hour)}},
		Paths: []protocol.PathStatus{
			{Peer: 1, Name: "hub", Path: protocol.PathDirect, Addr: netip.MustParseAddrPort("203.0.113.10:51820"), RTT: 21340 * time.Microsecond, Since: ago(3 * time.Hour), RxBytes: 4096, TxBytes: 2048},
			{Peer: 3, Name: "eu-1", Path: protocol.PathRelay, Addr: netip.MustParseAddrPort("203.0.113.10:51820"), RTT: 43 * time.Millisecond, Loss: 0.04, MTU: 1440, Since: ago(5 * time.Minute), RxBytes: 3 << 30, TxBytes: 1 << 20},
		}})
}

func ago(d time.Duration) time.Time { return time.Now().Add(-d) }

// join has a host join, whose agent is connected nowhere yet.
func (w *world) join(ctx context.Context, name string, spec api.TokenSpec) (*node, error) {
	h, err := w.Join(ctx, name, spec)
	if err != nil {
		return nil, err
	}
	n := &node{w: w, host: h, hello: protocol.Hello{AgentVersion: "v0.1.0", Engine: "inline", Features: []string{protocol.FeatureUpgrade}}, answers: map[string][]byte{}}
	if name == "sh-1" { // the others' agents are older
		n.hello.Features = append(n.hello.Features, protocol.ItemFeature(protocol.ItemPolicy), protocol.ItemFeature(protocol.ItemSegment))
	}
	w.nodes[name] = n
	return n, nil
}

// up connects the agent, instead of the session before, and waits for its netmap.
func (n *node) up(ctx context.Context) (err error) {
	n.close()
	if n.agent, err = n.w.Tunnel.Connect(ctx, n.host, n.hello, http.HandlerFunc(n.answer)); err != nil {
		return err
	}
	_, err = n.agent.Until(ctx, func(protocol.Netmap) bool { return true })
	return err
}

// down breaks the session, and waits until the hub knows.
func (n *node) down(ctx context.Context) error {
	if n.agent == nil {
		return nil
	}
	n.close()
	return until(ctx, func() bool {
		got, err := n.w.Client.Node(ctx, n.host.Answer.Name)
		return err != nil || got.Connected.IsZero()
	})
}

func (n *node) close() {
	if n.agent != nil {
		n.agent.Close()
		n.agent = nil
	}
}

// says sends a status, and waits until the hub has it.
func (n *node) says(ctx context.Context, s protocol.Status) error {
	if err := n.agent.Send(protocol.KindStatus, s); err != nil {
		return err
	}
	return n.agent.Flush(ctx)
}

// answer is the agent's debug API.
func (n *node) answer(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	b, ok := n.answers[r.URL.Path]
	n.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	if text, refuses := strings.CutPrefix(string(b), "refuse "); refuses {
		w.WriteHeader(http.StatusConflict)
		json.NewEncoder(w).Encode(protocol.DebugError{Error: strings.TrimSpace(text)})
		return
	}
	if n, ok := strings.CutPrefix(string(b), "fill "); ok { // so many bytes
		size, _ := strconv.Atoi(strings.TrimSpace(n))
		b = bytes.Repeat([]byte(" "), size)
	}
	if r.URL.Path == protocol.DebugCapture {
		w.Header().Set("Content-Type", api.CaptureType)
		b = bytes.Replace(b, []byte("pcapng"), []byte("\n\r\r\n"), 1)
		b = fmt.Appendf(b, "%s for %s", r.FormValue("filter"), r.FormValue("for"))
	}
	w.Write(b)
}

// tells publishes a snapshot of the node's facts, and waits until the hub shows it.
func (n *node) tells(ctx context.Context, name string, i protocol.Inventory) error {
	if err := n.agent.Publish(ctx, protocol.InventorySubject(n.site(), n.host.Answer.Number), i); err != nil {
		return err
	}
	return until(ctx, func() bool {
		got, err := n.w.Client.Inventory(ctx, name)
		return err == nil && got.Sequence == i.Sequence
	})
}

// mends publishes an incident, and waits until the hub has it.
func (n *node) mends(ctx context.Context, i protocol.Incident) error {
	if err := n.agent.Publish(ctx, protocol.IncidentSubject(n.site(), n.host.Answer.Number), i); err != nil {
		return err
	}
	return until(ctx, func() bool {
		got, err := n.w.Client.Incident(ctx, fmt.Sprintf("%d-%d", n.host.Answer.Number, i.Number))
		return err == nil && got.Revision == i.Revision
	})
}

// logs publishes a report of flows, and waits until the hub has it.
func (n *node) logs(ctx context.Context, r protocol.FlowReport) error {
	if err := n.agent.Publish(ctx, protocol.FlowSubject(n.site(), n.host.Answer.Number), r); err != nil {
		return err
	}
	last := r.Flows[len(r.Flows)-1]
	return until(ctx, func() bool {
		l, err := n.w.Client.Flows(ctx, api.FlowQuery{From: last.From.String(), To: last.To.String(), Since: last.Last})
		return err == nil && len(l) > 0
	})
}

// switches publishes what the node switched of services, and waits until the hub has it.
func (n *node) switches(ctx context.Context, r protocol.SwitchReport) error {
	if err := n.agent.Publish(ctx, protocol.SwitchesSubject(n.site(), n.host.Answer.Number), r); err != nil {
		return err
	}
	last := r.Switches[len(r.Switches)-1]
	return until(ctx, func() bool {
		l, err := n.w.Client.ServiceEvents(ctx, api.ServiceEventQuery{Service: last.Service, Since: last.Time})
		return err == nil && len(l) > 0
	})
}

// obey has the agent make the keys and take the versions that its netmaps ask for, as a real one does; with fails,
// upgrades fail so. It is over when the function that it returns has returned.
func (n *node) obey(fails string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			n.Lock()
			a := n.agent
			n.Unlock()
			if a == nil {
				return
			}
			asked := func(m protocol.Netmap) bool {
				return m.Self.KeyEpoch > n.host.Epoch || m.Self.Upgrade != nil && (n.upgrade == nil || n.upgrade.UpgradeWish != *m.Self.Upgrade)
			}
			m, err := a.Until(ctx, asked)
			if err != nil {
				return
			}
			n.Lock()
			if err := n.follow(ctx, m.Self, fails); err != nil && ctx.Err() == nil {
				panic(err)
			}
			n.Unlock()
		}
	})
	return func() { cancel(); wg.Wait() }
}

// follow does what a netmap asks for, and comes back.
func (n *node) follow(ctx context.Context, self protocol.NetmapSelf, fails string) error {
	if self.KeyEpoch > n.host.Epoch {
		if err := n.host.Rekey(); err != nil {
			return err
		}
	}
	if u := self.Upgrade; u != nil {
		n.upgrade = &protocol.UpgradeStatus{UpgradeWish: *u, State: protocol.UpgradeDone}
		if fails != "" {
			n.upgrade.State, n.upgrade.Error = protocol.UpgradeFailed, fails
		} else {
			n.hello.AgentVersion = u.Version
		}
	}
	if err := n.up(ctx); err != nil {
		return err
	}
	return n.says(ctx, protocol.Status{Conditions: []protocol.Condition{{Name: "tunnel", OK: true, Since: time.Now()}}, Upgrade: n.upgrade})
}

// release puts a release into the hub's packages. The hub checks no signature: agents do.
func (w *world) release(version string) error {
	dir := filepath.Join(w.dir, "packages")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"causeway-agent_" + version + "_amd64.bin": "bin",
		"causeway_" + version + ".json.sig":        "sig",
		"causeway_" + version + ".json": `{"version":"` + version + `","minimum":"0.0.0-0","files":[{"name":"causeway-agent_` + version + `_amd64.bin","program":"causeway-agent","arch":"amd64","size":3,"sha256":"` +
			strings.Repeat("0", 64) + `"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// twoHosts has processes of two hosts take turns with a node's identity, until the hub shuts it off.
func (w *world) twoHosts(ctx context.Context, name string) error {
	for i := range byte(4) {
		w.Booted(w.nodes[name].host.Answer.Number, protocol.BootID{i % 2, 2})
	}
	return until(ctx, func() bool {
		n, err := w.Client.Node(ctx, name)
		return err == nil && n.State == api.NodeQuarantined
	})
}

func (n *node) site() string { return n.host.Answer.Site }

// stop ends the hub, and before it all agents.
func (w *world) stop() error {
	if w.stopped {
		return nil
	}
	w.stopped = true
	for _, n := range w.nodes {
		n.Lock()
		n.close()
		n.Unlock()
	}
	return w.Hub.Close()
}

// end stops all of it.
func (w *world) end() error {
	err := w.stop()
	if rerr := os.RemoveAll(w.dir); err == nil {
		err = rerr
	}
	return err
}

// until waits for a condition.
func until(ctx context.Context, cond func() bool) error {
	for !cond() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

var (
	seconds = regexp.MustCompile(`(?m)(^|[ (])\d{1,3}s( *)`)
	stamps  = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)
	took    = regexp.MustCompile(`(?m)^(took ).*$`)
	keys    = regexp.MustCompile(`(wgpub:)[\w-]{43}`)
	ports   = regexp.MustCompile(`127\.0\.0\.1:\d{5}\b`)
	agos    = regexp.MustCompile(`ago\((\w+)\)`)
)

// steady is what a command printed, without what differs from run to run: ages of a few seconds are 0s, what took a while took that, times
// of today underscores and others in UTC, keys KEY, ports of the system's choice PORTS. Columns stay where they are.
func (w *world) steady(s string) string {
	s = seconds.ReplaceAllStringFunc(s, func(m string) string {
		t := strings.TrimRight(m, " ")
		at := strings.TrimLeft(t, " (")
		lead, pad := t[:len(t)-len(at)], len(m)-len(t)
		if pad > 1 { // a column
			pad += len(at) - len("0s")
		}
		return lead + "0s" + strings.Repeat(" ", pad)
	})
	s = took.ReplaceAllString(s, "${1}a while")
	s = stamps.ReplaceAllStringFunc(s, func(m string) string {
		t, err := time.ParseInLocation(time.DateTime, m, time.Local)
		switch {
		case err != nil:
			return m
		case t.After(w.began.Add(-24 * time.Hour)):
			return "____-__-__ __:__:__"
		}
		return t.UTC().Format(time.DateTime)
	})
	return withoutPorts(keys.ReplaceAllString(s, "${1}KEY"))
}

func withoutPorts(s string) string {
	return ports.ReplaceAllStringFunc(s, func(m string) string {
		if strings.HasSuffix(m, ":51820") {
			return m
		}
		return "127.0.0.1:PORTS"
	})
}

// fact is a file of a script in which ago(3h) is the time of three hours ago.
func fact(text string) string {
	return agos.ReplaceAllStringFunc(text, func(m string) string {
		d, err := time.ParseDuration(agos.FindStringSubmatch(m)[1])
		if err != nil {
			return m
		}
		return ago(d).UTC().Format(time.RFC3339)
	})
}
