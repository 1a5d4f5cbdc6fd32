package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/debug"
	"causeway/netns/lab"
	"causeway/protocol"
)

// Another tool renames the tunnel's device, gives its name to a link of its own, or makes it
// too small for IPv6: a connection lives on, and the device is as it was within seconds.
func TestDeviceIsChanged(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	n, far := nodes[0], nodes[1]
	_, err := s.Serve(step(t), far.Pod.Host)
	require.NoError(t, err)
	f := startTraffic(t, s, n.Pod, far.Pod)
	condition := func(name string) (c protocol.Condition) {
		var h debug.Health
		require.NoError(t, n.ask(step(t), "/v1/health", &h))
		for _, c = range h.Conditions {
			if c.Name == name {
				return c
			}
		}
		t.Fatalf("no condition %s", name)
		return c
	}
	right := func(dev string) func(context.Context) error {
		return func(context.Context) error {
			var r debug.Routes
			if err := n.ask(step(t), "/v1/routes", &r); err != nil {
				return err
			}
			planned := strings.Join(r.Planned, "\n")
			for _, l := range []string{" mtu ", " txqueuelen 2000", " up"} {
				if !strings.Contains(planned, "ip link set "+dev+l) {
					return fmt.Errorf("the plan is not of %s: %s", dev, planned)
				}
			}
			if len(r.Missing)+len(r.Extra) > 0 || r.Error != "" {
				return fmt.Errorf("missing %q, extra %q, %s", r.Missing, r.Extra, r.Error)
			}
			return nil
		}
	}
	pings := func() {
		t.Helper()
		require.NoError(t, Ping(step(t), n.Pod.Host, far.Pod.V4))
		require.NoError(t, Ping(step(t), n.Pod.Host, far.Pod.V6))
		require.NoError(t, Ping(step(t), far.Pod.Host, n.Pod.V6))
	}
	// Before Linux 6.2 a device must be down to be renamed.
	const rename = "ip link set cw0 name x0 2>/dev/null || { ip link set cw0 down; ip link set cw0 name x0; ip link set x0 up; }"
	require.NoError(t, lab.Wait(step(t), "the plan", right("cw0")))
	repairs := 0
	for _, d := range []struct{ what, meddle, dev string }{
		{"renamed", rename, "cw0"},
		{"too small for IPv6", "ip link set cw0 mtu 1000", "cw0"},
		{"smaller", "ip link set cw0 mtu 1400", "cw0"},
		{"short queue", "ip link set cw0 txqueuelen 7", "cw0"},
		{"IPv6 off", "sysctl -qw net.ipv6.conf.cw0.disable_ipv6=1", "cw0"},
		{"renamed, the name taken", rename + "; ip link add cw0 type bridge; ip link set cw0 up", "x0"},
	} {
		start := time.Now()
		n.Host.Sh(d.meddle)
		require.NoError(t, lab.Wait(step(t), d.what, right(d.dev)))
		if d.what != "IPv6 off" {
			require.NoError(t, lab.Wait(step(t), d.what, func(context.Context) error {
				i, ok := incidentOf(t, n.Node, "link")
				if !ok || i.State != protocol.IncidentOver || i.Repairs <= repairs {
					return fmt.Errorf("no incident that is over: %+v", i)
				}
				repairs = i.Repairs
				return nil
			}))
		}
		t.Logf("%s: as planned after %.2f s", d.what, time.Since(start).Seconds())
		pings()
	}
	require.Contains(t, condition("tunnel").Note, "renamed to x0, and another link is called cw0")
	require.NoError(t, s.WaitReady(step(t), "n1"))
	n.Host.Sh("ip link del cw0")
	require.NoError(t, lab.Wait(step(t), "its name again", right("cw0")))
	require.NoError(t, lab.Wait(step(t), "no note", func(context.Context) error {
		if c := condition("tunnel"); c.Note != "" {
			return errors.New(c.Note)
		}
		return nil
	}))
	pings()
	t.Logf("longest gap of the connection %.2f s", f.end(t))
	require.NoError(t, n.Leave(step(t)))
	require.NotContains(t, n.Host.Sh("ip link"), "cw0")
}
