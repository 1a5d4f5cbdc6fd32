package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
	"causeway/tunnel"
)

// world is a loop over a real state log. It stands in for tunnel and sessions.
type world struct {
	*Loop
	t       *testing.T
	store   *state.Store
	fleet   *fleet.Table
	events  event.Log
	changed chan struct{}
	log     bytes.Buffer

	mu       sync.Mutex
	nodes    []tunnel.HubNode
	bounds   [][]tunnel.RelayBound // each time that they were set
	refuses  error
	proven   map[number]time.Time
	told     []protocol.StateMark
	to       map[*fleet.Session]int
	farewell map[*fleet.Session]func() // done of each
}

// newWorld has nodes 2 to nodes+1, whose agents ran.
func newWorld(t *testing.T, nodes int, change func(*Config)) *world {
	w := &world{t: t, store: statetest.Open(t), changed: make(chan struct{}, 1), proven: map[number]time.Time{}, to: map[*fleet.Session]int{}, farewell: map[*fleet.Session]func(){}}
	_, err := w.store.Update(t.Context(), "hub", "start", func(d *state.Draft) error { return statetest.Fill(d, nodes) })
	require.NoError(t, err)
	log := zerolog.New(zerolog.SyncWriter(&w.log))
	w.fleet = fleet.New(fleet.Config{Number: 1, State: w.store.State, Proven: w.Proven, Events: &w.events, Log: log})
	key, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	cfg := Config{Cluster: key, Store: w.store, Fleet: w.fleet, Sessions: w, Tunnel: w, Boots: NewBoots(), Events: &w.events, Log: log}
	if change != nil {
		change(&cfg)
	}
	w.Loop = New(cfg)
	return w
}

func (w *world) SetNodes(n []tunnel.HubNode) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes = n
	return w.refuses
}

func (w *world) SetRelayBounds(l []tunnel.RelayBound) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bounds = append(w.bounds, l)
}

// bounded are the names of the relay's bounds each time that they were set.
func (w *world) bounded() (out [][]string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.bounds {
		names := []string{}
		for _, b := range l {
			names = append(names, b.Name)
		}
		out = append(out, names)
	}
	return out
}

func (w *world) has(n number) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.nodes {
		if x.Number == n {
			return true
		}
	}
	return false
}

func (w *world) Bound(number) []netip.AddrPort { return nil }

func (w *world) Proven(n number) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.proven[n]
}

func (w *world) BoundChanged() <-chan struct{} { return w.changed }

func (w *world) Farewell(ses *fleet.Session, done func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.farewell[ses] != nil {
		w.t.Error("said farewell twice")
	}
	w.farewell[ses] = done
}

func (w *world) TellMark(ses *fleet.Session, m protocol.StateMark) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, m)
	w.to[ses]++
}

// up gives node n a session.
func (w *world) up(n number, h protocol.Hello) *fleet.Session {
	ses := fleet.NewSession(n, true)
	_, ok := w.fleet.Up(ses, h)
	require.True(w.t, ok)
	return ses
}

// update decides something.
func (w *world) update(why string, decide func(*state.Draft) error) {
	w.t.Helper()
	_, err := w.store.Update(context.Background(), "olga", why, decide)
	require.NoError(w.t, err)
}

// step runs one step as of then, and waits for what it stores.
func (w *world) step(name string, then time.Time) error {
	w.t.Helper()
	for _, s := range w.steps {
		if s.name == name {
			err := s.run(w.t.Context(), &turn{step: s, state: w.store.State(), now: then, table: w.fleet})
			w.work.Wait()
			return err
		}
	}
	w.t.Fatal("no step ", name)
	return nil
}

// run runs the loop until the test ends, or until stop is called.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(w.t, <-done)
	})
	w.t.Cleanup(stop)
	return stop
}

func (w *world) eventually(is func() bool, what string) {
	w.t.Helper()
	require.Eventually(w.t, is, 20*time.Second, 5*time.Millisecond, what)
}

// count is the value of a counter of a step; -1: there is none.
func (w *world) count(name, step string) float64 {
	r := prometheus.NewRegistry()
	r.MustRegister(w.Metrics())
	all, err := r.Gather()
	require.NoError(w.t, err)
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == "causeway_hub_reconcile_"+name && m.GetLabel()[0].GetValue() == step {
				return m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

// One change of the state after the other leads to what it asks for.
func TestLoop(t *testing.T) {
	w := newWorld(t, 3, func(c *Config) { c.Memory = filepath.Join(t.TempDir(), "live.json") })
	stop := w.run()
	w.eventually(func() bool { return w.has(2) && w.has(3) && w.has(4) }, "the tunnel has the nodes")
	w.eventually(func() bool { return w.fleet.Netmaps() != nil }, "netmaps")
	two, three := w.up(2, protocol.Hello{}), w.up(3, protocol.Hello{})
	p := pfx("10.1.1.0/24")
	w.update("announce", func(d *state.Draft) error { return state.AnnounceRoutes(d, 3, []netip.Prefix{p}) })
	w.eventually(func() bool { return w.fleet.Owner(2, p) == 3 }, "it is in netmaps")
	<-two.Awake()
	w.fleet.Holds(two, w.fleet.Netmaps())
	w.fleet.Holds(three, w.fleet.Netmaps())

	// A node that is revoked hears so before the tunnel lets go of it, and is followed.
	w.update("revoke", func(d *state.Draft) error { return state.Remove(d, 3, state.GoneRevoked) })
	said := func() func() { w.mu.Lock(); defer w.mu.Unlock(); return w.farewell[three] }
	w.eventually(func() bool { return said() != nil }, "farewell")
	w.eventually(func() bool { return w.fleet.Netmaps().Gone != nil }, "netmaps say so")
	require.True(t, w.has(3))
	gone := w.store.State().Nodes.Get(3)
	require.Negative(t, w.Revocation(gone).Cut)
	w.fleet.Holds(two, w.fleet.Netmaps())
	said()()
	w.eventually(func() bool { return !w.has(3) }, "the tunnel lets go of it")
	w.eventually(func() bool { return w.Revocation(gone).Cut >= 0 }, "that is noted")
	require.GreaterOrEqual(t, w.Revocation(gone).Nodes[0].After, time.Duration(0))

	// A copy of a machine is shut off.
	for _, b := range []byte{1, 2, 1, 2} {
		w.cfg.Boots.Saw(4, protocol.BootID{b})
	}
	w.eventually(func() bool { return w.store.State().Nodes.Get(4).Quarantine != "" }, "it is shut off")
	w.eventually(func() bool { return w.events.Count(event.NodeCloned) == 1 }, "and that is told")
	require.Empty(t, w.bounded(), "nothing is limited")
	w.update("limit", func(d *state.Draft) error {
		return state.PutObject(d, protocol.ItemLimit, "each", []byte(`{"node":"*","packets":5}`))
	})
	w.eventually(func() bool { return len(w.bounded()) == 1 }, "the relay is limited")
	require.Equal(t, []string{"each/n2", "each/n4"}, w.bounded()[0])
	w.update("no limit", func(d *state.Draft) error { return d.Add(state.ObjectDeleted{Kind: protocol.ItemLimit, Name: "each"}) })
	w.eventually(func() bool { return len(w.bounded()) == 2 }, "it is limited no more")
	require.Empty(t, w.bounded()[1])
	require.Empty(t, w.store.State().Nodes.Get(2).Quarantine)

	for _, s := range w.steps {
		require.GreaterOrEqual(t, w.count("runs_total", s.name), 0.0, s.name)
		require.Zero(t, w.count("errors_total", s.name), s.name)
	}
	w.eventually(func() bool { return w.count("runs_total", "judge") > 0 && w.count("runs_total", "upgrade") > 0 }, "what runs by time")
	require.Greater(t, w.count("seconds_total", "netmaps"), 0.0)
	stop()
	m, err := fleet.LoadMemory(w.cfg.Memory)
	require.NoError(t, err)
	require.True(t, m.Nodes[2].Online)
	for _, step := range []string{"revoke", "tunnel", "clone", "netmaps", "memory"} {
		require.Contains(t, w.log.String(), fmt.Sprintf(`"level":"debug","step":%q`, step))
	}
}

// docs/METRICS.md has every step, in the order in which they run.
func TestStepsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/METRICS.md")
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(b), "| step | what it does | when |\n|---|---|---|\n")
	require.True(t, ok)
	for _, s := range New(Config{}).steps {
		var line string
		line, table, _ = strings.Cut(table, "\n")
		require.True(t, strings.HasPrefix(line, "| `"+s.name+"` |"), "%s, not %s", s.name, line)
	}
	require.True(t, strings.HasPrefix(table, "\n"), "a step that is none")
}

// What is stored keeps neither netmaps nor other steps waiting, and is not asked for again meanwhile.
func TestBusyStoreHoldsNothingUp(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.update("restored", func(d *state.Draft) error { return d.Add(state.Restored{Epoch: 2, NextNumber: d.NextNumber}) })
	w.up(2, protocol.Hello{})
	w.up(3, protocol.Hello{})
	began, turn := make(chan struct{}), make(chan struct{})
	go w.store.Update(context.Background(), "olga", "slow", sync.OnceValue(func() func(*state.Draft) error {
		return func(*state.Draft) error {
			select {
			case <-began:
			default:
				close(began)
			}
			<-turn
			return nil
		}
	})())
	<-began
	w.run()
	w.eventually(func() bool { return w.count("runs_total", "judge") >= 3 }, "nodes are looked at")
	w.mu.Lock()
	first := len(w.nodes)
	w.mu.Unlock()
	require.Equal(t, 2, first)
	require.Equal(t, 1.0, w.count("runs_total", "restored"))
	require.Nil(t, w.fleet.Netmaps(), "agents go on with what they hold")
	close(turn)
	w.eventually(func() bool { return w.fleet.Netmaps() != nil }, "it takes effect")
	runs := w.count("runs_total", "restored")
	w.eventually(func() bool { return w.count("runs_total", "judge") >= 6 }, "later")
	require.LessOrEqual(t, w.count("runs_total", "restored"), runs+1, "it has nothing to do any more")
}

// A step that fails is counted by its name, and the others go on; without its nodes the tunnel is of no use.
func TestFailuresAreCounted(t *testing.T) {
	w := newWorld(t, 1, func(c *Config) { c.Memory = filepath.Join(t.TempDir(), "missing", "live.json") })
	stop := w.run()
	w.eventually(func() bool { return w.fleet.Netmaps() != nil }, "netmaps")
	stop()
	require.Equal(t, 1.0, w.count("errors_total", "memory"))
	require.Contains(t, w.log.String(), `"step":"memory"`)

	w = newWorld(t, 1, nil)
	w.refuses = errors.New("no room")
	require.EqualError(t, w.Run(t.Context()), "set the tunnel's nodes: no room")
	require.Equal(t, 1.0, w.count("errors_total", "tunnel"))
}

// Nodes that have proven themselves for a while are closed to those that do not: so the log
// says, once.
func TestCloseOldWay(t *testing.T) {
	w := newWorld(t, 3, nil)
	now := time.Now()
	for n := range w.store.State().Nodes.All() {
		w.fleet.Up(fleet.NewSession(n, n != 4), protocol.Hello{})
	}
	proven := func() (out []number) {
		for _, n := range w.store.State().LiveNodes() {
			if !n.Proven.IsZero() {
				out = append(out, n.Number)
			}
		}
		return out
	}
	require.NoError(t, w.step("proof", now.Add(oldWayFor-1)))
	require.Empty(t, proven())
	require.NoError(t, w.step("proof", now.Add(oldWayFor+time.Minute)))
	require.Equal(t, []number{2, 3}, proven())
	seq := w.store.State().Seq
	require.NoError(t, w.step("proof", now.Add(time.Hour)))
	require.Equal(t, seq, w.store.State().Seq)
	require.True(t, w.fleet.ProvenNow(2))
	require.False(t, w.fleet.ProvenNow(4))
}

// A node whose wish to leave comes true is taken out, and one that is heard again stays.
func TestDepartureIsStored(t *testing.T) {
	w := newWorld(t, 2, nil)
	for n := number(2); n <= 3; n++ {
		ses := fleet.NewSession(n, false)
		w.fleet.Up(ses, protocol.Hello{})
		w.fleet.WantsToLeave(ses)
		w.fleet.Gone(ses, true)
	}
	w.up(3, protocol.Hello{})
	require.NoError(t, w.step("departure", time.Now().Add(fleet.DepartAfter)))
	require.Equal(t, state.GoneLeft, w.store.State().Nodes.Get(2).Gone)
	require.True(t, w.store.State().Nodes.Get(3).Live())
	require.Contains(t, w.log.String(), "a node that was said to leave is still there")
	for _, x := range w.fleet.Snapshot().Nodes.All() {
		require.True(t, x.Left.Since.IsZero())
	}
}

// An upgrade goes on wave by wave, and ends with the first node that fails.
func TestUpgradeIsLed(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.update("upgrade", func(d *state.Draft) error { return state.StartUpgrade(d, "2.0.0", []number{2, 3}, []int{1, 1}) })
	u := w.store.State().Upgrade
	tell := func(n number, s protocol.UpgradeState) {
		ses := w.up(n, protocol.Hello{AgentVersion: "2.0.0"})
		w.fleet.Status(ses, protocol.Status{Upgrade: &protocol.UpgradeStatus{UpgradeWish: protocol.UpgradeWish{ID: u.ID, Version: "2.0.0"}, State: s, Error: "no room"}})
	}
	require.NoError(t, w.step("upgrade", time.Now()))
	require.Zero(t, w.store.State().Upgrade.Wave)
	tell(2, protocol.UpgradeDone)
	w.fleet.LookAround()
	require.NoError(t, w.step("upgrade", time.Now()))
	require.Equal(t, 1, w.store.State().Upgrade.Wave)
	tell(3, protocol.UpgradeFailed)
	require.NoError(t, w.step("upgrade", time.Now()))
	require.Equal(t, state.UpgradeFailed, w.store.State().Upgrade.State)
	require.Equal(t, "node n3: no room", w.store.State().Upgrade.Why)
}

// A restored hub's state takes effect once all are back.
func TestRestoredTakesEffect(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.update("restored", func(d *state.Draft) error { return d.Add(state.Restored{Epoch: 2, NextNumber: d.NextNumber}) })
	require.NoError(t, w.step("restored", w.fleet.Started()))
	require.True(t, w.store.State().Settling)
	w.up(2, protocol.Hello{})
	require.NoError(t, w.step("restored", w.fleet.Started()))
	require.False(t, w.store.State().Settling)
}
