package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// explained is a hub and two nodes with a pod each: n1 behind a NAT router whose
// mappings are new for each destination, n2 on the public network.
//
//	p1 10.1.1.11 ── n1 192.168.1.11 ── r1 ─┬─ hub
//	                  n2 203.0.113.22 ─────┘
//	p2 10.2.1.11 ──┘
type explained struct {
	t *testing.T
	*System
	r1     *lab.Host
	n1, n2 *smallNode
	server *lab.Process // of p2
	pods2  *lab.PodNet  // of n2
	hub    *lab.Host
	nats   *lab.Process // of the hub; nil: inside it
	hosts  string       // file that the agents have as /etc/hosts; empty: the machine's
}

const (
	explainPort = "7080" // labtool's HTTP
	pod1, pod2  = "10.1.1.11", "10.2.1.11"
)

// newExplained makes it, the hub with further args, which are for a NATS
// server beside it, and then by a name that hosts resolve by a file of their own.
func newExplained(t *testing.T, args ...string) *explained {
	t.Helper()
	needRoot(t)
	l := lab.New(t)
	inet, lan := l.Switch("inet"), l.Switch("lan")
	hub := l.Host("hub").Link("eth0", inet, HubAddr+"/24")
	x := &explained{t: t, hub: hub}
	public := HubAddr
	if len(args) > 0 {
		public = hubName
		x.startNATS()
	}
	x.r1 = l.Router("r1", lab.Symmetric).Link("wan", inet, "203.0.113.11/24").Link("lan", lan, "192.168.1.1/24")
	node := func(i int, link *lab.Host, addr, gw string) *smallNode {
		n := &smallNode{Inet: inet, LAN: addr, Host: l.Host(fmt.Sprintf("n%d", i)).Link("eth0", link, addr+"/24").Default(gw)}
		net := n.Host.PodNet("pods0", fmt.Sprintf("10.%d.1.1/24", i), fmt.Sprintf("fd10:%d:1::1/64", i))
		x.pods2 = net
		v4 := fmt.Sprintf("10.%d.1.11", i)
		n.Pod = &Pod{Host: net.Pod(fmt.Sprintf("p%d", i), v4+"/24", fmt.Sprintf("fd10:%d:1::11/64", i)), V4: v4}
		return n
	}
	x.n1, x.n2 = node(1, lan, "192.168.1.11", "192.168.1.1"), node(2, inet, "203.0.113.22", HubAddr)
	s, err := NewSystem(step(t), l, binaries(t), hub, public, args...)
	require.NoError(t, err)
	x.System = s
	if len(args) > 0 {
		x.ownHosts()
	}
	for i, n := range []*smallNode{x.n1, x.n2} {
		require.NoError(t, n.Host.Settle(step(t)))
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("s%d", i+1)))
		joinSmall(t, s, []*smallNode{x.n1, x.n2}, i+1)
		// A process in the pod, as every container has, beside what listens.
		_, err := n.Pod.Start(lab.Program{Name: "pause", Args: []string{"sleep", "infinity"}})
		require.NoError(t, err)
	}
	x.serve()
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	x.healthy()
	return x
}

func (x *explained) serve() {
	var err error
	x.server, err = x.Serve(step(x.t), x.n2.Pod.Host)
	require.NoError(x.t, err)
}

// ask runs the command; its exit status has to fit what it says.
func (x *explained) ask(ctx context.Context, from, to string, args ...string) (api.Explanation, error) {
	var r api.Explanation
	out, err := x.CLI(ctx, append([]string{"diag", "explain", from, to, "-o", "json"}, args...)...)
	var failed *lab.RunError
	if errors.As(err, &failed) {
		out = failed.Stdout
	}
	if e := json.Unmarshal([]byte(out), &r); e != nil {
		return r, fmt.Errorf("%w: %s: %w", e, out, err)
	}
	if (err != nil) != (len(r.Faults) > 0) {
		return r, fmt.Errorf("exit status %w with %d faults", err, len(r.Faults))
	}
	return r, nil
}

func (x *explained) explain() (api.Explanation, error) {
	return x.ask(step(x.t), pod1, pod2, "--port", explainPort)
}

// healthy waits until nothing is wrong.
func (x *explained) healthy() {
	x.t.Helper()
	require.NoError(x.t, lab.Wait(within(x.t, 2*time.Minute), "a healthy flow", func(context.Context) error {
		r, err := x.explain()
		if err == nil && r.Verdict != api.VerdictHealthy {
			err = errors.New(verdictText(r))
		}
		return err
	}))
}

func verdictText(r api.Explanation) string {
	var out []string
	for _, f := range r.Faults {
		out = append(out, fmt.Sprintf("%s at %q: %s (%s)", f.Cause, f.Node, f.Summary, strings.Join(f.Evidence, "; ")))
	}
	return r.Verdict + ": " + strings.Join(out, " | ")
}

// fault is one that the test injects.
type fault struct {
	name string
	want []string // causes of which the verdict is to be one
	node string   // at which; empty: any
	do   func()
	undo func()
	ask  func() (api.Explanation, error) // nil: from pod to pod
	wait bool                            // the verdict may need some seconds to come
	both bool                            // two faults: all of want may be named, nothing else
	bite func(context.Context) error     // nil when the fault bites; nil func: the verdict is all that shows it
}

// try injects a fault, asks once, or until the cause is named where that may take a
// moment, and mends it. It returns the verdict.
func (x *explained) try(f fault) (api.Explanation, bool) {
	x.t.Helper()
	ask := f.ask
	if ask == nil {
		ask = x.explain
	}
	f.do()
	if f.bite != nil {
		if err := lab.Wait(within(x.t, 20*time.Second), f.name+" to bite", f.bite); err != nil {
			f.undo() // or every other fault fails by it
			require.NoError(x.t, err)
		}
	}
	var r api.Explanation
	right := func() error {
		var err error
		if r, err = ask(); err != nil {
			return err
		}
		if len(r.Faults) == 0 || !slices.Contains(f.want, r.Faults[0].Cause) || f.node != "" && r.Faults[0].Node != f.node {
			return errors.New(verdictText(r))
		}
		if f.both && slices.ContainsFunc(r.Faults, func(o api.Fault) bool { return !slices.Contains(f.want, o.Cause) }) {
			return errors.New("a third: " + verdictText(r))
		}
		return nil
	}
	limit := time.Duration(0)
	if f.wait {
		limit = 45 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := lab.Wait(ctx, "the verdict on "+f.name, func(context.Context) error { return right() })
	if err != nil {
		x.t.Logf("%s: %v", f.name, err)
	}
	f.undo()
	return r, err == nil
}

// faults is the table. Each leaves everything as it was.
func (x *explained) faults() []fault {
	sh := func(h *lab.Host, script string) func() { return func() { h.Sh(script) } }
	n1, n2, p2 := x.n1.Host, x.n2.Host, x.n2.Pod.Host
	return []fault{
		{name: "nothing listens", want: []string{"no-listener"}, node: "n2",
			do: func() { x.server.Kill() }, undo: x.serve},
		{name: "wrong port", want: []string{"wrong-port"}, node: "n2", do: func() {}, undo: func() {},
			ask: func() (api.Explanation, error) { return x.ask(step(x.t), pod1, pod2, "--port", "7999") }},
		{name: "pod without default route", want: []string{"pod-no-route"}, node: "n2",
			do: sh(p2, "ip route del default"), undo: sh(p2, "ip route add default via 10.2.1.1")},
		{name: "nftables drop on the host", want: []string{"host-firewall"}, node: "n2",
			do:   sh(n2, `nft 'add table ip fw; add chain ip fw f { type filter hook forward priority 0; }; add rule ip fw f iifname "cw0" tcp dport 7080 drop'`),
			undo: sh(n2, "nft delete table ip fw")},
		{name: "ip rule that steals", want: []string{"rule-steals"}, node: "n1",
			do: sh(n1, "ip rule add pref 100 to 10.2.0.0/16 lookup main"), undo: sh(n1, "ip rule del pref 100")},
		{name: "route not approved", want: []string{"route-not-approved"}, node: "n2", do: func() {
			require.NoError(x.t, x.n2.Configure(append(PodRoutes(2, 1), "10.2.9.0/24"), nil))
			x.restart(x.n2)
		}, undo: func() {
			require.NoError(x.t, x.n2.Configure(nil, nil))
			x.restart(x.n2)
		}, ask: func() (api.Explanation, error) { return x.ask(step(x.t), pod1, "10.2.9.5") }, wait: true},
	}
}

func (x *explained) restart(n *smallNode) {
	x.t.Helper()
	require.NoError(x.t, n.Proc.Stop(step(x.t)))
	require.NoError(x.t, n.Start())
	require.NoError(x.t, x.WaitReady(step(x.t), n.Name))
}

// Faults that are injected one at a time are named, and a healthy pair raises no alarm. It
// takes what needs no waiting; TestExplainFaults has the whole table.
func TestExplain(t *testing.T) {
	t.Parallel()
	x := newExplained(t)
	runs := 10
	if soak() {
		runs = 100
	}
	for i := range runs {
		r, err := x.explain()
		require.NoError(t, err)
		require.Equal(t, api.VerdictHealthy, r.Verdict, "run %d: %s", i, verdictText(r))
	}
	t.Logf("%d runs on a healthy pair, no false alarm", runs)
	x.table(x.faults())
}

// table tries every fault in a subtest of its own and logs fault and verdict.
func (x *explained) table(faults []fault) {
	t := x.t
	defer func() { x.t = t }()
	var table strings.Builder
	fmt.Fprintf(&table, "| fault | verdict | what it said |\n|---|---|---|\n")
	tried, right := 0, 0
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			x.t = t
			tried++
			r, ok := x.try(f)
			cause, said := "healthy", ""
			if len(r.Faults) > 0 {
				cause, said = r.Faults[0].Cause, r.Faults[0].Summary
			}
			if ok {
				right++
			} else {
				cause += " (wrong)"
			}
			fmt.Fprintf(&table, "| %s | %s | %s |\n", f.name, cause, said)
			x.healthy()
		})
	}
	t.Logf("%d of %d faults named\n%s", right, tried, table.String())
	require.GreaterOrEqual(t, right, tried-tried/25, "faults named wrongly")
}
