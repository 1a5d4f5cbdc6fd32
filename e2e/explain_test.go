package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
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
	router *lab.Host    // of a LAN behind n2, where another machine is the gateway
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
	bite func(context.Context) error     // nil when the fault bites, and not before; nil func: do itself proves it
	// seen is nil once the product shows the fault elsewhere, by which it is then named: of
	// faults that only time tells from a moment's loss. nil func: it is asked at once.
	seen func(context.Context) error
	by   string   // what seen looks at, for the table
	pair []*fault // it is several at once: whatever is named has to be one of them
	// heals says that the mend is a command line: it is applied as it was printed, and then nothing
	// is wrong any more. undo has to bear that. mend picks of several; nil: the whole.
	heals bool
	mend  func(string) string
	stops bool // nothing passes while it is there
}

// judged is how the verdict on a fault came.
type judged struct {
	r           api.Explanation
	bites, seen time.Duration // from when it was injected
	took        time.Duration // of the answer
}

// try injects a fault, waits until it bites and, where it needs that, is seen, asks
// once, and undoes it.
func (x *explained) try(f fault) (j judged, err error) {
	x.t.Helper()
	ask := f.ask
	if ask == nil {
		ask = x.explain
	}
	if f.bite != nil {
		require.Error(x.t, f.bite(step(x.t)), "%s bites before it is there", f.name)
	}
	begun := time.Now()
	defer f.undo()
	f.do()
	if f.bite != nil {
		require.NoError(x.t, lab.Wait(within(x.t, 30*time.Second), f.name+" to bite", f.bite))
	}
	j.bites = time.Since(begun)
	if f.seen != nil {
		if err := lab.Wait(within(x.t, 40*time.Second), f.name+" to be seen by "+f.by, f.seen); err != nil {
			return j, err
		}
	}
	j.seen = time.Since(begun)
	asked := time.Now()
	j.r, err = ask()
	j.took = time.Since(asked)
	if err == nil {
		err = f.right(j.r)
	}
	if err == nil && f.heals {
		x.apply(f, j.r.Faults[0].Mend)
		require.NoError(x.t, lab.Wait(within(x.t, time.Minute), f.name+" to be mended", func(context.Context) error {
			r, err := ask()
			if err == nil && r.Verdict != api.VerdictHealthy {
				err = errors.New(verdictText(r))
			}
			return err
		}))
	}
	return j, err
}

// apply runs a mend where it says, word by word, but for systemd's part, which the lab plays.
func (x *explained) apply(f fault, mend string) {
	x.t.Helper()
	if f.mend != nil {
		mend = f.mend(mend)
	}
	x.t.Logf("applied: %s", mend)
	if args, ok := strings.CutPrefix(mend, "causeway "); ok {
		_, err := x.CLI(step(x.t), strings.Fields(args)...)
		require.NoError(x.t, err)
		return
	}
	place, script, ok := strings.Cut(strings.TrimPrefix(mend, "on "), ": ")
	require.True(x.t, ok && strings.HasPrefix(mend, "on "), mend)
	h := map[string]*lab.Host{"n1": x.n1.Host, "n2": x.n2.Host, "the router that is the gateway of " + lanHost: x.router}[place]
	require.NotNil(x.t, h, mend)
	before := x.others()
	commands := []string{script}
	if strings.Contains(script, "systemctl") {
		commands = strings.Split(script, "; ")
	}
	for _, c := range commands {
		n := map[string]*smallNode{"n1": x.n1, "n2": x.n2}[place]
		switch {
		case strings.HasPrefix(c, "journalctl"), strings.HasPrefix(c, "systemctl status"): // it only shows
		case c == "systemctl start causeway-agent", c == "systemctl restart causeway-agent":
			n.Proc.Kill()
			require.NoError(x.t, n.Start())
		case strings.HasPrefix(c, "systemctl"):
			require.Fail(x.t, "unknown to the lab", c)
		default:
			h.Sh(c)
		}
	}
	after := x.others()
	for _, l := range before {
		require.Contains(x.t, after, l, "the mend took it away")
	}
}

// others are the rules and routes of both nodes that are not their agents'.
func (x *explained) others() (out []string) {
	for _, h := range []*lab.Host{x.n1.Host, x.n2.Host} {
		text := h.Sh(`ip -4 rule | grep -v 'proto 202' || :; ip -6 rule | grep -v 'proto 202' || :; ip -4 route; nft list tables | grep -v causeway-trial || :; nft -s list ruleset ip; ip -o addr show scope global | grep -v cw0 || :`)
		for l := range strings.Lines(text) {
			out = append(out, h.Name+": "+strings.Join(strings.Fields(l), " "))
		}
	}
	return out
}

// right is nil if an explanation names the fault; of several one that blocks if any does,
// and nothing else.
func (f fault) right(r api.Explanation) error {
	if len(r.Faults) == 0 {
		return errors.New("nothing is named")
	}
	named := func(o api.Fault, f *fault) bool {
		return slices.Contains(f.want, o.Cause) && (f.node == "" || o.Node == f.node)
	}
	if f.pair == nil {
		if !named(r.Faults[0], &f) {
			return errors.New(verdictText(r))
		}
		return nil
	}
	blocks := slices.ContainsFunc(f.pair, func(p *fault) bool { return p.stops })
	for i, o := range r.Faults {
		if !slices.ContainsFunc(f.pair, func(p *fault) bool { return named(o, p) }) {
			return errors.New("a third: " + verdictText(r))
		}
		if i == 0 && blocks && !o.Blocks {
			return errors.New("what blocks is not named first: " + verdictText(r))
		}
	}
	return nil
}

// cut is nil when a port of the second pod does not answer the first one.
func (x *explained) cut(port string) func(context.Context) error {
	return func(ctx context.Context) error {
		short, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
		defer cancel()
		if _, err := x.n1.Pod.Run(short, x.Bin.Labtool, "http", "http://"+pod2+":"+port+"/bite"); err == nil {
			return fmt.Errorf("port %s answers", port)
		}
		return ctx.Err()
	}
}

// fails makes a bite of a command on a host, of which failing is the fault.
func fails(h *lab.Host, args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		if _, err := h.Run(ctx, args...); err == nil {
			return fmt.Errorf("%s works", strings.Join(args, " "))
		}
		return ctx.Err()
	}
}

// faults is the table. Each leaves everything as it was.
func (x *explained) faults() []fault {
	sh := func(h *lab.Host, script string) func() { return func() { h.Sh(script) } }
	n1, n2, p2 := x.n1.Host, x.n2.Host, x.n2.Pod.Host
	cut := x.cut(explainPort)
	return []fault{
		{name: "nothing listens", want: []string{"no-listener"}, node: "n2", stops: true, bite: cut,
			do: func() { x.server.Kill() }, undo: x.serve},
		{name: "wrong port", want: []string{"wrong-port"}, node: "n2", stops: true, undo: func() {},
			do:  func() { require.NoError(x.t, x.cut("7999")(step(x.t))) },
			ask: func() (api.Explanation, error) { return x.ask(step(x.t), pod1, pod2, "--port", "7999") }},
		{name: "service without a ready backend", want: []string{"service-not-ready"}, stops: true, do: func() {
			applyText(x.t, x.System, "kind: service\nname: shop\nports: [{port: 80, target: 7080}]\nbackends: [{site: s2, addresses: ["+pod2+"]}]\nhealth: {type: tcp, port: 7999, interval: 200ms, fail: 1}\n")
		}, bite: func(ctx context.Context) error {
			out, err := x.CLI(ctx, "service", "explain", "shop", "n1")
			if err == nil && !strings.Contains(out, "not ready") {
				err = fmt.Errorf("%s", out)
			}
			return err
		}, undo: func() {
			_, err := x.CLI(step(x.t), "service", "delete", "shop", "--yes")
			require.NoError(x.t, err)
		}, ask: func() (api.Explanation, error) { return x.ask(step(x.t), pod1, "shop", "--port", "80") }},
		{name: "pod without default route", want: []string{"pod-no-route"}, node: "n2", stops: true, bite: cut, heals: true,
			do: sh(p2, "ip route del default"), undo: sh(p2, "ip route flush 10.1.1.0/24; ip route replace default via 10.2.1.1")},
		{name: "nftables drop on the host", want: []string{"host-firewall"}, node: "n2", stops: true, bite: cut, heals: true,
			do:   sh(n2, `nft 'add table ip fw; add chain ip fw f { type filter hook forward priority 0; }; add rule ip fw f iifname "cw0" tcp dport 7080 drop'`),
			undo: sh(n2, "nft delete table ip fw")},
		{name: "ip rule that steals", want: []string{"rule-steals"}, node: "n1", stops: true, bite: cut, heals: true,
			do:   sh(n1, "ip rule add pref 80 to 10.9.0.0/16 lookup main; ip rule add pref 90 from 10.8.0.0/16 lookup main; ip rule add pref 100 to 10.2.0.0/16 lookup main"),
			undo: sh(n1, "for p in 80 90 99 100; do ip rule del pref $p || :; done")},
		x.lanFault("route", func(m string) string { m, _, _ = strings.Cut(m, "; or, "); return m }),
		x.lanFault("masquerade", func(m string) string { return m[strings.Index(m, "on n2: "):] }),
		{name: "agent stopped", want: []string{"agent-stopped"}, node: "n2", stops: true, bite: cut, heals: true,
			do: func() { require.NoError(x.t, x.n2.Proc.Stop(step(x.t))) }, undo: func() {
				if !x.n2.Proc.Running() {
					require.NoError(x.t, x.n2.Start())
				}
			}},
		{name: "route not approved", want: []string{"route-not-approved"}, node: "n2", stops: true, heals: true, do: func() {
			n2.Sh("ip link add more type bridge; ip addr add 10.2.9.5/24 dev more; ip link set more up")
			require.NoError(x.t, x.n2.Configure(append(PodRoutes(2, 1), "10.2.9.0/24"), nil))
			x.restart(x.n2)
			require.NoError(x.t, x.WaitRoute(step(x.t), "n2", netip.MustParsePrefix("10.2.9.0/24")))
			require.NoError(x.t, fails(x.n1.Pod.Host, "ping", "-c1", "-W1", "10.2.9.5")(step(x.t)))
		}, undo: func() {
			require.NoError(x.t, x.Approve(step(x.t), "n2", "10.2.9.0/24"))
			require.NoError(x.t, Wait(x.t, func() error { return Ping(step(x.t), x.n1.Pod.Host, "10.2.9.5") }), "it was no more than the approval")
			require.NoError(x.t, x.n2.Configure(nil, nil))
			x.restart(x.n2)
			n2.Sh("ip link del more")
		}, ask: func() (api.Explanation, error) { return x.ask(step(x.t), pod1, "10.2.9.5") }},
	}
}

// lanHost is a machine of a LAN behind n2 whose gateway is another router, as in most offices.
const lanHost = "10.2.1.50"

func (x *explained) lanFault(by string, pick func(string) string) fault {
	return fault{name: "LAN host behind another router, by " + by, want: []string{"no-way-back"}, node: "n2", stops: true, heals: true, mend: pick,
		do: func() {
			if x.router == nil {
				x.router = x.pods2.Pod("gw", "10.2.1.254/24", "fd10:2:1::fe/64")
				x.pods2.Pod("lan1", lanHost+"/24", "fd10:2:1::50/64").Sh("ip route replace default via 10.2.1.254")
			}
			x.router.Sysctl("net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.eth0.send_redirects=0")
			x.router.Sh("ip route flush default")
			require.NoError(x.t, fails(x.n1.Pod.Host, "ping", "-c1", "-W1", lanHost)(step(x.t)))
		},
		undo: func() {
			x.router.Sh("ip route flush 10.1.1.0/24")
			x.n2.Host.Sh("nft delete table ip causeway_back 2>/dev/null || :")
		},
		ask: func() (api.Explanation, error) { return x.ask(step(x.t), pod1, lanHost) }}
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
	const runs = 4
	for i := range runs {
		r, err := x.explain()
		require.NoError(t, err)
		require.Equal(t, api.VerdictHealthy, r.Verdict, "run %d: %s", i, verdictText(r))
	}
	t.Logf("%d runs on a healthy pair, no false alarm", runs)
	x.table(x.faults())
}

// table tries every fault in a subtest of its own and logs how each was judged.
func (x *explained) table(faults []fault) {
	t := x.t
	defer func() { x.t = t }()
	var table strings.Builder
	fmt.Fprintf(&table, "| fault | bites after | is seen by | first answer | within |\n|---|---|---|---|---|\n")
	tried, right := 0, 0
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			x.t = t
			tried++
			j, err := x.try(f)
			verdict := causes(j.r)
			if err == nil {
				right++
			} else {
				verdict += " (wrong)"
				t.Logf("%s: %v", f.name, err)
			}
			seen := "diag explain"
			if f.seen != nil {
				seen = fmt.Sprintf("%s after %.1f s", f.by, j.seen.Seconds())
			}
			fmt.Fprintf(&table, "| %s | %.1f s | %s | %s | %.1f s |\n", f.name, j.bites.Seconds(), seen, verdict, j.took.Seconds())
			t.Logf("%s: %s; took %.1f s", f.name, verdictText(j.r), j.took.Seconds())
			x.healthy()
		})
	}
	t.Logf("%d of %d faults named\n%s", right, tried, table.String())
	require.GreaterOrEqual(t, right, tried-tried/25, "faults named wrongly")
}

// causes are all that an explanation names, the verdict first.
func causes(r api.Explanation) string {
	if len(r.Faults) == 0 {
		return r.Verdict
	}
	var out []string
	for _, f := range r.Faults {
		out = append(out, f.Cause)
	}
	return strings.Join(out, ", ")
}
