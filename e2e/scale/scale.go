// Package scale measures one hub with many agents: some with a real WireGuard
// session over UDP, a TCP stack of their own inside, and many that speak the same
// control protocol and NATS without a tunnel. The hub is the real one in a process
// of its own; the agents share another. Everything is on this machine and on its
// loopback.
//
//	scale.Main() // first thing in main: the hub is this program started again
//	result, err := scale.Run(ctx, scale.Config{Real: 500, Simulated: 2000, …})
package scale

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"causeway/hub/api"
	"causeway/hub/join/jointest"
	"causeway/protocol"
)

// Config is what is run.
type Config struct {
	Real      int           // agents over WireGuard
	Simulated int           // agents without a tunnel
	Steady    time.Duration // of steady load
	Dir       string        // for the hub's state, profiles and log
	Profile   bool          // write pprof profiles of the hub into Dir
	Progress  func(format string, a ...any)
}

const (
	sites      = 10
	joiners    = 8 // at once
	connecting = 5 * time.Minute
	changeGap  = 2 * time.Second
	newcomers  = 100 // agents that connect for the first time at once
)

// world is a run.
type world struct {
	cfg     Config
	started time.Time
	hub     *hubProcess
	list    hubs
	agents  []*agent

	mu       sync.Mutex
	versions []protocol.NetmapVersion // acknowledged, by the agent's index
	at       []time.Time              // and when
	sessions []int                    // that were welcomed
	lastAck  time.Time
	failed   int
	trouble  map[string]int
}

// hubs is the hub list, with where the one hub is.
type hubs struct {
	protocol.HubList
	at netip.AddrPort
}

func (h hubs) udp() netip.AddrPort { return h.at }

// acked notes that an agent acknowledged a netmap.
func (w *world) acked(a *agent, v protocol.NetmapVersion) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.versions[a.index], w.at[a.index], w.lastAck = v, now, now
}

func (w *world) welcomed(a *agent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sessions[a.index]++
}

func (w *world) ended(_ *agent, err error) {
	w.mu.Lock()
	w.failed++
	w.mu.Unlock()
	w.troubled(err)
}

// troubled counts errors by their text.
func (w *world) troubled(err error) {
	if err == nil {
		return
	}
	s := err.Error()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.trouble) < 20 || w.trouble[s] > 0 {
		w.trouble[s[:min(len(s), 120)]]++
	}
}

// until polls cond, which counts what is missing, until nothing is.
func (w *world) until(ctx context.Context, what string, cond func() int) error {
	ctx, cancel := context.WithTimeout(ctx, connecting)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for missing := cond(); missing > 0; missing = cond() {
		select {
		case <-t.C:
		case <-w.hub.done:
			return errors.New("the hub ended")
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			return fmt.Errorf("%s: %d are missing: %w; %v", what, missing, ctx.Err(), w.trouble)
		}
	}
	return nil
}

// count counts the agents for which no is true.
func (w *world) count(agents []*agent, no func(*agent) bool) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range agents {
		if no(a) {
			n++
		}
	}
	return n
}

// settled waits until all of agents are connected, their facts are acknowledged, and no netmap
// was acknowledged for a while: gathered changes come every two seconds at most.
func (w *world) settled(ctx context.Context, agents []*agent) error {
	if err := w.until(ctx, "sessions", func() int { return w.count(agents, func(a *agent) bool { return !a.connected.Load() }) }); err != nil {
		return err
	}
	if err := w.until(ctx, "facts", func() int { return w.count(agents, func(a *agent) bool { return !a.inventory.acked.Load() }) }); err != nil {
		return err
	}
	return w.until(ctx, "netmaps", func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		if time.Since(w.lastAck) < 4*time.Second {
			return 1
		}
		return 0
	})
}

// Run measures. The agents are gone when it returns, and so is the hub.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	w := &world{cfg: cfg, started: time.Now().UTC(), trouble: map[string]int{}}
	r := &Result{Time: w.started, Real: cfg.Real, Simulated: cfg.Simulated, Processors: runtime.NumCPU(), Steady: cfg.Steady}
	total := cfg.Real + cfg.Simulated
	w.versions, w.at, w.sessions = make([]protocol.NetmapVersion, total), make([]time.Time, total), make([]int, total)
	var err error
	if w.hub, err = newHubProcess(cfg.Dir); err != nil {
		return nil, err
	}
	if err := w.hub.start(ctx); err != nil {
		return nil, err
	}
	defer func() { w.hub.kill() }()
	empty, err := w.hub.heap(ctx)
	if err != nil {
		return nil, err
	}
	r.HeapEmpty = empty.Live
	begin := time.Now()
	if err := w.join(ctx, total); err != nil {
		return nil, err
	}
	r.Joined = time.Since(begin)
	cfg.Progress("%d joined in %s", total, r.Joined.Round(time.Millisecond))

	actx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	begin = time.Now()
	start := func(agents []*agent, perSecond rate.Limit) error {
		pace := rate.NewLimiter(perSecond, 1)
		for i, a := range agents {
			if err := pace.Wait(ctx); err != nil {
				return err
			}
			// A first hello is a transaction, and these take their turns: more at once
			// than the disk stores within a hello's time would all come again.
			if err := w.until(ctx, "first sessions", func() int { return w.count(agents[:i], func(a *agent) bool { return !a.connected.Load() }) - newcomers }); err != nil {
				return err
			}
			if c, ok := a.via.(*wgCarrier); ok {
				running.Go(func() { w.troubled(c.run(actx)) })
			}
			running.Go(func() { a.run(actx) })
		}
		return w.settled(ctx, agents)
	}
	real, sims := w.agents[:cfg.Real], w.agents[cfg.Real:]
	if err := start(sims, 60); err != nil {
		return nil, err
	}
	h, err := w.hub.heap(ctx)
	if err != nil {
		return nil, err
	}
	r.HeapSims = h.Live
	if err := w.heapProfile(ctx, "heap-simulated.pprof"); err != nil {
		return nil, err
	}
	cfg.Progress("%d simulated agents connected", len(sims))
	profiled := w.profiles(ctx, "connect", 15)
	if err := errors.Join(start(real, 30), <-profiled); err != nil {
		return nil, err
	}
	r.Connected = time.Since(begin)
	if h, err = w.hub.heap(ctx); err != nil {
		return nil, err
	}
	r.HeapAll, r.Stacks, r.Goroutines = h.Live, h.Stacks, h.Goroutines
	if r.HeapAll > r.HeapSims && cfg.Real > 0 {
		r.HeapSession = (r.HeapAll - r.HeapSims) / uint64(cfg.Real)
	}
	cfg.Progress("all connected in %s", r.Connected.Round(time.Millisecond))
	if err := w.heapProfile(ctx, "heap.pprof"); err != nil {
		return nil, err
	}
	if err := w.steady(ctx, r); err != nil {
		return nil, err
	}
	if err := w.reconnect(ctx, r); err != nil {
		return nil, err
	}
	r.judge()
	return r, nil
}

// profiles records what the hub's processors and the agents' do, if it is asked for.
func (w *world) profiles(ctx context.Context, name string, seconds int) <-chan error {
	done := make(chan error, 1)
	if !w.cfg.Profile {
		done <- nil
		return done
	}
	go func() {
		f, err := os.Create(filepath.Join(w.cfg.Dir, name+"-agents.pprof"))
		if err == nil {
			defer f.Close()
			if err = pprof.StartCPUProfile(f); err == nil {
				defer pprof.StopCPUProfile()
				err = w.hub.profile(ctx, w.cfg.Dir, name+".pprof", fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds))
			}
		}
		done <- err
	}()
	return done
}

// heapProfile writes what is on the hub's heap, if it is asked for.
func (w *world) heapProfile(ctx context.Context, name string) error {
	if !w.cfg.Profile {
		return nil
	}
	return w.hub.profile(ctx, w.cfg.Dir, name, "/debug/pprof/heap?gc=1")
}

// join makes the sites and joins every host.
func (w *world) join(ctx context.Context, total int) error {
	for i := range sites {
		if _, err := w.hub.admin.CreateSite(ctx, api.SiteSpec{Name: siteName(i)}); err != nil {
			return err
		}
	}
	w.agents = make([]*agent, total)
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan int)
	g.Go(func() error {
		defer close(next)
		for i := range total {
			select {
			case next <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range joiners {
		g.Go(func() error {
			c := jointest.Client(nil)
			defer c.CloseIdleConnections()
			for i := range next {
				a := &agent{index: i, world: w, name: fmt.Sprintf("n%04d", i), inventory: inventory{poke: make(chan chan<- uint64)}}
				tok, err := w.hub.admin.CreateToken(ctx, api.TokenSpec{Site: siteName(i % sites)})
				if err != nil {
					return err
				}
				ans, list, err := a.join(c, tok.Text)
				if err != nil {
					return fmt.Errorf("host %d: %w", i, err)
				}
				if i == 0 {
					a.routes = []netip.Prefix{flipped}
				}
				w.mu.Lock()
				w.list = hubs{list, w.hub.udp}
				w.mu.Unlock()
				a.via = simCarrier{w.hub.dir, a.overly}
				if i < w.cfg.Real {
					if a.via, err = newWGCarrier(a, list.Hubs[0], w.hub.udp, ans.Overlay, list.Overlay); err != nil {
						return err
					}
				}
				w.agents[i] = a
			}
			return nil
		})
	}
	return g.Wait()
}

func siteName(i int) string { return fmt.Sprintf("s%02d", i) }

// flipped is the route whose approval and rejection is the change that is measured.
var flipped = netip.MustParsePrefix("172.30.0.0/16")

// steady puts the hub under steady load: every agent reports status, their facts change, and an
// admin changes a route every two seconds.
func (w *world) steady(ctx context.Context, r *Result) error {
	cpu, _ := w.hub.usage()
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Steady+time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	end := begin.Add(w.cfg.Steady)
	profiled := w.profiles(ctx, "steady", max(1, int(w.cfg.Steady.Seconds())))
	g.Go(func() error { return <-profiled })
	var each, all, deltas []time.Duration
	g.Go(func() error {
		for i := 0; time.Now().Before(end); i++ {
			next := time.Now().Add(changeGap)
			e, err := w.change(ctx, i%2 == 0)
			if err != nil {
				return err
			}
			each = append(each, e...)
			all = append(all, timesOf(e).Max)
			time.Sleep(time.Until(next))
		}
		return nil
	})
	g.Go(func() error {
		for time.Now().Before(end) {
			d, err := w.delta(ctx, w.agents[rand.N(len(w.agents))])
			if err != nil {
				return err
			}
			deltas = append(deltas, d)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	after, peak := w.hub.usage()
	r.SteadyCPU, r.SteadyPeak = float64(after-cpu)/float64(time.Since(begin)), peak
	r.Delta, r.NetmapEach, r.NetmapAll = timesOf(deltas), timesOf(each), timesOf(all)
	w.cfg.Progress("steady: %.2f processors", r.SteadyCPU)
	return nil
}

// change flips the route and returns how long each agent took to acknowledge it.
func (w *world) change(ctx context.Context, approve bool) ([]time.Duration, error) {
	begin := time.Now()
	if _, err := w.hub.admin.DecideRoute(ctx, api.RouteDecision{Node: w.agents[0].name, Prefix: flipped, Approve: approve}); err != nil {
		return nil, err
	}
	st, err := w.hub.admin.Status(ctx)
	if err != nil {
		return nil, err
	}
	seq := st.Hub.LogLength
	if err := w.until(ctx, "acknowledgements of a change", func() int {
		return w.count(w.agents, func(a *agent) bool { return w.versions[a.index].Version < seq })
	}); err != nil {
		return nil, err
	}
	out := make([]time.Duration, 0, len(w.agents))
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.agents {
		out = append(out, max(0, w.at[i].Sub(begin)))
	}
	return out, nil
}

// delta changes an agent's facts and returns how long the hub took to show it.
func (w *world) delta(ctx context.Context, a *agent) (time.Duration, error) {
	heard := make(chan uint64, 1)
	begin := time.Now()
	select {
	case a.inventory.poke <- heard:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	seq := <-heard
	for {
		inv, err := w.hub.admin.Inventory(ctx, a.name)
		switch {
		case err == nil && inv.Sequence >= seq:
			return time.Since(begin), nil
		case err != nil && !errors.Is(err, api.ErrNotFound):
			return 0, err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return 0, fmt.Errorf("facts of %s: %w", a.name, ctx.Err())
		}
	}
}

// reconnect kills the hub and starts it again.
func (w *world) reconnect(ctx context.Context, r *Result) error {
	w.mu.Lock()
	before := make([]int, len(w.sessions))
	copy(before, w.sessions)
	w.failed = 0
	w.mu.Unlock()
	w.hub.kill()
	begin := time.Now()
	if err := w.hub.start(ctx); err != nil {
		return err
	}
	c := &r.Reconnect
	c.Ready = time.Since(begin)
	profiled := w.profiles(ctx, "reconnect", 10)
	away := func(agents []*agent) func() int {
		return func() int {
			return w.count(agents, func(a *agent) bool { return w.sessions[a.index] <= before[a.index] })
		}
	}
	watched, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	go func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-watched.Done():
				return
			case <-t.C:
				w.cfg.Progress("%.0f s after the restart: %d over WireGuard and %d simulated are away, facts of %d", time.Since(begin).Seconds(), away(w.agents[:w.cfg.Real])(), away(w.agents[w.cfg.Real:])(),
					w.count(w.agents, func(a *agent) bool { return !a.inventory.acked.Load() }))
			}
		}
	}()
	if err := w.until(ctx, "sessions", away(w.agents)); err != nil {
		return err
	}
	c.Connected = time.Since(begin)
	if err := w.until(ctx, "netmaps", func() int { return w.count(w.agents, func(a *agent) bool { return w.at[a.index].Before(begin) }) }); err != nil {
		return err
	}
	c.Netmaps = time.Since(begin)
	if err := w.until(ctx, "facts", func() int { return w.count(w.agents, func(a *agent) bool { return !a.inventory.acked.Load() }) }); err != nil {
		return err
	}
	c.Inventory = time.Since(begin)
	var serr error
	if err := w.until(ctx, "ready nodes", func() int {
		st, err := w.hub.admin.Status(ctx)
		if err != nil {
			serr = err
			return 1
		}
		missing := len(w.agents)
		for _, s := range st.Sites {
			missing -= s.Ready
		}
		return missing
	}); err != nil {
		return errors.Join(err, serr)
	}
	c.AllReady = time.Since(begin)
	c.CPU, c.PeakRSS = w.hub.usage()
	if err := <-profiled; err != nil {
		return err
	}
	h, err := w.hub.heap(ctx)
	if err != nil {
		return err
	}
	c.Heap = h.Live
	w.mu.Lock()
	c.Dials = w.failed
	for s, n := range w.trouble {
		w.cfg.Progress("  %5d times: %s", n, s)
	}
	w.mu.Unlock()
	return nil
}
