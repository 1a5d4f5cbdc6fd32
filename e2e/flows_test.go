package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// What passes and what is refused is seen: first without any policy, then by rules of the policy that was suggested of it.
func TestFlows(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	one, two := nodes[0].Pod, nodes[1].Pod
	startServer(t, s, two)
	startServer(t, s, one)
	get := func(from *Pod, to string) error {
		_, err := from.Host.Run(step(t), s.Bin.Labtool, "http", "http://"+to+"/ready")
		return err
	}
	dir := t.TempDir()
	apply := func(text string) {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "x.yaml"), []byte(text), 0o600))
		_, err := s.CLI(step(t), "apply", "-f", dir)
		require.NoError(t, err)
	}
	out, err := s.CLI(step(t), "status")
	require.NoError(t, err)
	require.Contains(t, out, "none: every node may talk to every other")

	// No wall, and flows are logged all the same. Nothing of the hub's or agents' own is.
	apply("kind: flowlog\nname: all\n")
	flows := func(args ...string) (l []api.Flow) {
		t.Helper()
		require.NoError(t, s.Ask(step(t), &l, append([]string{"flows"}, args...)...))
		return l
	}
	logged := func(what string, is func(api.Flow) bool, do func() error) (f api.Flow) {
		t.Helper()
		require.NoError(t, lab.Wait(step(t), what, func(ctx context.Context) error {
			if err := do(); err != nil {
				return err
			}
			l := flows()
			i := slices.IndexFunc(l, is)
			if i < 0 {
				return fmt.Errorf("there are %+v", l)
			}
			f = l[i]
			return nil
		}))
		return f
	}
	passes := func(from, to *Pod, port string) func(api.Flow) bool {
		return func(f api.Flow) bool {
			return f.From.String() == from.V4 && f.To.String() == to.V4 && f.Port == port && f.Verdict == api.FlowOpen
		}
	}
	f := logged("the request to be logged", passes(one, two, "tcp/7080"), func() error { return get(one, two.V4+":7080") })
	require.Equal(t, []any{"n1", "s1", "s2", ""}, []any{f.Node, f.FromSite, f.ToSite, f.Rule})
	logged("the ping to be logged", passes(one, two, "icmp"), func() error { return Ping(step(t), one.Host, two.V4) })
	for _, f := range flows() {
		require.NotContains(t, []string{f.FromNode, f.ToNode}, "n1", "nothing but pods spoke: %+v", f)
		require.False(t, f.Midway, "%+v", f)
	}

	// The policy that is suggested opens that and nothing else.
	suggested, err := s.CLI(step(t), "policy", "suggest", "--since", "1h")
	require.NoError(t, err)
	t.Log(suggested)
	require.Regexp(t, regexp.MustCompile(`(?m)^- \{name: s1-to-s2, from: \{site: s1, cidr: 10\.1\.1\.0/24\}, to: \{site: s2, cidr: 10\.2\.1\.0/24\}, allow: \[tcp/7080, icmp\]\}$`), suggested)
	apply("kind: flowlog\nname: all\n---\n" + suggested)
	// Both walls are to be there before anything is refused: one alone refuses what the other would have.
	require.NoError(t, Wait(t, func() error {
		var o api.Object
		if err := s.Ask(step(t), &o, "get", "policy", "suggested"); err != nil || o.Have != 2 {
			return fmt.Errorf("%d have it, %v lack it: %v", o.Have, o.Lack, err)
		}
		return nil
	}))
	require.NoError(t, Wait(t, func() error {
		if get(two, one.V4+":7080") == nil {
			return fmt.Errorf("the other direction is open")
		}
		return nil
	}))
	require.NoError(t, get(one, two.V4+":7080"))
	require.NoError(t, Ping(step(t), one.Host, two.V4))

	// By rule, and what is refused.
	f = logged("the request to be logged by its rule", func(f api.Flow) bool { return passes(one, two, "tcp/7080")(f) && f.Rule != "" }, func() error { return get(one, two.V4+":7080") })
	require.Equal(t, "suggested/s1-to-s2", f.Rule)
	f = logged("the refusal to be logged", func(f api.Flow) bool {
		return f.From.String() == two.V4 && f.To.String() == one.V4 && f.Port == "tcp/7080" && f.Verdict == api.FlowRefused
	}, func() error { _ = get(two, one.V4+":7080"); return nil })
	require.Equal(t, "n2", f.Node, "refused before it went into the tunnel")
	for _, f := range flows("--denied") {
		require.Equal(t, api.FlowRefused, f.Verdict)
	}
	require.NotEmpty(t, flows("--rule", "suggested", "--from", "s1", "--to", "10.2.1.0/24"))
	require.Empty(t, flows("--rule", "other"))

	// Counters.
	metrics := agentGet(t, nodes[0], "/metrics")
	require.Regexp(t, regexp.MustCompile(`(?m)^causeway_agent_policy_packets_total\{rule="suggested/s1-to-s2"\} [1-9]`), metrics)
	require.Regexp(t, regexp.MustCompile(`(?m)^causeway_agent_policy_bytes_total\{rule="suggested/s1-to-s2"\} [1-9]`), metrics)
	require.Contains(t, metrics, `causeway_agent_policy_judged_packets_total{verdict="untracked"} 0`)
	require.Regexp(t, regexp.MustCompile(`(?m)^causeway_agent_policy_judged_packets_total\{verdict="refused"\} [1-9]`), agentGet(t, nodes[1], "/metrics"))
	var p struct {
		InForce bool `json:"in_force"`
		Rules   []struct {
			Rule    string
			Packets uint64
		}
		Classes []struct{ Where string }
		Refused []api.Flow `json:"refused_flows"`
		Deaf    string
	}
	var raw map[string]any
	text := agentGet(t, nodes[1], "/v1/policy?address="+one.V4)
	require.NoError(t, json.Unmarshal([]byte(text), &raw))
	delete(raw, "refused_flows")
	b, _ := json.Marshal(raw)
	require.NoError(t, json.Unmarshal(b, &p))
	require.True(t, p.InForce, text)
	require.Empty(t, p.Deaf)
	require.Equal(t, "suggested/s1-to-s2", p.Rules[0].Rule)
	require.Equal(t, "at a peer", p.Classes[0].Where)
	require.Contains(t, text, `"from":"`+two.V4+`","to":"`+one.V4+`","proto":6,"port":7080`)

	// What keeps packets from conntrack is named by the node that has it.
	nodes[1].Host.Sh("nft 'add table inet other; add chain inet other p { type filter hook prerouting priority -300; }; add rule inet other p icmp type { echo-request, echo-reply } notrack'")
	require.NoError(t, lab.Wait(step(t), "the node to name it", func(ctx context.Context) error {
		_ = PingOnce(ctx, one.Host, two.V4)
		var n api.Node
		if err := s.Ask(ctx, &n, "node", "show", "n2"); err != nil {
			return err
		}
		for _, c := range n.Conditions {
			if c.Name == "policy" && !c.OK && strings.Contains(c.Cause, "notrack") && n.State == api.NodeDegraded {
				return nil
			}
		}
		return fmt.Errorf("it is %s: %v", n.State, n.Conditions)
	}))
	nodes[1].Host.Sh("nft delete table inet other")

	// Tried again and again, it is a finding.
	c := &curing{t: t, s: s, nodes: nodes}
	var mend string
	require.NoError(t, lab.Wait(within(t, 3*time.Minute), "doctor to find policy-refuses", func(ctx context.Context) error {
		_ = get(two, one.V4+":7080")
		m, ok, out := c.finding(ctx, "policy-refuses", "n2")
		if !ok {
			return fmt.Errorf("%s", out)
		}
		mend = m
		return nil
	}))
	require.Equal(t, "causeway policy test 10.2.1.11 10.1.1.11 tcp/7080", mend)
	out, err = s.CLI(step(t), strings.Fields(mend)[1:]...)
	require.Error(t, err)
	require.Contains(t, out+err.Error(), "but it opens the other direction")
	for _, args := range [][]string{{"policy", "suggested"}, {"flowlog", "all"}} {
		_, err = s.CLI(step(t), "delete", args[0], args[1], "--yes")
		require.NoError(t, err)
	}
	c.gone("policy-refuses", "n2")
	require.NoError(t, Wait(t, func() error {
		tables, err := nodes[0].Host.Run(step(t), "nft", "list", "tables")
		if err == nil && strings.Contains(tables, "causeway-") {
			err = fmt.Errorf("left: %s", tables)
		}
		return err
	}))
}

// agentGet asks an agent's debug socket.
func agentGet(t *testing.T, n *smallNode, path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.Socket)
	}}}
	req, err := http.NewRequestWithContext(step(t), http.MethodGet, "http://agent"+path, nil)
	require.NoError(t, err)
	res, err := client.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, res.StatusCode, "%s", b)
	return string(b)
}
