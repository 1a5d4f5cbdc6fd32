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
	"causeway/netns/lab"
	"causeway/protocol"
)

// The faults of operators' days, one at a time and two at once: each is injected, is seen to
// bite where it stops traffic, is named by 'causeway diag explain', and is undone; then traffic
// flows and the verdict is healthy again. A fault that agents mend within a second is injected
// again and again by another program meanwhile.
//
// Not injected: a clock that is back by a day. The kernel has no wall clock for one namespace, and
// static programs take none from a library; TestDecide judges it by its evidence.
//
// Not parallel: it freezes and floods.
func TestExplainFaults(t *testing.T) {
	if !soak() {
		return // TestExplain stands for it
	}
	x := newExplained(t, "--nats-url", "nats://127.0.0.1:4222")
	x.table(append(x.faults(), x.moreFaults()...))
}

// cut is nil when the service does not answer the first pod.
func (x *explained) cut(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err := x.n1.Pod.Run(ctx, x.Bin.Labtool, "http", "http://"+pod2+":"+explainPort+"/bite"); err == nil {
		return errors.New("the service answers")
	}
	return nil
}

// dropped is nil when the router has dropped something since Block.
func (x *explained) dropped(ctx context.Context) error {
	out, err := x.r1.Run(ctx, "nft", "list", "table", "inet", "block")
	if err == nil && strings.Contains(out, "packets 0 ") {
		err = errors.New("nothing was dropped")
	}
	return err
}

// fails makes a bite of a command on a host, of which failing is the fault.
func fails(h *lab.Host, args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		if _, err := h.Run(ctx, args...); err == nil {
			return fmt.Errorf("%s works", strings.Join(args, " "))
		}
		return nil
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
	stop := func() { x.server.Kill() }
	firewall := sh(n2, `nft 'add table ip fw; add chain ip fw f { type filter hook forward priority 0; }; add rule ip fw f iifname "cw0" tcp dport 7080 drop'`)
	var copied *lab.Host
	var ports []string
	var pinned []byte
	pins := filepath.Join(x.n1.StateDir, "pins.json")
	out := []fault{
		{name: "UDP blocked", want: []string{"udp-blocked"}, node: "n1", do: block("meta l4proto udp"), undo: unblock, wait: true, bite: x.dropped},
		{name: "one-way drop", want: []string{"one-way-drop"}, node: "n1", do: block("ip saddr 203.0.113.22 meta l4proto udp"), undo: unblock, wait: true, bite: x.dropped},
		{name: "MTU hole with ICMP", want: []string{"mtu-small"}, wait: true, bite: fails(n1, "ping", "-c1", "-W3", "-Mdo", "-s1400", "203.0.113.22"),
			do:   sh(r1, "ip route change 203.0.113.0/24 dev wan mtu lock 1300; ip route change 192.168.1.0/24 dev lan mtu lock 1300"),
			undo: do(sh(r1, "ip route change 203.0.113.0/24 dev wan; ip route change 192.168.1.0/24 dev lan"), sh(n1, "ip route flush cache"), sh(n2, "ip route flush cache"))},
		{name: "MTU hole without ICMP", want: []string{"mtu-hole"}, do: block("meta l4proto udp meta length > 1300"), undo: unblock, wait: true, bite: x.dropped},
		{name: "overlapping route", want: []string{"route-overlaps"}, node: "n1", wait: true, bite: x.cut,
			do:   do(sh(n1, "ip link add other type bridge; ip addr add 10.2.1.77/24 dev other; ip link set other up"), func() { x.restart(x.n1) }),
			undo: do(sh(n1, "ip link del other"), func() { x.restart(x.n1) })},
		{name: "pod without address", want: []string{"pod-no-address"}, node: "n2", bite: x.cut, wait: true,
			do:   do(sh(p2, "ip -4 addr flush dev eth0"), sh(n2, "ip neigh flush dev pods0")),
			undo: sh(p2, "ip addr add 10.2.1.11/24 dev eth0; ip route add default via 10.2.1.1")},
		{name: "NAT mapping lost", want: []string{"nat-mapping-lost"}, node: "n1", wait: true, undo: func() {},
			do: func() { ports = x.mappings(step(x.t)); r1.ForgetConnections() },
			bite: func(ctx context.Context) error {
				now := x.mappings(ctx)
				if len(ports) == 0 || len(now) == 0 || slices.ContainsFunc(now, func(p string) bool { return slices.Contains(ports, p) }) {
					return fmt.Errorf("mappings %v, before %v", now, ports)
				}
				return nil
			}},
		{name: "agent stopped", want: []string{"agent-stopped"}, node: "n2", bite: x.cut,
			do:   func() { require.NoError(x.t, x.n2.Proc.Stop(step(x.t))) },
			undo: func() { require.NoError(x.t, x.n2.Start()) }},
		{name: "agent frozen", want: []string{"agent-frozen"}, node: "n2", bite: x.cut, wait: true,
			do: func() { x.n2.Proc.Signal(syscall.SIGSTOP) }, undo: func() { x.n2.Proc.Signal(syscall.SIGCONT) }},
		{name: "agent killed", want: []string{"agent-killed"}, node: "n2", bite: x.cut, wait: true,
			do: func() { x.n2.Proc.Kill() }, undo: func() { require.NoError(x.t, x.n2.Start()) }},
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
		{name: "duplicate address", want: []string{"duplicate-address"}, node: "n2", wait: true,
			do:   func() { copied = x.pods2.Pod("p3", pod2+"/24") },
			undo: func() { copied.Sh("ip link del eth0") }},
		{name: "key replaced", want: []string{"key-refused"}, node: "n1", bite: x.cut, wait: true,
			do:   func() { pinned = x.repin() },
			undo: func() { x.rewrite(pins, pinned) }},
		{name: "NATS away", want: []string{"nats-away"}, do: func() { x.nats.Kill() }, undo: x.startNATS, wait: true,
			bite: func(context.Context) error {
				if x.dialNATS() == nil {
					return errors.New("it answers")
				}
				return nil
			}},
		{name: "DNS of the hub wrong", want: []string{"hub-dns"}, wait: true,
			do: func() { x.resolve("203.0.113.99") }, undo: func() { x.resolve(HubAddr) }},
		{name: "hub away", want: []string{"hub-away"},
			do:   func() { x.Hub.Proc.Kill() },
			undo: func() { require.NoError(x.t, x.StartHub(step(x.t))) }},
		{name: "nothing listens, and UDP blocked", want: []string{"no-listener", "udp-blocked"}, both: true, bite: x.cut, wait: true,
			do: do(stop, block("meta l4proto udp")), undo: do(unblock, x.serve)},
		{name: "nothing listens, and nftables drop on the host", want: []string{"no-listener", "host-firewall"}, both: true, bite: x.cut,
			do: do(stop, firewall), undo: do(sh(n2, "nft delete table ip fw"), x.serve)},
	}
	out = append(out,
		fault{name: "nothing listens, and an ip rule that steals", want: []string{"no-listener", "rule-steals"}, both: true, bite: x.cut,
			do: do(stop, sh(n1, "ip rule add pref 100 to 10.2.0.0/16 lookup main")), undo: do(sh(n1, "ip rule del pref 100"), x.serve)},
		fault{name: "agent stopped, and NATS away", want: []string{"agent-stopped", "nats-away"}, both: true, bite: x.cut,
			do: do(func() { x.nats.Kill() }, func() { require.NoError(x.t, x.n2.Proc.Stop(step(x.t))) }), undo: do(x.startNATS, func() { require.NoError(x.t, x.n2.Start()) })},
		// What an agent has put back is told of for a minute.
		fault{name: "foreign nft flush ruleset, once", want: []string{"nft-flushed"}, node: "n2", wait: true, do: sh(n2, "nft flush ruleset"), undo: func() {}},
		fault{name: "TUN deleted, once", want: []string{"tun-deleted"}, node: "n2", wait: true, do: sh(n2, "ip link del cw0"), undo: func() {}})
	// Until it gives up, another program undoes it again.
	fight := func(name, script string, bite func(context.Context) error, undo, want string) {
		d, u := x.again(n2, script)
		out = append(out, fault{name: name, want: []string{want}, node: "n2", wait: true, bite: bite, do: d, undo: do(u, sh(n2, undo), func() { x.restart(x.n2) })})
	}
	fight("foreign nft flush ruleset, again and again", "nft flush ruleset", nil, "", "nft-flushed")
	fight("forwarding sysctl off", "for f in /proc/sys/net/ipv4/conf/*/forwarding; do echo 0 >$f; done", x.cut, "", "forwarding-off")
	fight("rp_filter", "ip rule add pref 100 iif lo to 10.1.0.0/16 lookup main 2>/dev/null; sysctl -qw net.ipv4.conf.cw0.rp_filter=1", x.cut, "ip rule del pref 100", "rp-filter")
	fight("TUN deleted, again and again", "ip link del cw0 2>/dev/null", x.cut, "", "tun-deleted")
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
