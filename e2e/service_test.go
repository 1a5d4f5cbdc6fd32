package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// silence has a host send and hear nothing any more, without any link going down, until the return value is called.
func silence(t *testing.T, h *lab.Host) (end func()) {
	t.Helper()
	_, err := h.Run(step(t), "nft", `table inet silent {
		chain in { type filter hook prerouting priority -500; iifname "eth0" drop; }
		chain out { type filter hook postrouting priority 500; oifname "eth0" drop; }
	}`)
	require.NoError(t, err)
	return func() {
		t.Helper()
		_, err := h.Run(step(t), "nft", "delete table inet silent")
		require.NoError(t, err)
	}
}

// client is a labtool that runs until it is told to end.
type client struct{ p *lab.Process }

var clients atomic.Int64

func startClient(t *testing.T, s *System, from *lab.Host, ready string, args ...string) client {
	t.Helper()
	// Programs of one name share a log, in which the words of an earlier one would count.
	p, err := from.Start(lab.Program{Name: fmt.Sprintf("%s-%d", args[0], clients.Add(1)), Args: append([]string{s.Bin.Labtool}, args...)})
	require.NoError(t, err)
	require.NoError(t, p.WaitOutput(step(t), ready))
	return client{p}
}

// end ends it and reads its result.
func (c client) end(t *testing.T, v any) {
	t.Helper()
	c.p.Signal(syscall.SIGTERM)
	require.NoError(t, c.p.Wait(step(t)), c.p.Output())
	out := strings.TrimSpace(c.p.Output())
	require.NoError(t, json.Unmarshal([]byte(out[strings.LastIndexByte(out, '\n')+1:]), v), out)
}

type gaps struct {
	Connected, Failed   int
	Errors, By, Sources map[string]int
	MaxGap              float64 `json:"max_gap_seconds"`
	Slowest             float64 `json:"slowest_seconds"`
}

type waited struct {
	Server string
	Ended  []int64
	Errors map[string]int
	Open   int
}

// within returns the percentile of when connections ended, in seconds after a time.
func (w waited) after(since time.Time, percent int) float64 {
	if len(w.Ended) == 0 {
		return -1
	}
	return float64(w.Ended[min(len(w.Ended)-1, len(w.Ended)*percent/100)]-since.UnixMilli()) / 1000
}

// applyText declares what a text says.
func applyText(t *testing.T, s *System, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "objects.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	out, err := s.CLI(step(t), "apply", "-f", file)
	require.NoError(t, err, out)
}

// vipOf is a service's IPv4 address.
func vipOf(t *testing.T, s *System, name string) string {
	t.Helper()
	var v struct {
		VIP4 string `json:"vip4"`
		VIP6 string `json:"vip6"`
	}
	var o api.Object
	require.NoError(t, s.Ask(step(t), &o, "get", "service", name))
	require.NoError(t, json.Unmarshal(o.Spec, &v))
	require.NotEmpty(t, v.VIP4)
	require.NotEmpty(t, v.VIP6)
	return v.VIP4
}

// A service at two sites, of which one falls silent: new connections, those under way and open ones, TCP and UDP, and its return.
func TestServiceSwitches(t *testing.T) {
	lab.Counts(t)
	s, nodes := newSmall(t, 3)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	here, two, three := nodes[0].Pod, nodes[1].Pod, nodes[2].Pod
	startServer(t, s, two)
	server3, err := s.Serve(step(t), three.Host)
	require.NoError(t, err)
	applyText(t, s, fmt.Sprintf(`kind: service
name: web
ports: [{name: who, port: 80, target: 7005}, {name: dgram, port: 81, target: 7005, protocol: udp}]
backends:
- {site: s2, addresses: [%s, "%s"]}
- {site: s3, addresses: [%s, "%s"]}
prefer: order
order: [s2, s3]
slow_start: 4s
`, two.V4, two.V6, three.V4, three.V6))
	vip := vipOf(t, s, "web")
	who := func(from *lab.Host) string {
		var g gaps
		startClient(t, s, from, "connected", "gaps", vip+":80", "-every", "20ms").end(t, &g)
		require.Zero(t, g.Failed, g.Errors)
		return fmt.Sprint(g.By, g.Sources)
	}
	onlyTwo := func() error {
		if _, err := here.Host.Run(step(t), "bash", "-c", "exec 3<>/dev/tcp/"+vip+"/80"); err != nil {
			return err
		}
		if w := who(here.Host); !strings.HasPrefix(w, "map["+two.V4+":") || strings.Contains(w, three.V4) {
			return fmt.Errorf("%s", w)
		}
		return nil
	}
	require.NoError(t, Wait(t, onlyTwo))
	require.Contains(t, who(here.Host), " map["+here.V4+":", "the client's own address reaches the backend")
	require.Contains(t, who(nodes[0].Host), "map["+two.V4+":", "a program of the host")

	news := startClient(t, s, here.Host, "connected", "gaps", vip+":80", "-every", "20ms")
	sending := startClient(t, s, here.Host, "connected to "+two.V4, "wait", vip+":80", "-streams", "20", "-every", "50ms")
	idle := startClient(t, s, here.Host, "connected to "+two.V4, "wait", vip+":80", "-streams", "50", "-every", "0")
	udp := startClient(t, s, here.Host, "connected", "datagrams", vip+":81", "-every", "20ms")
	begun := time.Now()
	end := silence(t, nodes[1].Host)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, c := range []client{sending, idle} {
		_ = c.p.Wait(ctx)
	}
	var a, b waited
	sending.end(t, &a)
	idle.end(t, &b)
	var g, u gaps
	news.end(t, &g)
	udp.end(t, &u)
	t.Logf("new: %+v; udp: %+v; sending: %v p95 %.2f s; idle: %v p99 %.2f s", g, u, a.Errors, a.after(begun, 95), b.Errors, b.after(begun, 99))
	require.Zero(t, g.Failed, "connects under way succeed: %v", g.Errors)
	measured(t, "service new connections after silence", g.MaxGap, 2)
	measured(t, "service connect under way", g.Slowest, 2.2)
	measured(t, "service udp socket moves", u.MaxGap, 1.5)
	require.Equal(t, map[string]int{"connection reset by peer": 20}, a.Errors)
	require.Equal(t, map[string]int{"connection reset by peer": 50}, b.Errors)
	measured(t, "service sending reset", a.after(begun, 95), 2)
	measured(t, "service idle reset", b.after(begun, 99), 2.5)

	// Its return breaks nothing: what is open stays, and its share grows.
	held := startClient(t, s, here.Host, "connected to "+three.V4, "wait", vip+":80", "-streams", "20", "-every", "50ms")
	back := startClient(t, s, here.Host, "connected", "gaps", vip+":80", "-every", "20ms")
	end()
	require.NoError(t, Wait(t, onlyTwo))
	back.end(t, &g)
	require.Zero(t, g.Failed, g.Errors)
	require.Len(t, g.By, 2)
	held.end(t, &a)
	require.Equal(t, 20, a.Open, a.Errors)
	require.NotContains(t, server3.Output(), "WRONG")
	for _, n := range slices.Concat(nodes) {
		out, err := n.Host.Run(step(t), "nft", "list", "table", "inet", "causeway-service")
		require.NoError(t, err, out)
	}
	_, err = s.CLI(step(t), "delete", "service", "web", "--yes")
	require.NoError(t, err)
	require.NoError(t, Wait(t, func() error {
		out, err := nodes[0].Host.Run(step(t), "nft", "list", "tables")
		if err != nil || strings.Contains(out, "causeway-service") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	}))
}
