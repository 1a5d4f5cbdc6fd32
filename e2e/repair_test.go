package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/debug"
	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// mendWithin is how long what others change may stay changed.
const mendWithin = 2 * time.Second

// What others do to a node's network is put back within two seconds, under a
// connection that lives on, and the hub names each incident.
func TestRepair(t *testing.T) {
	s, nodes := newSmall(t, 2)
	nodes[0].Host.Sh("sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	n, far := nodes[0], nodes[1]
	_, err := s.Serve(step(t), far.Pod.Host)
	require.NoError(t, err)
	f := startTraffic(t, s, n.Pod, far.Pod)
	planned := func() error {
		var r debug.Routes
		if err := n.ask(step(t), "/v1/routes", &r); err != nil {
			return err
		}
		if len(r.Missing)+len(r.Extra) > 0 || r.Error != "" {
			return fmt.Errorf("missing %q, extra %q, %s", r.Missing, r.Extra, r.Error)
		}
		return nil
	}
	mtuOf(t, n.Node, "n2", 1440) // a plan with another MTU would put a route back without an incident
	require.NoError(t, Wait(t, planned))

	drifts := []struct{ what, meddle, subject, by string }{
		{"nftables flushed", "nft flush ruleset", "nftables", "nft (process "},
		{"rule in nftables", "nft insert rule inet causeway forward drop", "nftables", "nft (process "},
		{"TUN deleted", "ip link del cw0", "link", ""},
		{"link down", "ip link set cw0 down", "link", ""},
		{"routes flushed", "ip route flush table 51806", "routes", "(process "},
		{"route deleted", "ip route del 10.2.1.0/24 table 51806", "routes", "(process "},
		{"rules deleted", "ip rule del pref 5206; ip -6 rule del pref 5206", "rules", "(process "},
		{"address deleted", "ip addr flush dev cw0", "addresses", ""},
		{"forwarding off", "sysctl -qw net.ipv4.conf.pods0.forwarding=0", "net.ipv4.conf.pods0.forwarding", ""},
		{"IPv6 forwarding off", "sysctl -qw net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.all.forwarding", ""},
		{"rp_filter strict", "sysctl -qw net.ipv4.conf.cw0.rp_filter=1", "net.ipv4.conf.cw0.rp_filter", ""},
		{"src_valid_mark off", "sysctl -qw net.ipv4.conf.eth0.src_valid_mark=0", "net.ipv4.conf.eth0.src_valid_mark", ""},
	}
	repairs := map[string]int{}
	for _, d := range drifts {
		start := time.Now()
		n.Host.Sh(d.meddle)
		require.NoError(t, lab.Wait(step(t), d.what, func(context.Context) error {
			if err := planned(); err != nil {
				return err
			}
			i, ok := incidentOf(t, n.Node, d.subject)
			if !ok || i.State != protocol.IncidentOver || i.Repairs <= repairs[d.subject] {
				return fmt.Errorf("no incident that is over: %+v", i)
			}
			if !strings.Contains(i.Reason, d.by) {
				return fmt.Errorf("%q does not name %q", i.Reason, d.by)
			}
			repairs[d.subject] = i.Repairs
			return nil
		}))
		i, _ := incidentOf(t, n.Node, d.subject)
		measured(t, "mended "+d.what, i.Until.Sub(start).Seconds(), mendWithin.Seconds())
		require.NotEmpty(t, i.Felt)
		require.NotEmpty(t, i.Found)
		require.NoError(t, Ping(step(t), n.Pod.Host, far.Pod.V4))
		require.NoError(t, Ping(step(t), n.Pod.Host, far.Pod.V6))
	}
	t.Logf("longest gap of the connection %.2f s", f.end(t))

	// The hub has them all, as the node has them in the end.
	for subject := range repairs {
		i, ok := incidentOf(t, n.Node, subject)
		require.True(t, ok, subject)
		require.GreaterOrEqual(t, i.Repairs, repairs[subject], subject)
		repairs[subject] = i.Repairs
	}
	require.NoError(t, Wait(t, func() error {
		var l []api.Incident
		if err := s.Ask(step(t), &l, "incidents", "--node", "n1"); err != nil {
			return err
		}
		for subject, n := range repairs {
			if !slices.ContainsFunc(l, func(i api.Incident) bool {
				return i.Subject == subject && i.State == protocol.IncidentOver && i.Repairs == n
			}) {
				return fmt.Errorf("the hub has no %s mended %d times: %+v", subject, n, l)
			}
		}
		return nil
	}))
	out, err := s.CLI(step(t), "incidents")
	require.NoError(t, err)
	t.Log("\n" + out)
}

// A fight over what keeps something closed is slow, and never given up; while it lasts no
// peer is reached. The node goes on, and its hub is told.
func TestFight(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	n, far := nodes[0], nodes[1]
	require.NoError(t, Ping(step(t), far.Pod.Host, n.Pod.V4))
	start, cpu := time.Now(), cpuTime(t, n.Proc.PID())
	deleted := filepath.Join(t.TempDir(), "deleted")
	loop, err := n.Host.Start(lab.Program{Name: "meddler", Args: []string{"sh", "-c", `while :; do nft delete table inet causeway 2>/dev/null && echo >>"$0"; sleep 0.1; done`, deleted}})
	require.NoError(t, err)
	var given protocol.Condition
	require.NoError(t, Wait(t, func() error {
		var h debug.Health
		if err := n.ask(step(t), "/v1/health", &h); err != nil {
			return err
		}
		for _, c := range h.Conditions {
			if c.Name == "repair" && !c.OK {
				given = c
				return nil
			}
		}
		return errors.New("no word of the fight yet")
	}))
	require.Contains(t, given.Cause, "nftables: changed again and again by nft (process ")
	require.Contains(t, given.Cause, "no peer is reached until it has stood for 12s")
	require.Contains(t, given.Cause, "causeway-agent repair")
	used, took := cpuTime(t, n.Proc.PID())-cpu, time.Since(start)
	t.Logf("said after %.1f s, %.2f s of the processor: %s", took.Seconds(), used.Seconds(), given.Cause)
	require.Less(t, used, took/4, "the agent's use of the processor")
	var tries atomic.Int64
	through := probeClosed(t, far.Pod.Host, n.Pod.V4, &tries)
	times := func() int {
		b, err := os.ReadFile(deleted)
		require.NoError(t, err)
		return len(b)
	}
	before := times()
	require.NoError(t, Wait(t, func() error {
		if now := times(); now < before+2 {
			return fmt.Errorf("deleted %d times, %d of them since it was said", now, now-before)
		}
		return nil
	}), "it is put back all the same")
	require.Zero(t, through(), "packets from another node while the walls are fought over")
	t.Logf("put back %d times, %d of them after it was said; 0 of %d packets got through", times(), times()-before, tries.Load())
	require.NoError(t, Wait(t, func() error {
		list, err := s.Nodes(step(t))
		if err != nil {
			return err
		}
		if list["n1"].State != api.NodeDegraded {
			return errState(list["n1"].State)
		}
		var l []api.Incident
		if err := s.Ask(step(t), &l, "incidents", "--site", "s1", "--since", "1h"); err != nil {
			return err
		}
		if !slices.ContainsFunc(l, func(i api.Incident) bool {
			return i.Subject == "nftables" && i.State == protocol.IncidentStopped
		}) {
			return fmt.Errorf("the hub knows of no end: %+v", l)
		}
		return nil
	}))

	// Whoever ended it says so, as the doctor has it, and all is well.
	c := &curing{t: t, s: s, nodes: nodes}
	mend := c.found("repair-stopped", "n1")
	loop.Kill()
	begin := strings.Index(mend, "on n1: ")
	require.GreaterOrEqual(t, begin, 0, mend)
	c.run(mend[begin:])
	require.NoError(t, s.WaitReady(step(t), "n1"))
	c.gone("repair-stopped", "n1")
	require.NoError(t, Ping(step(t), far.Pod.Host, n.Pod.V4))
}

// probeClosed pings an address until the function that it returns is called, which returns how
// many answers came.
func probeClosed(t *testing.T, from *lab.Host, to string, tries *atomic.Int64) func() int {
	t.Helper()
	ctx, cancel := context.WithCancel(step(t))
	done := make(chan int)
	go func() {
		n := 0
		for ctx.Err() == nil {
			tries.Add(1)
			if _, err := from.Run(ctx, "ping", "-nqc1", "-W1", to); err == nil {
				n++
			}
		}
		done <- n
	}()
	return func() int { cancel(); return <-done }
}

// incidentOf is a node's newest incident of a subject.
func incidentOf(t *testing.T, n *Node, subject string) (protocol.Incident, bool) {
	t.Helper()
	var l []protocol.Incident
	require.NoError(t, n.ask(step(t), "/v1/incidents", &l))
	i := slices.IndexFunc(l, func(i protocol.Incident) bool { return i.Subject == subject })
	if i < 0 {
		return protocol.Incident{}, false
	}
	return l[i], true
}

// cpuTime is what a process has used of the processors.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(t, err)
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, err := strconv.Atoi(f[11])
	require.NoError(t, err)
	system, err := strconv.Atoi(f[12])
	require.NoError(t, err)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}
