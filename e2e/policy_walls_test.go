package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/internal/policyfault"
	"causeway/netns/lab"
	"causeway/protocol"
)

// volleyCount is how many packets of each of three kinds each of four pairs of ends sends: 10,200 in all.
const volleyCount = 850

// wallCase is which walls are off, and what the others do not keep.
type wallCase struct {
	name          string
	hub           string // walls that are off at the hub
	sender, all   bool   // the sender's host has no table; nor has any
	direct, ports bool   // they keep nothing of what goes directly, and no ports of nodes that are peers
	thin          bool   // in each run
}

var wallCases = []wallCase{
	{name: "hosts alone", hub: policyfault.Netmaps + "," + policyfault.Relay, thin: true},
	{name: "the receiver's host alone", hub: policyfault.Netmaps + "," + policyfault.Relay, sender: true},
	{name: "the relay alone", hub: policyfault.Netmaps, sender: true, all: true, direct: true, ports: true},
	{name: "netmaps alone", hub: policyfault.Relay, sender: true, all: true, ports: true},
	{name: "all but netmaps", hub: policyfault.Netmaps},
	{name: "all but the relay", hub: policyfault.Relay},
	{name: "all but hosts", sender: true, all: true, ports: true},
}

// walls are three nodes, of which the first may talk to the third by one port, and not to the second.
type walls struct {
	t     *testing.T
	s     *System
	nodes []*smallNode
	over  []string // the nodes' overlay addresses
}

// Each of the three walls alone keeps what it promises, and so do any two: of 10,000 packets and attempts of a closed pair,
// pods and nodes, by a direct path and the relay, none arrives. Netmaps and relay know nodes and no ports, and the relay
// knows nothing of a direct path: there they let pass what is closed, and that is looked at, too.
func TestEachWallAlone(t *testing.T) {
	t.Parallel()
	lab.Counts(t)
	bin, err := forTests()
	require.NoError(t, err)
	s, nodes := newSmall(t, 3)
	shipped, err := os.ReadFile(s.Bin.Hub)
	require.NoError(t, err)
	require.NotContains(t, string(shipped), policyfault.Variable, "what is shipped has no such switch")
	w := &walls{t: t, s: s, nodes: nodes}
	s.Bin.Agent = bin.Agent
	for i, n := range nodes { // no shields: what arrives at a node itself is to be kept by the walls alone
		n.Node, err = s.Join(step(t), NodeSpec{Name: fmt.Sprintf("n%d", i+1), Site: fmt.Sprintf("s%d", i+1), Host: n.Host, TokenRoutes: PodRoutes(i+1, 1), Shields: "state: down"})
		require.NoError(t, err)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	all, err := s.Nodes(step(t))
	require.NoError(t, err)
	for i := range nodes {
		w.over = append(w.over, all[fmt.Sprintf("n%d", i+1)].Overlay[0].String())
	}
	w.count()
	for _, to := range []int{1, 2} { // nothing is closed: what is counted arrives
		require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[to].Pod.V4))
		require.Greater(t, w.volley(to), 9*volleyCount, "of %d", 11*volleyCount)
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte("kind: policy\nname: main\nrules:\n- {name: one, from: {site: s1}, to: {site: s3}, allow: [tcp/80]}\n"), 0o600))
	_, err = s.CLI(step(t), "apply", "-f", dir)
	require.NoError(t, err)
	for _, c := range wallCases {
		if c.thin || soak() {
			w.hold(c, bin)
		}
	}
}

// hold has walls off as a case says, and holds the others to what they promise.
func (w *walls) hold(c wallCase, bin Binaries) {
	t := w.t
	off := func(walls string) []string { return []string{policyfault.Variable + "=" + walls} }
	w.s.Hub.Env = off(c.hub)
	require.NoError(t, w.s.ExchangeHub(step(t), bin.Hub))
	for i, n := range w.nodes {
		was := n.Env
		if n.Env = off(""); c.all || c.sender && i == 0 {
			n.Env = off(policyfault.Host)
		}
		if len(was) == 0 && n.Env[0] == off("")[0] {
			continue // it runs so
		}
		require.NoError(t, n.Exchange(step(t), bin.Agent))
	}
	require.NoError(t, w.s.WaitReady(step(t), "n1", "n2", "n3"))
	require.NoError(t, lab.Wait(step(t), "the policy on all nodes", func(ctx context.Context) error {
		var o api.Object
		if err := w.s.Ask(ctx, &o, "get", "policy", "main"); err != nil || o.Have != 3 {
			return fmt.Errorf("%d have it: %w", o.Have, errors.Join(err, fmt.Errorf("%v do not", o.Lack)))
		}
		return nil
	}))
	for i, n := range w.nodes {
		tables, err := n.Host.Run(step(t), "nft", "list", "tables")
		require.NoError(t, err)
		require.Equal(t, !c.all && (!c.sender || i != 0), strings.Contains(tables, "causeway-policy"), "%s: n%d", c.name, i+1)
	}
	for _, kind := range []protocol.PathKind{protocol.PathDirect, protocol.PathRelay} {
		w.force(kind)
		peers := strings.Contains(c.hub, policyfault.Netmaps)
		relayed := strings.Contains(c.hub, policyfault.Relay)
		if peers && (kind == protocol.PathDirect || relayed) {
			// Echo between overlay addresses is no subject of a policy: it shows that what is closed could arrive.
			require.NoError(t, Ping(step(t), w.nodes[0].Host, w.over[1]), "%s, %s", c.name, kind)
			require.NoError(t, w.s.WaitPath(step(t), "n1", "n2", kind), c.name)
		} else if !peers {
			paths, err := w.nodes[0].Agent(step(t), "paths", "-o", "json")
			require.NoError(t, err)
			require.NotContains(t, paths, `"n2"`, "%s: no peer", c.name)
		}
		passed := w.volley(1)
		t.Logf("%s, %s path: %d of %d passed between nodes that are closed to each other", c.name, kind, passed, 11*volleyCount)
		require.Equal(t, c.direct && kind == protocol.PathDirect, passed > 0, "%s, %s path: %d packets passed", c.name, kind, passed)
	}
	w.force(protocol.PathDirect)
	require.NoError(t, Ping(step(t), w.nodes[0].Host, w.over[2]), c.name)
	passed := w.volley(2)
	t.Logf("%s: %d passed to ports that are closed between nodes that are peers", c.name, passed)
	require.Equal(t, c.ports, passed > 0, "%s: %d packets passed", c.name, passed)
}

// force has the first two nodes talk over a kind of path alone.
func (w *walls) force(kind protocol.PathKind) {
	n := w.nodes[0]
	n.Host.Nft("table inet lab-path\ndelete table inet lab-path\n")
	if kind == protocol.PathRelay {
		n.Host.Nft(fmt.Sprintf(`table inet lab-path {
	chain out { type filter hook output priority 0; ip daddr %[1]s drop; }
	chain in { type filter hook input priority 0; ip saddr %[1]s drop; }
}
`, w.nodes[1].LAN))
	}
}

// count begins to count what of the first node, and its pod, is delivered at the others.
func (w *walls) count() {
	for i, n := range w.nodes[1:] {
		n.Pod.Host.Nft(fmt.Sprintf(`table inet lab-count {
	counter got { }
	chain in { type filter hook prerouting priority -300; ip saddr { %s, %s } counter name got; }
}
`, w.nodes[0].Pod.V4, w.over[0]))
		n.Host.Nft(fmt.Sprintf(`table inet lab-count {
	counter got { }
	chain in { type filter hook input priority -300; ip daddr != %[3]s return; ip saddr %[1]s counter name got; ip saddr %[2]s meta l4proto { tcp, udp } th dport 5000-25000 counter name got; }
}
`, w.nodes[0].Pod.V4, w.over[0], w.over[i+1]))
	}
}

// volley has the first node and its pod send to another node and its pod, and returns how many packets were delivered there.
// From node to node echoes do not count, which no policy closes: 11 kinds are left.
func (w *walls) volley(to int) int {
	t, n := w.t, w.nodes[to]
	counted := func() (sum int) {
		for _, h := range []*lab.Host{n.Pod.Host, n.Host} {
			out, err := h.Run(step(t), "nft", "-j", "list", "counters", "table", "inet", "lab-count")
			require.NoError(t, err)
			_, rest, ok := strings.Cut(out, `"packets": `)
			require.True(t, ok, out)
			k, err := strconv.Atoi(rest[:strings.IndexAny(rest, ",}")])
			require.NoError(t, err)
			sum += k
		}
		return sum
	}
	before := counted()
	for _, from := range []*lab.Host{w.nodes[0].Pod.Host, w.nodes[0].Host} {
		for _, addr := range []string{n.Pod.V4, w.over[to]} {
			out, err := from.Run(step(t), w.s.Bin.Labtool, "volley", addr, "-count", strconv.Itoa(volleyCount))
			require.NoError(t, err)
			var v struct{ UDP, TCP, ICMP int }
			require.NoError(t, json.Unmarshal([]byte(out), &v))
			require.Equal(t, 3*volleyCount, v.UDP+v.TCP+v.ICMP)
		}
	}
	steady(t, 300*time.Millisecond) // what is under way arrives
	return counted() - before
}
