package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// asked asks by new connections from a host who serves at an address, and whom they see.
func asked(t *testing.T, s *System, from *lab.Host, at string) (g Gaps) {
	t.Helper()
	out, err := from.Run(step(t), s.Bin.Labtool, "gaps", at, "-every", "2ms", "-streams", "50")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(out[strings.IndexByte(out, '{'):]), &g))
	return g
}

// Who is not of the cluster reaches a service at a host that accepts it, also when the site that it is served at falls silent; and `leave`
// takes that back.
func TestServiceExposed(t *testing.T) {
	lab.Counts(t)
	l, hub, nodes := smallHosts(t, 2)
	outside := l.Host("outside").Link("eth0", nodes[0].Inet, "203.0.113.99/24")
	s := startSmall(t, l, hub, nodes)
	n1 := nodes[0]
	before := snapshot(n1.Host)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	here, there := n1.Pod, nodes[1].Pod
	near, err := s.Serve(step(t), here.Host)
	require.NoError(t, err)
	startServer(t, s, there)
	applyText(t, s, fmt.Sprintf(`kind: service
name: web
ports: [{name: who, port: 80, target: 7005}, {name: dgram, port: 81, target: 7005, protocol: udp}]
backends:
- {site: s1, addresses: [%s]}
- {site: s2, addresses: [%s]}
prefer: order
order: [s2, s1]
slow_start: 1s
expose:
- {node: n1, listen: "203.0.113.21:8081", port: dgram}
`, here.V4, there.V4))
	out, err := s.CLI(step(t), "service", "expose", "web", "--site", "s1", "--listen", "0.0.0.0:8080", "--port", "who")
	require.NoError(t, err)
	require.Contains(t, out, "0.0.0.0:8080 at s1, port who")

	// The host decides, and says what it lacks.
	explained := func(want string, is bool) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			out, err := s.CLI(step(t), "service", "explain", "web", "n1")
			if err != nil || strings.Contains(out, want) != is {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}))
	}
	explained(`add "0.0.0.0:8080" to expose: in its configuration`, true)
	out, err = s.CLI(step(t), "node", "show", "n1")
	require.NoError(t, err)
	require.Contains(t, out, "is not exposed at")
	const at = "203.0.113.21:8080"
	require.Zero(t, asked(t, s, outside, at).Connected)
	b, err := os.ReadFile(n1.Config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(n1.Config, append(b, "expose: [\"0.0.0.0:8080-8081\"]\n"...), 0o644))
	n1.Proc.Signal(syscall.SIGHUP)
	only := func(p *Pod) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			if g := asked(t, s, outside, at); g.Failed > 0 || !maps.Equal(g.By, map[string]int{p.V4: g.Connected}) {
				return fmt.Errorf("%+v", g)
			}
			return nil
		}))
	}
	explained("this host forwards nothing from there: set net.ipv4.ip_forward=1", true) // and sets it for nobody
	n1.Host.Sh("sysctl -qw net.ipv4.ip_forward=1")
	explained("not:", false)
	only(there)
	overlay := n1.overlay4(t)
	require.Equal(t, []string{overlay}, slices.Collect(maps.Keys(asked(t, s, outside, at).Sources)), "peers know nothing of who comes from outside")

	// Its site falls silent.
	news := startClient(t, s, outside, "connected", "gaps", at, "-every", "20ms")
	sending := startClient(t, s, outside, "connected to "+there.V4, "wait", at, "-streams", "20", "-every", "50ms")
	idle := startClient(t, s, outside, "connected to "+there.V4, "wait", at, "-streams", "50", "-every", "0")
	udp := startClient(t, s, outside, "connected", "datagrams", "203.0.113.21:8081", "-every", "20ms")
	begun := time.Now()
	undo := cutUntil(t, nodes[1].Host, "in", "out")
	ctx := within(t, 12*time.Second)
	for _, c := range []Client{sending, idle} {
		_ = c.Wait(ctx)
	}
	var x, y waited
	require.NoError(t, sending.End(step(t), &x))
	require.NoError(t, idle.End(step(t), &y))
	var g, u Gaps
	require.NoError(t, news.End(step(t), &g))
	require.NoError(t, udp.End(step(t), &u))
	t.Logf("new %+v; udp %+v; sending %v p95 %.2f s; idle %v p99 %.2f s", g, u, x.Errors, x.after(begun, 95), y.Errors, y.after(begun, 99))
	require.Zero(t, g.Failed, g.Errors)
	measured(t, "exposed service new connections after silence", g.MaxGap, promised(2))
	measured(t, "exposed service udp socket moves after silence", u.MaxGap, promised(1.5))
	require.Equal(t, map[string]int{"connection reset by peer": 20}, x.Errors)
	require.Equal(t, map[string]int{"connection reset by peer": 50}, y.Errors)
	measured(t, "exposed service idle reset after silence", y.after(begun, 99), promised(2.5))
	require.Equal(t, []string{"203.0.113.99"}, slices.Collect(maps.Keys(asked(t, s, outside, at).Sources)), "a container of the host sees who comes")

	// The agent's death changes nothing, nor does its return.
	n1.Proc.Kill()
	only(here)
	require.NoError(t, n1.Start())
	undo()
	only(there)

	// The near one is used where the order says so, and left when its program ends.
	_, err = s.CLI(step(t), "service", "exclude", "web", "s2")
	require.NoError(t, err)
	only(here)
	_, err = s.CLI(step(t), "service", "include", "web", "s2")
	require.NoError(t, err)
	near.Kill()
	only(there)

	// Policies judge what goes on by the tunnel as the node's own.
	applyText(t, s, "kind: policy\nname: main\nrules: []\n")
	require.NoError(t, Wait(t, func() error {
		if g := asked(t, s, outside, at); g.Connected > 0 {
			return fmt.Errorf("%+v", g)
		}
		return nil
	}))
	applyText(t, s, "kind: policy\nname: main\nrules:\n- {name: one, from: {site: s1}, to: {site: s2}, allow: [tcp/7005]}\n")
	only(there)
	_, err = s.CLI(step(t), "delete", "policy", "main", "--yes")
	require.NoError(t, err)
	only(there)

	_, err = s.CLI(step(t), "service", "expose", "web", "--site", "s1", "--listen", "0.0.0.0:8080", "--remove")
	require.NoError(t, err)
	require.NoError(t, Wait(t, func() error {
		if g := asked(t, s, outside, at); g.Connected > 0 {
			return fmt.Errorf("%+v", g)
		}
		return nil
	}))
	n1.Host.Sh("sysctl -qw net.ipv4.ip_forward=0")
	require.NoError(t, n1.Leave(step(t)))
	require.Empty(t, cmp.Diff(before, snapshot(n1.Host)))
}
