package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// realmNode is a site of one node, with a pod at an address that another site has too.
type realmNode struct {
	*smallNode
	name, site string
}

// realmHosts are four hosts: p1 and p2, and d1 and d2 whose pods have the same addresses.
func realmHosts(t *testing.T) (*System, map[string]*realmNode) {
	t.Helper()
	needRoot(t)
	l := lab.New(t)
	inet := l.Switch("inet")
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	nodes := map[string]*realmNode{}
	for i, site := range []string{"p1", "p2", "d1", "d2"} {
		n := &realmNode{&smallNode{Inet: inet, LAN: fmt.Sprintf("203.0.113.%d", 21+i)}, site + "-n", site}
		n.Host = l.Host(n.name).Link("eth0", inet, n.LAN+"/24")
		at := i%2 + 1
		net := n.Host.PodNet("pods0", fmt.Sprintf("10.%d.1.1/24", at), fmt.Sprintf("fd10:%d:1::1/64", at))
		v4, v6 := fmt.Sprintf("10.%d.1.11", at), fmt.Sprintf("fd10:%d:1::11", at)
		n.Pod = &Pod{Host: net.Pod(site+"-pod", v4+"/24", v6+"/64"), V4: v4, V6: v6}
		nodes[site] = n
	}
	s, err := NewSystem(step(t), l, binaries(t), hub, HubAddr)
	require.NoError(t, err)
	for _, site := range []string{"p1", "p2", "d1", "d2"} {
		require.NoError(t, nodes[site].Host.Settle(step(t)))
		require.NoError(t, s.CreateSite(step(t), site))
	}
	return s, nodes
}

// Production and development use the same addresses: each reaches its own, and nothing brings the two together.
func TestSameRangeInTwoSegments(t *testing.T) {
	t.Parallel()
	s, nodes := realmHosts(t)
	dir := t.TempDir()
	apply := func(text string) error {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(text), 0o600))
		out, err := s.CLI(step(t), "apply", "-f", dir)
		t.Log(out)
		return err
	}
	join := func(site string) error {
		n := nodes[site]
		var err error
		n.Node, err = s.Join(step(t), NodeSpec{Name: n.name, Site: site, Host: n.Host, TokenRoutes: PodRoutes(map[string]int{"p1": 1, "p2": 2, "d1": 1, "d2": 2}[site], 1)})
		return err
	}
	require.NoError(t, join("p1"))
	require.NoError(t, join("p2"))
	require.NoError(t, s.WaitReady(step(t), "p1-n", "p2-n"))
	_, err := s.CLI(step(t), "token", "create", "--site", "d1", "--route", "10.1.1.0/24")
	requireOneLine(t, err, "10.1.1.0/24 overlaps route 10.1.1.0/24 of node p1-n (site p1); reject that one first")

	const segments = "kind: segment\nname: prod\nsites: [p1, p2]\n---\nkind: segment\nname: dev\nsites: [d1, d2]\n"
	require.NoError(t, apply(segments))
	require.NoError(t, join("d1"))
	require.NoError(t, join("d2"))
	require.NoError(t, s.WaitReady(step(t), "d1-n", "d2-n"))

	// Each pod counts who asks for it.
	for _, n := range nodes {
		n.Pod.Host.Nft("table inet who {\nchain in {\ntype filter hook input priority 0\nicmp type echo-request counter\nicmpv6 type echo-request counter\n}\n}\n")
	}
	asked := func(site string) (all int) {
		out, err := nodes[site].Pod.Host.Run(step(t), "nft", "list", "chain", "inet", "who", "in")
		require.NoError(t, err)
		found := regexp.MustCompile(`packets (\d+)`).FindAllStringSubmatch(out, -1)
		require.Len(t, found, 2)
		for _, m := range found {
			n, err := strconv.Atoi(m[1])
			require.NoError(t, err)
			all += n
		}
		return all
	}
	reaches := func(from, to, not string) {
		t.Helper()
		for _, addr := range []string{nodes[to].Pod.V4, nodes[to].Pod.V6} {
			before, other := asked(to), asked(not)
			require.NoError(t, Ping(step(t), nodes[from].Pod.Host, addr))
			require.Greater(t, asked(to), before, "%s asks %s", from, addr)
			require.Equal(t, other, asked(not), "%s asks %s, and %s hears of it", from, addr, not)
		}
	}
	all := func() {
		t.Helper()
		reaches("p1", "p2", "d2")
		reaches("p2", "p1", "d1")
		reaches("d1", "d2", "p2")
		reaches("d2", "d1", "p1")
	}
	all()

	out, err := s.CLI(step(t), "route", "list")
	require.NoError(t, err)
	for _, want := range []string{`p1-n +p1 +prod +10\.1\.1\.0/24 +approved +token +yes`, `d1-n +d1 +dev +10\.1\.1\.0/24 +approved +token +yes`, `d2-n +d2 +dev +10\.2\.1\.0/24 +approved +token +yes`} {
		require.Regexp(t, want, out)
	}
	saysWhich(t, s)

	// What would bring them together is refused, and nothing changes.
	err = apply(segments + "---\nkind: policy\nname: main\nrules:\n- {name: inside, from: {segment: prod}, to: {segment: prod}, allow: [any]}\n- {name: registry, across: [dev, prod], from: {segment: dev}, to: {site: p1}, allow: [tcp/443]}\n")
	requireOneLine(t, err, "10.1.1.0/24 of node", "(site p1)", "(site d1)", "rule main/registry joins segments", "first reject one of them, or keep the segments apart")
	_, err = s.CLI(step(t), "node", "label", "d1-n", "env=prod")
	require.NoError(t, err)
	err = apply("kind: segment\nname: prod\nsites: [p1, p2]\nlabels: {env: prod}\n---\nkind: segment\nname: dev\nsites: [d1, d2]\n")
	requireOneLine(t, err, "and both would be in segment prod; first reject one of them, or keep the segments apart")
	_, err = s.CLI(step(t), "delete", "segment", "dev", "--yes")
	require.NoError(t, err, "what is in no segment is apart from the other")
	_, err = s.CLI(step(t), "delete", "segment", "prod", "--yes")
	requireOneLine(t, err, "and both would be in segment unassigned; first reject one of them, or keep the segments apart")
	all()

	// Once nothing overlaps any more, all may be one again.
	for _, site := range []string{"d1", "d2"} {
		for _, r := range PodRoutes(map[string]int{"d1": 1, "d2": 2}[site], 1) {
			_, err = s.CLI(step(t), "route", "reject", site+"-n", r)
			require.NoError(t, err)
		}
	}
	_, err = s.CLI(step(t), "delete", "segment", "prod", "--yes")
	require.NoError(t, err)
	require.NoError(t, Wait(t, func() error {
		before := asked("p2")
		if err := PingOnce(step(t), nodes["d1"].Host, nodes["p2"].Pod.V4); err != nil {
			return err
		}
		if asked("p2") == before {
			return fmt.Errorf("another one answers")
		}
		return nil
	}))
	reaches("p1", "p2", "d2")
}

// saysWhich checks that everything that takes an address says whose is meant, or asks.
func saysWhich(t *testing.T, s *System) {
	t.Helper()
	const doubt = "2 segments have 10.1.1.11: dev by d1-n, prod by p1-n; write dev/10.1.1.11 or prod/10.1.1.11"
	cli := func(args ...string) (string, error) { return s.CLI(step(t), args...) }
	for _, args := range [][]string{{"policy", "test", "10.1.1.11", "10.2.1.11", "icmp"}, {"diag", "explain", "10.1.1.11", "10.2.1.11"}, {"diag", "path", "10.1.1.11", "10.2.1.11"}, {"diag", "trace", "10.1.1.11", "10.2.1.11"}} {
		_, err := cli(args...)
		requireOneLine(t, err, doubt)
	}
	for _, seg := range []string{"prod", "dev"} {
		out, err := cli("policy", "test", seg+"/10.1.1.11", seg+"/10.2.1.11", "icmp")
		require.NoError(t, err)
		require.Contains(t, out, "open")
		node := map[string]string{"prod": "p2-n", "dev": "d2-n"}[seg]
		for _, from := range []string{seg + "/10.1.1.11", map[string]string{"prod": "p1-n", "dev": "d1-n"}[seg]} {
			var e api.Explanation
			require.NoError(t, s.Ask(step(t), &e, "diag", "explain", from, "10.2.1.11"))
			require.Equal(t, node, e.To.Node, "%s asks", from)
			require.Equal(t, api.VerdictHealthy, e.Verdict, "%+v", e.Faults)
			var tr api.Trace
			require.NoError(t, s.Ask(step(t), &tr, "diag", "trace", from, "10.2.1.11"))
			require.Equal(t, node, tr.To.Node)
		}
	}
	_, err := cli("policy", "test", "prod/10.1.1.11", "dev/10.2.1.11", "icmp")
	require.Error(t, err)
	out, err := cli("diag", "explain", "p1-n", "dev/10.2.1.11")
	require.Error(t, err)
	require.Contains(t, out, "policy-closed")
	require.Contains(t, out, "dev/10.2.1.11 at d2-n")
}
