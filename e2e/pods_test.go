package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// Every pod reaches every other one, by both families, through NAT on both
// sides.
func TestPing(t *testing.T) {
	w := sharedWorld(t)
	t.Parallel()
	_, err := w.WaitAllPings(within(t, 2*time.Minute))
	require.NoError(t, err)
}

// pairs of pods: over the relay between sites, and within a site.
var pairs = [][2]string{{"a1-1", "b1-1"}, {"b1-2", "c1-1"}, {"c1-2", "a2-1"}, {"a1-2", "a2-2"}}

func TestSmallTransfers(t *testing.T) {
	w := sharedWorld(t)
	for _, p := range pairs {
		t.Run(p[0]+" to "+p[1], func(t *testing.T) {
			t.Parallel()
			from, to := w.Pods[p[0]], w.Pods[p[1]]
			for _, addr := range []string{to.V4, to.V6} {
				require.NoError(t, Ping(step(t), from.Host, addr))
				for _, n := range []int64{1, 1000, 100_000} {
					_, err := w.Send(step(t), "tcp", from.Host, addr, n)
					require.NoError(t, err)
				}
				// The last one is larger than the tunnel's MTU.
				for _, size := range []string{"64", "1200", "1452"} {
					_, err := w.Send(step(t), "udp", from.Host, addr, 50_000, "-size", size)
					require.NoError(t, err, size)
				}
			}
		})
	}
}

const gib = 1 << 30

func TestLargeTransfers(t *testing.T) {
	w := sharedWorld(t)
	t.Parallel()
	if testing.Short() {
		t.Skip("short: 4 GiB")
	}
	for _, c := range []struct {
		proto    string
		from, to string
		v6       bool
	}{{"tcp", "a1-1", "b1-1", false}, {"tcp", "b1-1", "c1-1", true}, {"udp", "c1-1", "a1-1", false}, {"udp", "a2-1", "b1-2", true}} {
		addr := w.Pods[c.to].V4
		if c.v6 {
			addr = w.Pods[c.to].V6
		}
		var args []string
		if c.proto == "udp" {
			args = []string{"-group", "32"} // single ones are TestSmallTransfers'
		}
		r, err := w.Send(within(t, 4*time.Minute), c.proto, w.Pods[c.from].Host, addr, gib, args...)
		require.NoError(t, err)
		t.Logf("%s %s to %s (%s): 1 GiB in %.1f s, %.0f Mbit/s, %d datagrams sent again", c.proto, c.from, c.to, addr, r.Seconds, r.Mbits, r.Resent)
	}
}

// Two nodes of one LAN end on a direct path.
func TestDirectInOneLAN(t *testing.T) {
	w := sharedWorld(t)
	t.Parallel()
	require.NoError(t, Ping(step(t), w.Pods["a1-1"].Host, w.Pods["a2-1"].V4))
	hold, err := w.Hold(step(t), w.Pods["a1-1"].Host, w.Pods["a2-1"].V4)
	require.NoError(t, err)
	require.NoError(t, w.WaitPath(step(t), "a1", "a2", protocol.PathDirect))
	require.NoError(t, w.WaitPath(step(t), "a2", "a1", protocol.PathDirect))
	_, _, err = hold.End(step(t))
	require.NoError(t, err)
}

func TestDiagPing(t *testing.T) {
	w := sharedWorld(t)
	t.Parallel()
	for _, to := range []string{"b1", w.Pods["b1-1"].V4} {
		var r api.PingResult
		require.NoError(t, w.Ask(step(t), &r, "diag", "ping", "a1", to))
		require.Equal(t, "a1", r.From)
		require.Positive(t, r.Received)
		require.Positive(t, r.AvgRTT)
		require.Empty(t, r.Error)
	}
	_, err := w.CLI(step(t), "diag", "ping", "a1", "nosuchnode")
	requireOneLine(t, err, "nosuchnode")
}

func TestInventory(t *testing.T) {
	w := sharedWorld(t)
	t.Parallel()
	var inv api.Inventory
	require.NoError(t, Wait(t, func() error {
		if err := w.Ask(step(t), &inv, "inventory", "show", "a1"); err != nil {
			return err
		}
		if inv.Hostname == "" {
			return fmt.Errorf("empty")
		}
		return nil
	}))
	require.Equal(t, "a1", inv.Node)
	require.Equal(t, "idc-a", inv.Site)
	require.Positive(t, inv.CPUs)
	require.Positive(t, inv.MemoryTotal)
	require.NotEmpty(t, inv.OS)
	require.NotEmpty(t, inv.Kernel)
	require.NotEmpty(t, inv.AgentVersion)
	var nets []string
	for _, p := range inv.PodCIDRs {
		nets = append(nets, p.String())
	}
	require.Subset(t, nets, []string{"fd10:1:1::/64"})
	found := false
	for _, i := range inv.Interfaces {
		for _, a := range i.Addresses {
			found = found || i.Name == "eth0" && strings.HasPrefix(a.String(), "192.168.1.11")
		}
	}
	require.True(t, found, "its own address: %v", inv.Interfaces)
}

// Which engine runs is shown wherever a node is.
func TestEngineIsReported(t *testing.T) {
	w := sharedWorld(t)
	t.Parallel()
	for node, want := range map[string]string{"a1": EngineInline, otherEngineNode: EngineWireGuardGo} {
		var n api.Node
		require.NoError(t, w.Ask(step(t), &n, "node", "show", node))
		require.Equal(t, want, n.Engine)
		require.NoError(t, Wait(t, func() error {
			var inv api.Inventory
			if err := w.Ask(step(t), &inv, "inventory", "show", node); err != nil {
				return err
			}
			if inv.Engine != want {
				return errState(inv.Engine)
			}
			return nil
		}))
		out, err := w.Node(node).Agent(step(t), "status")
		require.NoError(t, err)
		require.Contains(t, out, "engine "+want)
	}
}

// The debug endpoints by the agent's own commands.
func TestAgentCommands(t *testing.T) {
	w := sharedWorld(t)
	t.Parallel()
	n := w.Node("a1")
	for _, c := range []string{"status", "paths", "routes", "netmap", "health"} {
		out, err := n.Agent(step(t), c)
		require.NoError(t, err)
		require.NotEmpty(t, out, c)
		out, err = n.Agent(step(t), c, "-o", "json")
		require.NoError(t, err)
		require.True(t, json.Valid([]byte(out)), "%s: %s", c, out)
	}
	out, err := n.Agent(step(t), "routes")
	require.NoError(t, err)
	require.Contains(t, out, "10.2.1.0/24")
}

// The hub's process has neither root nor a capability nor a TUN device.
func TestHubIsOrdinary(t *testing.T) {
	w := sharedWorld(t)
	t.Parallel()
	requireOrdinary(t, w.Hub.Proc.PID())
	require.NotContains(t, w.Hub.Host.Sh("ip -d link"), "tun type")
}
