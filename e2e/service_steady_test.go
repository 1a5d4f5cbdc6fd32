package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// What is no failure of a site moves nothing and resets nothing: a link that loses some of its packets, one that blinks, agents that
// hardly get a processor (in a soak, where each takes 20 minutes), and somebody who flushes all rules of a client's host.
func TestServiceSteady(t *testing.T) {
	lab.Counts(t)
	w := newTwoSites(t)
	for _, f := range []struct {
		name, script string
		soak         bool
	}{
		{"5 % lost each way", "nft 'table inet lossy { chain i { type filter hook input priority -300; iifname eth0 numgen random mod 100 < 5 drop; }; chain o { type filter hook output priority -300; oifname eth0 numgen random mod 100 < 5 drop; }; }'; sleep 100000", false},
		{"0.4 s away in each 5", "while :; do nft 'table inet lossy { chain i { type filter hook input priority -300; iifname eth0 drop; }; chain o { type filter hook output priority -300; oifname eth0 drop; }; }'; sleep 0.4; nft delete table inet lossy; sleep 4.6; done", false},
		{"agents starved", "for i in 1 2 3 4; do while :; do :; done & done; wait", true},
	} {
		long := 12 * time.Second
		if os.Getenv("CAUSEWAY_SOAK") != "" {
			long = 20 * time.Minute
		} else if f.soak {
			continue
		}
		t.Run(f.name, func(t *testing.T) { w.steady(t, f.script, long) })
	}
	t.Run("flush", w.flushed)
}

// steady holds connections while a script of the first site's host runs.
func (w *twoSites) steady(t *testing.T, script string, long time.Duration) {
	held := startClient(t, w.s, w.here.Host, "connected to "+w.two.V4, "wait", w.vip+":80", "-streams", "30", "-every", "50ms")
	before := w.reached(t)
	p, err := w.nodes[1].Host.Start(lab.Program{Name: "fault", Args: []string{"sh", "-c", script}})
	require.NoError(t, err)
	select {
	case <-p.Done():
		t.Fatal(p.Output())
	case <-held.Done(): // a connection has ended
	case <-time.After(long):
	}
	now := w.reached(t)
	p.Signal(syscall.SIGTERM)
	require.Error(t, p.Wait(step(t)))
	w.nodes[1].Host.Sh("nft delete table inet lossy 2>/dev/null || :")
	var a waited
	require.NoError(t, held.End(step(t), &a))
	t.Logf("%s: %d suspects, %d dead; %+v", long, now["suspect"]-before["suspect"], now["dead"]-before["dead"], a)
	require.Equal(t, 30, a.Open, a.Errors)
	require.Equal(t, before["dead"], now["dead"])
	require.LessOrEqual(t, now["suspect"]-before["suspect"], 2)
}

// reached is how often the client's node changed its mind on a node, by what it thought then.
func (w *twoSites) reached(t *testing.T) map[string]int {
	n := map[string]int{}
	for line := range strings.Lines(agentGet(t, w.nodes[0], "/metrics")) {
		var state string
		var count int
		if _, err := fmt.Sscanf(line, `causeway_agent_service_nodes_changed_total{reach=%q} %d`, &state, &count); err == nil {
			n[state] = count
		}
	}
	require.Len(t, n, 4)
	return n
}

// flushed has somebody flush all rules: the table is back at once, what is open lives, and what is begun meanwhile succeeds.
func (w *twoSites) flushed(t *testing.T) {
	held := startClient(t, w.s, w.here.Host, "connected to "+w.two.V4, "wait", w.vip+":80", "-streams", "30", "-every", "20ms")
	news := startClient(t, w.s, w.here.Host, "connected", "gaps", w.vip+":80", "-every", "10ms")
	begun := time.Now()
	w.nodes[0].Host.Sh("nft flush ruleset")
	require.NoError(t, lab.Wait(step(t), "the services' table", func(ctx context.Context) error {
		_, err := w.nodes[0].Host.Run(ctx, "nft", "list", "table", "inet", "causeway-service")
		return err
	}))
	measured(t, "service table back after a flush", time.Since(begun).Seconds(), 2)
	require.NoError(t, Wait(t, func() error { return w.only(t, w.two) }))
	var a waited
	var g Gaps
	require.NoError(t, held.End(step(t), &a))
	require.NoError(t, news.End(step(t), &g))
	t.Logf("flushed: %+v; %+v", a, g)
	require.Equal(t, 30, a.Open, a.Errors)
	require.Zero(t, g.Failed+g.Cut, g.Errors)
	require.Len(t, g.By, 1)
}
