package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// Segments and policies on real hosts: what is closed is closed soon and what is open stays open.
func TestPolicy(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 3)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	dir := t.TempDir()
	apply := func(text string) error {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(text), 0o600))
		out, err := s.CLI(step(t), "apply", "-f", dir)
		t.Log(out)
		return err
	}
	open := func(from, to int) { require.NoError(t, Ping(step(t), nodes[from-1].Pod.Host, nodes[to-1].Pod.V4)) }
	closed := func(from, to int) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			if PingOnce(step(t), nodes[from-1].Pod.Host, nodes[to-1].Pod.V4) == nil {
				return fmt.Errorf("a ping of n%d reaches n%d", from, to)
			}
			return nil
		}))
	}
	open(1, 2)
	open(1, 3)

	// Walls between segments, and all open inside them.
	const segments = "kind: segment\nname: prod\nsites: [s1, s2]\n---\nkind: segment\nname: dev\nsites: [s3]\n"
	require.NoError(t, apply(segments))
	closed(1, 3)
	closed(3, 2)
	open(1, 2)

	// Rules: what none opens is closed.
	const policy = segments + "---\nkind: policy\nname: main\nrules:\n" +
		"- {name: one, from: {site: s1}, to: {site: s2, cidr: 10.2.1.0/24}, allow: [icmp, tcp/7002]}\n" +
		"- {name: lab, across: [dev, prod], from: {segment: dev}, to: {site: s2}, allow: [icmp]}\n"
	require.NoError(t, apply(policy))
	have := func() {
		require.NoError(t, Wait(t, func() error {
			var o api.Object
			if err := s.Ask(step(t), &o, "get", "policy", "main"); err != nil || len(o.Lack) > 0 || o.Have != 3 {
				return fmt.Errorf("%d nodes have it, %v do not: %v", o.Have, o.Lack, err)
			}
			return nil
		}))
	}
	have()
	open(1, 2)
	open(3, 2)
	closed(1, 3)
	closed(2, 1)
	require.ErrorContains(t, apply(policy+"tests:\n- {from: 10.1.1.11, to: 10.3.1.11, port: icmp, want: open}\n"), "wanted open, and it is closed")
	out, err := s.CLI(step(t), "policy", "test", "10.1.1.11", "10.2.1.11", "tcp/7002")
	require.NoError(t, err)
	require.Contains(t, out, "open by rule main/one")
	out, err = s.CLI(step(t), "diag", "explain", "10.1.1.11", "10.2.1.11", "--port", "7080")
	require.Error(t, err)
	require.Contains(t, out, "the nearest is main/one, but it opens icmp, tcp/7002 and not tcp/7080")

	// Ports are judged on the hosts: the two nodes are peers, and the relay and the tunnel pass all between them.
	one, two := nodes[0].Pod, nodes[1].Pod
	server := startServer(t, s, two)
	http := func() error {
		_, err := one.Host.Run(step(t), s.Bin.Labtool, "http", "http://"+two.V4+":7080/ready")
		return err
	}
	require.Error(t, http(), "tcp/7080 is in no rule")
	kept, err := s.Hold(step(t), one.Host, server)
	require.NoError(t, err)
	more := strings.Replace(policy, "tcp/7002]", "tcp/7002, tcp/7080]", 1)
	require.NoError(t, apply(more))
	require.NoError(t, Wait(t, http))
	require.NoError(t, apply(policy))
	require.NoError(t, Wait(t, func() error {
		if http() == nil {
			return fmt.Errorf("tcp/7080 is still open")
		}
		return nil
	}))
	require.True(t, kept.Alive())
	_, _, err = kept.End(step(t))
	require.NoError(t, err, "a connection that no change forbade")
	held, err := s.Hold(step(t), one.Host, server)
	require.NoError(t, err)

	// A rule that goes cuts what it opened.
	start := time.Now()
	require.NoError(t, apply(segments+"---\nkind: policy\nname: main\nrules: []\n"))
	broke, err := held.Broken(step(t))
	require.NoError(t, err)
	require.Contains(t, broke, "connection reset by peer")
	measured(t, "policy rule removed to reset", time.Since(start).Seconds(), 2)
	closed(1, 2)
	closed(3, 2)
	events, err := s.CLI(step(t), "events")
	require.NoError(t, err)
	require.NotContains(t, events, "firewall", "a trial of the firewalls took a policy for one")
	_, err = s.CLI(step(t), "delete", "policy", "main", "--yes")
	require.NoError(t, err)
	open(2, 1)
	for _, name := range []string{"dev", "prod"} {
		_, err = s.CLI(step(t), "delete", "segment", name, "--yes")
		require.NoError(t, err)
	}
	open(3, 1)
	for _, n := range nodes {
		tables, err := n.Host.Run(step(t), "nft", "list", "tables")
		require.NoError(t, err)
		require.NotContains(t, tables, "causeway-policy")
	}
}

// What opens does so where it arrives before where it begins: under a stream of new connections the receiver refuses none while
// a port opens again and again. What closes is closed for both.
func TestPolicyOpensWhereItArrivesFirst(t *testing.T) {
	t.Parallel()
	lab.Counts(t)
	s, nodes := newSmall(t, 3)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	dir := t.TempDir()
	apply := func(allow string) {
		t.Helper()
		text := "kind: policy\nname: main\nrules:\n- {name: one, from: {site: s1}, to: {site: s2}, allow: [" + allow + "]}\n"
		require.NoError(t, os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte(text), 0o600))
		_, err := s.CLI(step(t), "apply", "-f", dir)
		require.NoError(t, err)
	}
	apply("icmp")
	one, two := nodes[0].Pod, nodes[1].Pod
	server := startServer(t, s, two)
	require.NoError(t, Ping(step(t), one.Host, server))
	// Of what asks for a connection and comes out of the receiver's tunnel, what its wall refuses.
	nodes[1].Host.Nft(fmt.Sprintf(`table inet lab-count {
	counter came { }
	counter passed { }
	chain before { type filter hook prerouting priority -145; iifname cw0 ip saddr %[1]s tcp dport 7080 tcp flags & (syn | ack) == syn counter name came; }
	chain after { type filter hook prerouting priority -135; iifname cw0 ip saddr %[1]s tcp dport 7080 tcp flags & (syn | ack) == syn counter name passed; }
}
`, one.V4))
	refused := func() int {
		t.Helper()
		var n [2]int
		for i, name := range []string{"came", "passed"} {
			out, err := nodes[1].Host.Run(step(t), "nft", "list", "counter", "inet", "lab-count", name)
			require.NoError(t, err)
			_, rest, ok := strings.Cut(out, "packets ")
			require.True(t, ok, out)
			n[i], err = strconv.Atoi(strings.Fields(rest)[0])
			require.NoError(t, err)
		}
		return n[0] - n[1]
	}
	settled := func() (n int) { // while nothing comes through: the sender's wall is shut
		require.NoError(t, Wait(t, func() error {
			if n = refused(); n != refused() {
				return fmt.Errorf("more are refused")
			}
			return nil
		}))
		return n
	}
	whole := func() {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			var st api.Status
			if err := s.Ask(step(t), &st, "status"); err != nil || st.Policies.Stage != "whole" {
				return fmt.Errorf("the change is at stage %s: %v", st.Policies.Stage, err)
			}
			require.Empty(t, st.Policies.Behind)
			return nil
		}))
	}
	dial, err := one.Host.Start(lab.Program{Name: "dial", Args: []string{s.Bin.Labtool, "dial", server + ":7080", "-every", "2ms"}})
	require.NoError(t, err)
	require.NoError(t, dial.WaitOutput(step(t), "dialling"))
	http := func() error {
		_, err := one.Host.Run(step(t), s.Bin.Labtool, "http", "http://"+server+":7080/ready")
		return err
	}
	closed := func() {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			if http() == nil {
				return fmt.Errorf("it is still open")
			}
			return nil
		}))
		whole()
	}
	closed()
	var slowest float64
	for range rounds(20) {
		before, start := settled(), time.Now()
		apply("icmp, tcp/7080")
		require.NoError(t, Wait(t, http))
		slowest = max(slowest, time.Since(start).Seconds())
		whole()
		require.NoError(t, Wait(t, func() error { // one may come between the two that are read
			if n := refused(); n != before {
				return fmt.Errorf("the receiver refused %d that begin to be open", n-before)
			}
			return nil
		}))
		apply("icmp")
		closed()
	}
	measured(t, "a port opened to a connection through it", slowest, 5)
	dial.Signal(syscall.SIGTERM)
	require.NoError(t, dial.Wait(step(t)))
	var d struct{ Connected, Refused, Other int }
	require.NoError(t, json.Unmarshal([]byte(dial.Output()[strings.IndexByte(dial.Output(), '{'):]), &d))
	t.Logf("%+v", d)
	require.Positive(t, d.Connected)
	require.Positive(t, d.Refused)
}
