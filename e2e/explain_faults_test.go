package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/identity"
	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// The faults of operators' days, one at a time: each is injected, is seen to bite, is
// named by the first answer of 'causeway diag explain', and is undone; then the verdict is
// healthy again. A fault that agents mend within a second is also injected again and again by
// another program, until they give up.
//
// Not parallel: it freezes and floods.
func TestExplainFaults(t *testing.T) {
	if !soak() {
		return // TestExplain stands for it
	}
	x := newExplained(t, "--nats-url", "nats://127.0.0.1:4222")
	x.table(append(x.faults(), x.moreFaults()...))
}

// Healthy pairs raise no alarm in 100 runs: nodes and pods, both directions, TCP, UDP and
// ICMP, through a NAT, without one, and through the hub.
func TestExplainHealthy(t *testing.T) {
	if !soak() {
		return // TestExplain has some
	}
	x := newExplained(t)
	third := x.third()
	_, err := x.Serve(step(t), x.n1.Pod.Host)
	require.NoError(t, err)
	_, err = x.Serve(step(t), third.Pod.Host)
	require.NoError(t, err)
	_, err = x.Serve(step(t), x.n2.Host)
	require.NoError(t, err)
	x.n2.Shields = "allow: [tcp/" + explainPort + "]"
	require.NoError(t, x.n2.Configure(nil, nil))
	x.n2.Proc.Signal(syscall.SIGHUP)
	x.healthy()
	tcp := []string{"--port", explainPort}
	flows := []struct {
		from, to string
		args     []string
	}{
		{"n1", "n2", nil}, {"n2", "n1", nil}, {"n1", "n2", tcp}, {"n2", "n3", nil}, {"n3", "n2", tcp}, {"n1", "n3", nil},
		{pod1, pod2, nil}, {pod2, pod1, nil}, {pod1, pod2, tcp}, {pod2, pod1, tcp}, {pod1, pod2, []string{"--proto", "udp", "--port", "7001"}},
		{pod2, third.Pod.V4, tcp}, {third.Pod.V4, pod2, nil}, {third.Pod.V4, pod1, tcp}, {"n1", pod2, tcp}, {pod1, "n2", tcp},
	}
	runs, alarms := map[string]int{}, 0
	ask := func(how string) {
		f := flows[runs["all"]%len(flows)]
		r, err := x.ask(step(t), f.from, f.to, f.args...)
		require.NoError(t, err)
		if runs["all"]++; r.Verdict != api.VerdictHealthy {
			alarms++
			t.Errorf("run %d, %s, %s to %s %s: %s", runs["all"], how, f.from, f.to, f.args, verdictText(r))
		}
		runs[how]++
	}
	for range 80 {
		ask("direct")
	}
	// n1 reaches the others through the hub alone, and that is no fault.
	x.r1.Block("ip daddr != " + HubAddr + " ip saddr != " + HubAddr + " meta l4proto udp")
	require.NoError(t, lab.Wait(step(t), "the relay", x.path(protocol.PathRelay)))
	for range 32 {
		ask("relayed")
	}
	t.Logf("%d runs on healthy pairs (%d direct, %d after n1 had to use the relay) of %d kinds of flow, %d false alarms", runs["all"], runs["direct"], runs["relayed"], len(flows), alarms)
}

// third joins a node n3 on the public network, with a pod.
func (x *explained) third() *smallNode {
	x.t.Helper()
	n := &smallNode{Inet: x.n2.Inet, LAN: "203.0.113.33", Host: x.Lab.Host("n3").Link("eth0", x.n2.Inet, "203.0.113.33/24").Default(HubAddr)}
	net := n.Host.PodNet("pods0", "10.3.1.1/24", "fd10:3:1::1/64")
	n.Pod = &Pod{Host: net.Pod("p3", "10.3.1.11/24", "fd10:3:1::11/64"), V4: "10.3.1.11"}
	require.NoError(x.t, n.Host.Settle(step(x.t)))
	require.NoError(x.t, x.CreateSite(step(x.t), "s3"))
	joinSmall(x.t, x.System, []*smallNode{x.n1, x.n2, n}, 3)
	_, err := n.Pod.Start(lab.Program{Name: "pause", Args: []string{"sleep", "infinity"}})
	require.NoError(x.t, err)
	require.NoError(x.t, x.WaitReady(step(x.t), "n3"))
	return n
}

// Two faults at once: both are named, or the first that blocks, and never a third.
func TestExplainPairs(t *testing.T) {
	if !soak() {
		return
	}
	x := newExplained(t, "--nats-url", "nats://127.0.0.1:4222")
	all := append(x.faults(), x.moreFaults()...)
	find := func(name string) *fault {
		i := slices.IndexFunc(all, func(f fault) bool { return f.name == name })
		require.GreaterOrEqual(t, i, 0, name)
		return &all[i]
	}
	var pairs []fault
	for _, p := range [][2]string{
		{"UDP blocked", "nothing listens"},
		{"one-way drop", "nothing listens"},
		{"MTU hole without ICMP", "nothing listens"},
		{"nftables drop on the host", "nothing listens"},
		{"ip rule that steals", "nothing listens"},
		{"ip rule that steals", "nftables drop on the host"},
		{"pod without default route", "nftables drop on the host"},
		{"key replaced", "pod without address"},
		{"agent frozen", "nothing listens"},
		{"NATS away", "agent stopped"},
		{"NATS away", "ip rule that steals"},
		{"DNS of the hub wrong", "pod without default route"},
		{"clock back by a day", "duplicate address"},
		{"overlapping route", "nothing listens"},
	} {
		pairs = append(pairs, both(find(p[0]), find(p[1])))
	}
	x.table(pairs)
}

// both are two faults at once.
func both(a, b *fault) fault {
	all := func(f, g func(context.Context) error) func(context.Context) error {
		switch {
		case f == nil:
			return g
		case g == nil:
			return f
		}
		return func(ctx context.Context) error { return errors.Join(f(ctx), g(ctx)) }
	}
	return fault{
		name: a.name + ", and " + b.name, pair: []*fault{a, b},
		do: func() { a.do(); b.do() }, undo: func() { b.undo(); a.undo() },
		bite: all(a.bite, b.bite), seen: all(a.seen, b.seen), by: strings.Trim(a.by+", "+b.by, ", "),
	}
}

// dropped is nil when the router has dropped something since Block.
func (x *explained) dropped(ctx context.Context) error {
	out, err := x.r1.Run(ctx, "nft", "list", "table", "inet", "block")
	if err == nil && strings.Contains(out, "packets 0 ") {
		err = errors.New("nothing was dropped")
	}
	return err
}

// doctored is nil when 'causeway doctor' finds something.
func (x *explained) doctored(check string) func(context.Context) error {
	return func(ctx context.Context) error {
		var k api.Checkup
		out, err := x.CLI(ctx, "doctor", "-o", "json")
		var failed *lab.RunError
		if errors.As(err, &failed) {
			out = failed.Stdout
		}
		if e := json.Unmarshal([]byte(out), &k); e != nil {
			return errors.Join(err, e)
		}
		if !slices.ContainsFunc(k.Findings, func(f api.Finding) bool { return f.Check == check }) {
			return fmt.Errorf("it finds %+v", k.Findings)
		}
		return nil
	}
}

// told is nil when the hub has an incident of n2 about a subject that was told of after
// it was called first.
func (x *explained) told(subject string) func(context.Context) error {
	var since time.Time
	return func(ctx context.Context) error {
		if since.IsZero() {
			since = time.Now().Add(-5 * time.Second)
		}
		var l []api.Incident
		if err := x.Ask(ctx, &l, "incidents", "--node", "n2"); err != nil {
			return err
		}
		if !slices.ContainsFunc(l, func(i api.Incident) bool { return strings.HasSuffix(i.Subject, subject) && i.Received.After(since) }) {
			return fmt.Errorf("the hub knows %+v", l)
		}
		return nil
	}
}

// path is nil when n1 reaches n2 by a kind of path.
func (x *explained) path(kind protocol.PathKind) func(context.Context) error {
	return func(ctx context.Context) error {
		p, err := x.n1.pathTo(ctx, "n2")
		if err == nil && p.Path != kind {
			err = fmt.Errorf("it is %s", p.Path)
		}
		return err
	}
}

// mappings are the ports that the router gave to datagrams of n1.
func (x *explained) mappings(ctx context.Context) (out []string) {
	text, _ := x.r1.Run(ctx, "conntrack", "-L", "-p", "udp", "--orig-src", x.n1.LAN)
	for _, l := range strings.Split(text, "\n") {
		if i := strings.LastIndex(l, "dport="); i >= 0 {
			out = append(out, strings.Fields(l[i:])[0])
		}
	}
	return out
}

// again runs a script on a host time after time, until the undo.
func (x *explained) again(h *lab.Host, script string) (do, undo func()) {
	var p *lab.Process
	return func() {
			var err error
			p, err = h.Start(lab.Program{Name: "again", Args: []string{"sh", "-c", "while :; do " + script + "; sleep 0.05; done"}})
			require.NoError(x.t, err)
		}, func() {
			p.Kill()
		}
}

func (x *explained) moreFaults() []fault {
	sh := func(h *lab.Host, script string) func() { return func() { h.Sh(script) } }
	n1, n2, p2, r1 := x.n1.Host, x.n2.Host, x.n2.Pod.Host, x.r1
	do := func(fs ...func()) func() {
		return func() {
			for _, f := range fs {
				f()
			}
		}
	}
	block := func(match string) func() { return func() { r1.Block(match) } }
	unblock := func() { r1.Unblock() }
	start := func(n *smallNode) func() {
		return func() {
			if !n.Proc.Running() {
				require.NoError(x.t, n.Start())
			}
		}
	}
	cut := x.cut(explainPort)
	var copied *lab.Host
	var ports []string
	var pinned []byte
	var clock *patchedClock
	pins := filepath.Join(x.n1.StateDir, "pins.json")
	out := []fault{
		{name: "UDP blocked", want: []string{"udp-blocked"}, node: "n1", do: block("meta l4proto udp"), undo: unblock, bite: x.dropped,
			seen: x.doctored("udp-blocked"), by: "causeway doctor"},
		{name: "one-way drop", want: []string{"one-way-drop"}, node: "n1", do: block("ip saddr 203.0.113.22 meta l4proto udp"), undo: unblock, bite: x.dropped,
			seen: x.path(protocol.PathRelay), by: "causeway-agent paths"},
		{name: "MTU hole with ICMP", want: []string{"mtu-small"}, bite: fails(n1, "ping", "-c1", "-W3", "-Mdo", "-s1400", "203.0.113.22"),
			do:   sh(r1, "ip route change 203.0.113.0/24 dev wan mtu lock 1300; ip route change 192.168.1.0/24 dev lan mtu lock 1300"),
			undo: do(sh(r1, "ip route change 203.0.113.0/24 dev wan; ip route change 192.168.1.0/24 dev lan"), sh(n1, "ip route flush cache"), sh(n2, "ip route flush cache"))},
		{name: "MTU hole without ICMP", want: []string{"mtu-hole"}, do: block("meta l4proto udp meta length > 1300"), undo: unblock, bite: x.dropped},
		{name: "overlapping route", want: []string{"route-overlaps"}, node: "n1", stops: true, bite: cut,
			do:   do(sh(n1, "ip link add other type bridge; ip addr add 10.2.1.77/24 dev other; ip link set other up"), func() { x.restart(x.n1) }),
			undo: do(sh(n1, "ip link del other"), func() { x.restart(x.n1) })},
		{name: "pod without address", want: []string{"pod-no-address"}, node: "n2", stops: true, bite: cut,
			do:   do(sh(p2, "ip -4 addr flush dev eth0"), sh(n2, "ip neigh flush dev pods0")),
			undo: sh(p2, "ip addr add 10.2.1.11/24 dev eth0; ip route add default via 10.2.1.1")},
		{name: "NAT mapping lost", want: []string{"nat-mapping-lost"}, node: "n1", undo: func() {},
			do: func() {
				if ports = x.mappings(step(x.t)); len(ports) == 0 {
					require.NoError(x.t, Wait(x.t, func() error {
						if ports = x.mappings(step(x.t)); len(ports) == 0 {
							return errors.New("no mapping")
						}
						return nil
					}))
				}
				r1.ForgetConnections()
			},
			bite: func(ctx context.Context) error {
				now := x.mappings(ctx)
				if len(ports) == 0 || len(now) == 0 || slices.ContainsFunc(now, func(p string) bool { return slices.Contains(ports, p) }) {
					return fmt.Errorf("mappings %v, before %v", now, ports)
				}
				return nil
			}},
		{name: "agent stopped, behind NAT", want: []string{"agent-stopped"}, node: "n1", stops: true, bite: cut, heals: true,
			do: func() { require.NoError(x.t, x.n1.Proc.Stop(step(x.t))) }, undo: start(x.n1)},
		{name: "agent frozen", want: []string{"agent-frozen"}, node: "n2", stops: true, bite: cut, heals: true,
			do: func() { x.n2.Proc.Signal(syscall.SIGSTOP) }, undo: func() { x.n2.Proc.Signal(syscall.SIGCONT) }},
		// Nobody can tell it from a host that is away: the NAT lets no question about the host in.
		{name: "agent frozen, behind NAT", want: []string{"agent-silent"}, node: "n1", stops: true, bite: cut,
			do: func() { x.n1.Proc.Signal(syscall.SIGSTOP) }, undo: func() { x.n1.Proc.Signal(syscall.SIGCONT) }},
		{name: "agent killed", want: []string{"agent-killed"}, node: "n2", stops: true, bite: cut, heals: true,
			do: func() { x.n2.Proc.Kill() }, undo: start(x.n2)},
		{name: "disk full", want: []string{"disk-full"}, node: "n2",
			do: func() {
				require.NoError(x.t, x.n2.Proc.Stop(step(x.t)))
				d := x.n2.StateDir
				n2.Sh(fmt.Sprintf("cp -a %[1]s %[1]s.was; mount -t tmpfs -o size=16m,mode=700 tmpfs %[1]s; cp -a %[1]s.was/. %[1]s", d))
				x.t.Cleanup(func() { syscall.Unmount(d, syscall.MNT_DETACH) })
				require.NoError(x.t, x.n2.Start())
				require.NoError(x.t, x.WaitReady(step(x.t), "n2"))
				_, err := n2.Run(step(x.t), "dd", "if=/dev/zero", "of="+filepath.Join(d, "full"), "bs=64k")
				require.Error(x.t, err, "the disk takes everything")
			},
			undo: func() {
				require.NoError(x.t, os.Remove(filepath.Join(x.n2.StateDir, "full")))
				require.NoError(x.t, x.n2.Proc.Stop(step(x.t)))
				n2.Sh(fmt.Sprintf("rm -rf %[1]s.was; cp -a %[1]s %[1]s.was; umount %[1]s; cp -a %[1]s.was/. %[1]s", x.n2.StateDir))
				require.NoError(x.t, x.n2.Start())
			}},
		{name: "duplicate address", want: []string{"duplicate-address"}, node: "n2", stops: true,
			do:   func() { copied = x.pods2.Pod("copy", pod2+"/24", "fd10:2:1::12/64") },
			undo: do(func() { copied.Sh("ip link del eth0"); copied = nil }, sh(n2, "ip neigh flush dev pods0")),
			bite: func(ctx context.Context) error {
				if copied != nil { // its ARP requests draw the host's packets to it
					copied.Run(ctx, "ping", "-c1", "-W1", "10.2.1.1")
				}
				return cut(ctx)
			}},
		{name: "key replaced", want: []string{"key-refused"}, node: "n1", stops: true, bite: cut,
			do:   func() { pinned = x.repin() },
			undo: func() { x.rewrite(pins, pinned) }},
		{name: "clock back by a day", want: []string{"clock-wrong"}, node: "n2",
			do: func() {
				var err error
				clock, err = setBack(x.n2.Proc.PID())
				require.NoError(x.t, err)
			},
			undo: func() { require.NoError(x.t, clock.restore()) },
			bite: func(ctx context.Context) error {
				now, err := x.clockOf(ctx, x.n2.Node)
				if err == nil && time.Since(now) < 23*time.Hour {
					err = fmt.Errorf("its agent says that it is %s", now)
				}
				return err
			}},
		{name: "NATS away", want: []string{"nats-away"}, do: func() { x.nats.Kill() }, undo: x.startNATS, seen: x.doctored("hub-nats"), by: "causeway doctor",
			bite: func(context.Context) error {
				if x.dialNATS() == nil {
					return errors.New("it answers")
				}
				return nil
			}},
		{name: "DNS of the hub wrong", want: []string{"hub-dns"},
			do: func() { x.resolve("203.0.113.99") }, undo: func() { x.resolve(HubAddr) },
			bite: func(ctx context.Context) error {
				out, err := n1.Run(ctx, "nsenter", "-m", "-t", fmt.Sprint(x.n1.Proc.PID()), "getent", "hosts", hubName)
				if err == nil && strings.Contains(out, HubAddr+" ") {
					err = errors.New("it is right")
				}
				return err
			}},
		{name: "hub away", want: []string{"hub-away"}, bite: fails(x.hub, x.Bin.CLI, "--socket", x.Hub.Socket, "status"),
			do:   func() { x.Hub.Proc.Kill() },
			undo: func() { require.NoError(x.t, x.StartHub(step(x.t))) }},
	}
	// Once: the agent puts it back at once, and the incident is told of for a minute.
	once := func(name, script, subject, want string) {
		out = append(out, fault{name: name + ", once", want: []string{want}, node: "n2", do: sh(n2, script), undo: func() {},
			seen: x.told(subject), by: "causeway incidents"})
	}
	once("foreign nft flush ruleset", "nft flush ruleset", "nftables", "nft-flushed")
	once("forwarding sysctl off", "sysctl -qw net.ipv4.conf.pods0.forwarding=0", "pods0.forwarding", "forwarding-off")
	once("TUN deleted", "ip link del cw0", "link", "tun-deleted")
	// Until it gives up, another program undoes it again.
	fight := func(name, script string, bite func(context.Context) error, undo, want string) {
		d, u := x.again(n2, script)
		out = append(out, fault{name: name, want: []string{want}, node: "n2", bite: bite, stops: true, do: d, undo: do(u, sh(n2, undo), func() { x.restart(x.n2) })})
	}
	fight("foreign nft flush ruleset, again and again", "nft flush ruleset", fails(n2, "nft", "list", "table", "inet", "causeway"), "", "nft-flushed")
	out[len(out)-1].stops = false
	fight("forwarding sysctl off", "for f in /proc/sys/net/ipv4/conf/*/forwarding; do echo 0 >$f; done", cut, "", "forwarding-off")
	// Answers find the tunnel by their mark alone, which is good until the kernel wants to see
	// the way back of what comes in, which has none.
	fight("rp_filter", "sysctl -qw net.ipv4.conf.cw0.rp_filter=1", cut, "nft delete table ip marks; ip rule del pref 99; ip rule del pref 100; ip route flush table 77", "rp-filter")
	strict := out[len(out)-1].do
	out[len(out)-1].do = func() {
		n2.Sh(`nft 'add table ip marks; add chain ip marks pre { type filter hook prerouting priority mangle; }; add rule ip marks pre iifname "pods0" ip daddr 10.1.0.0/16 meta mark set 7'
			ip route add 10.1.1.0/24 dev cw0 table 77
			ip rule add pref 99 fwmark 7 lookup 77
			ip rule add pref 100 to 10.1.0.0/16 lookup main`)
		require.NoError(x.t, Wait(x.t, func() error { // or it is no fault of rp_filter
			if cut(step(x.t)) == nil {
				return errors.New("the service does not answer")
			}
			return nil
		}))
		strict()
	}
	fight("TUN deleted, again and again", "ip link del cw0 2>/dev/null", cut, "", "tun-deleted")
	return out
}

// repin gives n1 another key to expect of n2, which is the same to it as another key of
// n2's in the netmap, and returns the file as it was.
func (x *explained) repin() []byte {
	file := filepath.Join(x.n1.StateDir, "pins.json")
	was, err := os.ReadFile(file)
	require.NoError(x.t, err)
	pins := map[protocol.NodeNumber]identity.Pin{}
	require.NoError(x.t, json.Unmarshal(was, &pins))
	delete(pins, 0) // the file's checksum
	require.NotEmpty(x.t, pins)
	for n, p := range pins {
		other, err := protocol.NewIdentityPrivateKey()
		require.NoError(x.t, err)
		p.IdentityKey = other.Public()
		pins[n] = p
	}
	text, err := json.Marshal(pins)
	require.NoError(x.t, err)
	x.rewrite(file, text)
	return was
}

// rewrite changes a file of n1's agent while that does not run.
func (x *explained) rewrite(file string, text []byte) {
	x.n1.Proc.Kill()
	require.NoError(x.t, os.WriteFile(file, text, 0o600))
	require.NoError(x.t, x.n1.Start())
}

// startNATS starts the hub's NATS server, of the same data each time.
func (x *explained) startNATS() {
	bin, err := BuildNATS(within(x.t, 3*time.Minute), binaries(x.t).Dir)
	require.NoError(x.t, err)
	x.nats, err = x.hub.Start(lab.Program{Name: "nats", Args: []string{bin, "-a", "127.0.0.1", "-p", "4222", "-js", "-sd", filepath.Join(x.hub.Dir(), "nats")}})
	require.NoError(x.t, err)
	require.NoError(x.t, lab.Wait(step(x.t), "nats", func(context.Context) error { return x.dialNATS() }))
}

func (x *explained) dialNATS() error {
	return x.hub.Do(func() error {
		c, err := net.DialTimeout("tcp", "127.0.0.1:4222", time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
}

const hubName = "hub.causeway.test"

// ownHosts gives agents an /etc/hosts of their own, which knows the hub.
func (x *explained) ownHosts() {
	x.hosts = filepath.Join(x.hub.Dir(), "hosts")
	x.resolve(HubAddr)
	wrapped := filepath.Join(x.hub.Dir(), "agent")
	script := fmt.Sprintf("#!/bin/sh\nexec unshare -m sh -ec 'mount --bind \"$0\" /etc/hosts; exec \"$@\"' %q %q \"$@\"\n", x.hosts, x.Bin.Agent)
	require.NoError(x.t, os.WriteFile(wrapped, []byte(script), 0o755))
	x.Bin.Agent = wrapped
}

// resolve makes the hub's name an address's.
func (x *explained) resolve(addr string) {
	require.NoError(x.t, os.WriteFile(x.hosts, fmt.Appendf(nil, "127.0.0.1 localhost\n%s %s\n", addr, hubName), 0o644))
}
