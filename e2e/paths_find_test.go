package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
	"causeway/protocol"
)

// Limits of finding a path, in seconds.
const (
	firstPing       = 3.0 // from the agents' start
	firstPingStream = 5.0 // where UDP does not pass
	bestPath        = 10.0
	pathBack        = 30.0 // from the return of a better path
	longestStall    = 3.0  // of a connection while its path changes
)

// findCase is a network and the path that two nodes find in it.
type findCase struct {
	name string
	a, b siteKind
	hub6 bool // the hub has an IPv6 address alone
	want protocol.PathKind
	back protocol.PathKind // from b to a, where it is another one: each side has its own way to the hub
	v6   bool              // the path is by IPv6
	// light ones are part of every test run.
	light bool
}

var findCases = []findCase{
	{name: "one LAN", a: siteKind{NAT: lab.EndpointIndependent}, b: siteKind{Beside: 1}, want: protocol.PathDirect, light: true},
	{name: "one side public", a: siteKind{NAT: lab.Symmetric}, b: siteKind{Public: true}, want: protocol.PathDirect, light: true},
	{name: "two endpoint-independent NATs", a: siteKind{NAT: lab.EndpointIndependent}, b: siteKind{NAT: lab.EndpointIndependent}, want: protocol.PathDirect, light: true},
	{name: "full cone", a: siteKind{NAT: lab.FullCone}, b: siteKind{NAT: lab.EndpointIndependent}, want: protocol.PathDirect},
	{name: "full cone and symmetric NAT", a: siteKind{NAT: lab.FullCone}, b: siteKind{NAT: lab.Symmetric}, want: protocol.PathDirect},
	{name: "carrier NAT", a: siteKind{NAT: lab.EndpointIndependent, Carrier: true}, b: siteKind{NAT: lab.EndpointIndependent}, want: protocol.PathDirect},
	{name: "two symmetric NATs", a: siteKind{NAT: lab.Symmetric}, b: siteKind{NAT: lab.Symmetric}, want: protocol.PathRelay, light: true},
	// The endpoint-independent one lets in only what its host sent to, and the
	// symmetric one's next port is nobody's to know.
	{name: "symmetric and endpoint-independent NAT", a: siteKind{NAT: lab.Symmetric}, b: siteKind{NAT: lab.EndpointIndependent}, want: protocol.PathRelay},
	{name: "firewall for the hub alone", a: siteKind{NAT: lab.EndpointIndependent, Blocked: onlyHub}, b: siteKind{Public: true}, want: protocol.PathRelay},
	{name: "TCP 443 alone", a: siteKind{NAT: lab.EndpointIndependent, Blocked: only443}, b: siteKind{NAT: lab.EndpointIndependent, Blocked: only443}, want: protocol.PathStream, light: true},
	{name: "TCP 443 alone at one side", a: siteKind{NAT: lab.EndpointIndependent, Blocked: only443}, b: siteKind{Public: true}, want: protocol.PathStream, back: protocol.PathRelay},
	{name: "IPv6 beside symmetric NATs", a: siteKind{NAT: lab.Symmetric, V6: true}, b: siteKind{NAT: lab.Symmetric, V6: true}, want: protocol.PathDirect, v6: true},
	{name: "IPv6 hub, direct", a: siteKind{NAT: lab.EndpointIndependent, V6: true}, b: siteKind{Public: true, V6: true}, hub6: true, want: protocol.PathDirect, light: true},
	{
		name: "IPv6 hub, relay", hub6: true, want: protocol.PathRelay, v6: true,
		a: siteKind{NAT: lab.Symmetric, V6: true, Blocked: []string{`oifname "wan" ip6 daddr != ` + HubAddr6, `oifname "wan" ip daddr 0.0.0.0/0`}},
		b: siteKind{NAT: lab.EndpointIndependent, V6: true},
	},
	{name: "container bridges", a: siteKind{NAT: lab.EndpointIndependent, Docker: true}, b: siteKind{NAT: lab.EndpointIndependent, Docker: true}, want: protocol.PathDirect},
}

// Two nodes that have just joined start in the same moment: their pods reach each
// other, and the best path that the network has is found.
//
// Not parallel: time limits.
func TestFindPath(t *testing.T) {
	for _, c := range some(findCases, func(c findCase) bool { return c.light }) {
		t.Run(c.name, func(t *testing.T) {
			hub := HubAddr
			if c.hub6 {
				hub = HubAddr6
			}
			s, n, _ := newSitesOf(t, hub, c.a, c.b)
			prepareSites(t, s, n, nil)
			find(t, n[0], n[1], c)
		})
	}
}

// find starts both agents and measures.
func find(t *testing.T, a, b *siteNode, c findCase) {
	t.Helper()
	start := time.Now()
	require.NoError(t, lab.All(a.Start, b.Start))
	require.NoError(t, pingFast(step(t), a.Pod, b.Pod))
	ping := time.Since(start)
	ctx, stop := context.WithCancel(within(t, stepTimeout))
	defer stop()
	go func() { // paths of idle peers are not looked for
		for ctx.Err() == nil {
			PingOnce(ctx, a.Pod.Host, b.Pod.V6)
		}
	}()
	back := c.want
	if c.back != "" {
		back = c.back
	}
	waitPath(t, bestPath*time.Second*2, a.Node, b.Node, c.want)
	waitPath(t, bestPath*time.Second*2, b.Node, a.Node, back)
	best := time.Since(start) - ping
	limit := firstPing
	if c.want == protocol.PathStream {
		limit = firstPingStream
	}
	measured(t, "first ping: "+c.name, ping.Seconds(), limit)
	measured(t, "best path: "+c.name, best.Seconds(), bestPath)
	for i, x := range [][2]*siteNode{{a, b}, {b, a}} {
		p, err := x[0].pathTo(step(t), x[1].Name)
		require.NoError(t, err)
		require.Equal(t, []protocol.PathKind{c.want, back}[i], p.Path, "it stays")
		if c.v6 {
			require.True(t, protocol.IsStream(p.Addr) || p.Addr.Addr().Is6(), "by IPv6: %s", p.Addr)
		}
		if !c.a.Docker {
			continue
		}
		out, err := x[0].Agent(step(t), "status", "-o", "json")
		require.NoError(t, err)
		require.NotContains(t, out, "172.17.", "a container bridge is no candidate")
		require.Contains(t, out, x[0].LAN, "its own address is one")
		require.False(t, netip.MustParsePrefix("172.17.0.0/16").Contains(p.Addr.Addr()))
	}
}

// pingFast waits for the first answer and asks again five times a second.
func pingFast(ctx context.Context, from, to *Pod) error {
	return lab.Wait(ctx, fmt.Sprintf("ping from %s to %s", from.Name, to.Name), func(ctx context.Context) error {
		_, err := from.Run(ctx, "ping", "-nqc1", "-W0.2", to.V4)
		return err
	})
}

// Two agents that start in the same moment, again and again: they never keep
// invalidating each other's handshakes.
//
// Not parallel: a time limit.
func TestStartInTheSameInstant(t *testing.T) {
	for _, engine := range []string{EngineInline, EngineWireGuardGo} {
		t.Run(engine, func(t *testing.T) {
			s, n, _ := newSites(t, 2)
			prepareSites(t, s, n, func(_ int, spec *NodeSpec) { spec.Engine = engine })
			for range 2 * rounds(5) {
				start := time.Now()
				require.NoError(t, lab.All(n[0].Start, n[1].Start))
				// Both at once, so that both want to begin.
				require.NoError(t, lab.All(
					func() error { return pingFast(step(t), n[0].Pod, n[1].Pod) },
					func() error { return pingFast(step(t), n[1].Pod, n[0].Pod) }))
				measured(t, "session after a start together, "+strings.ToLower(engine), time.Since(start).Seconds(), firstPing)
				require.NoError(t, lab.All(func() error { n[0].Proc.Kill(); return nil }, func() error { n[1].Proc.Kill(); return nil }))
			}
		})
	}
}
