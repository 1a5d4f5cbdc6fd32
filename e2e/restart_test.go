package e2e

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// backWithin is how long traffic may be away after a process was killed and
// started again.
const backWithin = 10 * time.Second

// installed is what an agent has put on its host.
func installed(h *lab.Host) string {
	// Without a program on the device its routes are shown as linkdown: they
	// lead nowhere else all the same.
	// MTUs follow the paths, and so do the routes that exist for an MTU alone.
	return h.Sh(`exec 2>/dev/null; ip -d link show cw0 | grep -v qdisc; ip addr show cw0 | grep inet; ip -4 route show table 51806 | sed 's/ linkdown//; s/ mtu [0-9]*//' | grep -v '^198\.18\.[0-9.]* dev'
		ip -6 route show table 51806 | sed 's/ linkdown//; s/ mtu [0-9]*//' | grep -v '^fd63:7761:7900::[0-9a-f:]* dev'
		ip -4 rule; ip -6 rule; nft -s list ruleset | grep -v 'maxseg size set [0-9]'`)
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
		require.NoError(t, n.Start())
		require.NoError(t, Ping(within(t, backWithin), a.Host, b.V4), "after %s was killed", name)
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
	require.NoError(t, w.StartHub(within(t, backWithin)))
	require.NoError(t, Ping(within(t, backWithin), a.Host, b.V4))
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

func countTokens(t *testing.T, s *System) int {
	t.Helper()
	var ts []api.Token
	require.NoError(t, s.Ask(step(t), &ts, "token", "list"))
	return len(ts)
}
