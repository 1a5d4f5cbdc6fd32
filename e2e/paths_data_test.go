package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// otherPath is how long it may take until another path carries, where one answers probes and
// carries no data.
const otherPath = 5 * time.Second

// saysPaths waits until a node's condition 'paths' says something.
func saysPaths(t *testing.T, n *Node, words ...string) {
	t.Helper()
	require.NoError(t, lab.Wait(step(t), "the condition paths of "+n.Name, func(ctx context.Context) error {
		out, _ := n.Agent(ctx, "health", "-o", "json") // its status is not 0 where a condition does not hold
		var h struct{ Conditions []protocol.Condition }
		if err := json.Unmarshal([]byte(out), &h); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		for _, c := range h.Conditions {
			if c.Name == "paths" && !c.OK {
				for _, w := range words {
					if !strings.Contains(c.Cause, w) {
						return fmt.Errorf("%q says nothing of %q", c.Cause, w)
					}
				}
				t.Log(c.Cause)
				return nil
			}
		}
		return fmt.Errorf("it holds: %s", out)
	}))
}

// A filter on the direct path knows WireGuard's messages, and lets probes pass.
var dataCases = []struct {
	name, match string
	oneWay      bool
	light       bool
}{
	{name: "type 4 over 60 bytes", match: "@th,64,8 4 udp length > 68", light: true},
	{name: "data over 1000 bytes", match: "@th,64,8 4 udp length > 1008"},
	{name: "one direction", match: "@th,64,8 4 udp length > 68", oneWay: true},
}

// Data on the direct path is dropped in mid-flow while probes pass: the relay carries within
// 5 seconds, a condition says why, and explain names it.
//
// Not parallel: time limits.
func TestPathWithoutData(t *testing.T) {
	for _, c := range dataCases {
		if !c.light && !soak() {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, eim, eim)
			f := p.start(protocol.PathDirect)
			log := watchPath(t, p.a.Node, p.b.Name)
			began := time.Now()
			p.a.Router.Block("ip daddr " + p.b.public(2) + " meta l4proto udp " + c.match)
			if !c.oneWay {
				p.a.Router.Block("ip saddr " + p.b.public(2) + " meta l4proto udp " + c.match)
			}
			waitPath(t, otherPath, p.a.Node, p.b.Node, protocol.PathRelay)
			measured(t, "another path: "+c.name, time.Since(began).Seconds(), otherPath.Seconds())
			saysPaths(t, p.a.Node, "direct", p.b.Name, "none arrived", "the relay carries")
			require.Contains(t, p.explain(), "path-no-data")
			steady(t, 3*time.Second)
			gap := f.end(t)
			measured(t, "longest gap: "+c.name, gap, otherPath.Seconds())
			require.LessOrEqual(t, len(log.end())-1, 1, "changes of path")
		})
	}
}

// policedFor is how long it may take until another path carries what a policed one does not.
const policedFor = 30 * time.Second

// A direct path that is policed to 2 Mbit/s is left for the relay, which carries ten times as
// much and more.
//
// Not parallel: time limits.
func TestPolicedDirectPath(t *testing.T) {
	if !soak() {
		return // probe's TestPolicedPath stands for it
	}
	p := newPair(t, eim, eim)
	p.start(protocol.PathDirect).end(t)
	p.a.Router.Block("ip daddr " + p.b.public(2) + " meta l4proto udp limit rate over 250 kbytes/second burst 20 kbytes")
	began := time.Now()
	sent := make(chan error, 1)
	go func() {
		_, err := p.Send(within(t, 3*policedFor), "tcp", p.a.Pod.Host, p.b.Pod.V4, 64<<20)
		sent <- err
	}()
	waitPath(t, policedFor, p.a.Node, p.b.Node, protocol.PathRelay)
	measured(t, "another path: policed", time.Since(began).Seconds(), policedFor.Seconds())
	saysPaths(t, p.a.Node, "Mbit/s", "the relay carries")
	require.NoError(t, <-sent)
	got, err := p.Send(step(t), "tcp", p.a.Pod.Host, p.b.Pod.V4, 64<<20)
	require.NoError(t, err)
	t.Logf("TCP over the relay: %.0f Mbit/s", got.Mbits)
	require.Greater(t, got.Mbits, 20.0)
	waitPath(t, time.Second, p.a.Node, p.b.Node, protocol.PathRelay)
}

// explain are the causes that explain finds between the pods.
func (p *sitePair) explain() (causes []string) {
	p.t.Helper()
	out, _ := p.CLI(step(p.t), "diag", "explain", "-o", "json", p.a.Pod.V4, p.b.Pod.V4)
	var x api.Explanation
	require.NoError(p.t, json.Unmarshal([]byte(out), &x), out)
	for _, f := range x.Faults {
		causes = append(causes, f.Cause)
	}
	return causes
}

// A filter drops WireGuard's first message to the hub and lets all else pass: the
// agent takes the stream by itself.
//
// Not parallel: a time limit.
func TestFirstMessageDropped(t *testing.T) {
	s, n, _ := newSites(t, 2)
	a, b := n[0], n[1]
	a.Router.Block("meta l4proto udp udp length 156 @th,64,32 0x01000000")
	joinSites(t, s, n, nil)
	saysPaths(t, a.Node, "UDP", "handshake messages", "stream")
	require.NoError(t, a.Proc.Stop(step(t)))
	began := time.Now()
	require.NoError(t, a.Start())
	require.NoError(t, lab.Wait(within(t, 2*otherPath), "the agent's control session", func(ctx context.Context) error {
		out, _ := a.Agent(ctx, "health", "-o", "json")
		var h struct{ Conditions []protocol.Condition }
		if err := json.Unmarshal([]byte(out), &h); err != nil {
			return err
		}
		for _, c := range h.Conditions {
			if c.Name == "control" && c.OK {
				return nil
			}
		}
		return fmt.Errorf("%s", out)
	}))
	measured(t, "control after the start, first message dropped", time.Since(began).Seconds(), otherPath.Seconds())
	require.NoError(t, Ping(step(t), a.Pod.Host, b.Pod.V4))
}

// A healthy direct path under load, with a loss of 5 % and all processors busy, is never held
// to carry no data: for an hour, or what CAUSEWAY_HEALTHY says.
func TestHealthyPathIsNotSuspect(t *testing.T) {
	if !soak() {
		return // probe's TestNoFalseSuspicion stands for it
	}
	d := time.Hour
	if text := os.Getenv("CAUSEWAY_HEALTHY"); text != "" {
		var err error
		d, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	p := newPair(t, eim, eim)
	f := p.start(protocol.PathDirect)
	p.between(5, true)
	for i := range 2 * runtime.NumCPU() {
		_, err := p.a.Host.Start(lab.Program{Name: fmt.Sprintf("busy%d", i), Args: []string{"sh", "-c", "while :; do :; done"}})
		require.NoError(t, err)
	}
	looked := 0
	for end := time.Now().Add(d); time.Now().Before(end); looked++ {
		steady(t, time.Second)
		for _, n := range []*siteNode{p.a, p.b} {
			out, _ := n.Agent(step(t), "health", "-o", "json")
			var h struct{ Conditions []protocol.Condition }
			require.NoError(t, json.Unmarshal([]byte(out), &h), out)
			for _, c := range h.Conditions {
				require.True(t, c.Name != "paths" || c.OK, "%s of %s: %s", c.Name, n.Name, c.Cause)
			}
		}
	}
	t.Logf("looked %d times in %s", looked, d)
	f.end(t)
}

// Where no direct path is found a peer's private address gets a few questions by the uplink, and
// then hardly any.
func TestPrivateCandidatesOnUplink(t *testing.T) {
	if !soak() {
		return // probe's TestPrivateCandidates stands for it: a minute shows the difference
	}
	t.Parallel()
	s, n, _ := newSitesOf(t, HubAddr, sym, sym)
	n[0].Router.Sh("ip route add default via " + HubAddr)
	n[0].Router.Nft("table inet seen { chain forw { type filter hook forward priority -30; oifname \"wan\" ip daddr 192.168.0.0/16 meta l4proto udp counter; }; }\n")
	joinSites(t, s, n, nil)
	for range 60 {
		require.NoError(t, Ping(step(t), n[0].Pod.Host, n[1].Pod.V4))
		steady(t, time.Second)
	}
	require.NoError(t, s.WaitPath(step(t), "n1", "n2", protocol.PathRelay))
	rules, err := n[0].Router.Run(step(t), "nft", "list", "chain", "inet", "seen", "forw")
	require.NoError(t, err)
	var packets int
	_, rest, _ := strings.Cut(rules, "packets ")
	_, err = fmt.Sscanf(rest, "%d", &packets)
	require.NoError(t, err, rules)
	t.Logf("%d packets to the peer's private address left by the uplink", packets)
	require.Positive(t, packets)
	require.LessOrEqual(t, packets, 10)
}
