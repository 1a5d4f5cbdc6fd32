package e2e

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// backWithin is far above what traffic takes to come back after a process was
// started again; restartLimit, in seconds, is what it may take.
const (
	backWithin   = 10 * time.Second
	restartLimit = 2.0
)

// installed is what an agent has put on its host.
func installed(h *lab.Host) string {
	// Without a program on the device its routes are shown as linkdown: they
	// lead nowhere else all the same.
	// MTUs follow the paths, and so do the routes that exist for an MTU alone.
	return h.Sh(`exec 2>/dev/null; ip -d link show cw0 | grep -v qdisc; ip addr show cw0 | grep inet; ip -4 route show table 51806 | sed 's/ linkdown//; s/ mtu [0-9]*//' | grep -v '^198\.18\.[0-9.]* dev'
		ip -6 route show table 51806 | sed 's/ linkdown//; s/ mtu [0-9]*//' | grep -v '^fd63:7761:7900::[0-9a-f:]* dev'
		ip -4 rule; ip -6 rule; nft -s list ruleset | sed '/^table inet causeway-trial {/,/^}/d' | grep -v 'maxseg size set [0-9]'`)
}

// Not parallel: a time limit.
func TestAgentKilledAndRestarted(t *testing.T) {
	w := sharedWorld(t)
	a, b := w.Pods["a1-1"], w.Pods["b1-1"]
	require.NoError(t, Ping(step(t), a.Host, b.V4))
	hold, err := w.Hold(step(t), a.Host, b.V4)
	require.NoError(t, err)
	tokens := countTokens(t, w.System)
	before, err := w.Nodes(step(t))
	require.NoError(t, err)
	for _, name := range []string{"a1", "b1"} {
		n := w.Node(name)
		t.Cleanup(func() {
			if !n.Proc.Running() { // for the other tests
				n.Start()
			}
		})
		set := installed(n.Host)
		n.Proc.Kill()
		require.Empty(t, cmp.Diff(set, installed(n.Host)), "a dead agent fails closed: all stays")
		start := time.Now()
		require.NoError(t, n.Start())
		require.NoError(t, pingFast(within(t, backWithin), a, b), "after %s was killed", name)
		measured(t, "agent started again to ping", time.Since(start).Seconds(), restartLimit)
		require.True(t, hold.Alive())
		require.NoError(t, w.WaitReady(step(t), name))
		require.Empty(t, cmp.Diff(set, installed(n.Host)), "exactly one set")
	}
	lines, gap, err := hold.End(step(t))
	require.NoError(t, err)
	require.Positive(t, lines)
	t.Logf("the connection stood still for %.1f s at most", gap)
	require.Less(t, gap, backWithin.Seconds())
	require.Equal(t, tokens, countTokens(t, w.System), "no second token")
	after, err := w.Nodes(step(t))
	require.NoError(t, err)
	require.Len(t, after, len(before))
	require.Equal(t, before["a1"].Number, after["a1"].Number)
}

// Not parallel: a time limit.
func TestHubKilledAndRestarted(t *testing.T) {
	w := sharedWorld(t)
	a, b := w.Pods["a1-1"], w.Pods["b1-1"]
	require.NoError(t, Ping(step(t), a.Host, b.V4))
	hold, err := w.Hold(step(t), a.Host, b.V4)
	require.NoError(t, err)
	tokens := countTokens(t, w.System)
	before, err := w.Nodes(step(t))
	require.NoError(t, err)
	t.Cleanup(func() {
		if !w.Hub.Proc.Running() { // for the other tests
			w.StartHub(step(t))
		}
	})
	w.Hub.Proc.Kill()
	startHubToPing(t, w.System, a, b, "hub")
	require.NoError(t, Ping(within(t, backWithin), w.Pods["c1-1"].Host, b.V6))
	require.True(t, hold.Alive())
	require.NoError(t, w.WaitReady(step(t), WorldNodes()...))
	require.NoError(t, Ping(step(t), b.Host, a.V4))
	lines, gap, err := hold.End(step(t))
	require.NoError(t, err)
	require.Positive(t, lines)
	t.Logf("the connection stood still for %.1f s at most", gap)
	require.Less(t, gap, backWithin.Seconds())
	require.Equal(t, tokens, countTokens(t, w.System), "no second token")
	after, err := w.Nodes(step(t))
	require.NoError(t, err)
	for name, n := range before {
		require.Equal(t, n.Number, after[name].Number)
		require.Equal(t, n.WireGuardKey, after[name].WireGuardKey)
	}
	requireOrdinary(t, w.Hub.Proc.PID())
}

// startHubToPing starts the hub and measures when pods reach each other, and
// which other processes start in the same moment.
func startHubToPing(t *testing.T, s *System, a, b *Pod, what string, also ...func() error) {
	t.Helper()
	start := time.Now()
	var took time.Duration
	require.NoError(t, lab.All(append(also,
		func() error { return s.StartHub(within(t, backWithin)) },
		func() error {
			err := pingFast(within(t, backWithin), a, b)
			took = time.Since(start)
			return err
		})...))
	measured(t, what+" started again to ping", took.Seconds(), restartLimit)
}

// Hub and agent, or two agents and the hub, killed and started in the same
// moment; then a hub that is stopped as one is and not killed.
//
// Not parallel: time limits.
func TestRestartTogether(t *testing.T) {
	p := newPair(t, sym, sym)
	f := p.start(protocol.PathRelay)
	kill := func(ps ...*lab.Process) {
		require.NoError(t, lab.All(func() (fs []func() error) {
			for _, x := range ps {
				fs = append(fs, func() error { x.Kill(); return nil })
			}
			return fs
		}()...))
	}
	kill(p.Hub.Proc, p.a.Proc)
	startHubToPing(t, p.System, p.a.Pod, p.b.Pod, "hub and agent", p.a.Start)
	kill(p.Hub.Proc, p.a.Proc, p.b.Proc)
	startHubToPing(t, p.System, p.a.Pod, p.b.Pod, "hub and both agents", p.a.Start, p.b.Start)
	require.NoError(t, p.Hub.Proc.Stop(step(t)))
	steady(t, 2*time.Second) // relayed sessions notice
	startHubToPing(t, p.System, p.a.Pod, p.b.Pod, "stopped hub")
	p.Hub.Proc.Kill()
	steady(t, 2*time.Second)
	startHubToPing(t, p.System, p.a.Pod, p.b.Pod, "killed hub")
	require.NoError(t, p.WaitReady(step(t), "n1", "n2"))
	t.Logf("longest gap %.1f s", f.end(t))
}

// Without any hub, direct traffic goes on. An agent that starts meanwhile
// knows its peers from the last netmap, and makes new sessions with them.
//
// Not parallel: time limits.
func TestHubAway(t *testing.T) {
	ends := map[string]func(*testing.T, *lab.Process){
		"killed":  func(_ *testing.T, p *lab.Process) { p.Kill() },
		"stopped": func(t *testing.T, p *lab.Process) { require.NoError(t, p.Stop(step(t))) },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, siteKind{Public: true}, siteKind{Public: true})
			f := p.start(protocol.PathDirect)
			log := watchPath(t, p.a.Node, p.b.Name)
			end(t, p.Hub.Proc)
			steady(t, 3*time.Second)
			if soak() && name == "killed" {
				steady(t, 190*time.Second) // a session lives for 180 s: there was a new one
			}
			p.done(f, "hub away, direct", log, 0)

			f = startTraffic(t, p.System, p.a.Pod, p.b.Pod)
			for _, n := range []*siteNode{p.a, p.b} {
				n.Proc.Kill()
				start := time.Now()
				require.NoError(t, n.Start())
				require.NoError(t, pingFast(within(t, backWithin), p.a.Pod, p.b.Pod))
				measured(t, "agent started again without a hub to ping", time.Since(start).Seconds(), restartLimit)
			}
			f.end(t)
			require.NoError(t, p.StartHub(step(t)))
			require.NoError(t, p.WaitReady(step(t), "n1", "n2"))
		})
	}
}

func countTokens(t *testing.T, s *System) int {
	t.Helper()
	var ts []api.Token
	require.NoError(t, s.Ask(step(t), &ts, "token", "list"))
	return len(ts)
}
