package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// curing is a lab in which what the doctors print is run where they say and as it stands: in a shell that
// has the programs by their names. systemd's part is the lab's.
type curing struct {
	t     *testing.T
	s     *System
	nodes []*smallNode
	held  *Held // a connection between pods that no fault is about
}

// cured is a fault that a mend of 'causeway doctor' heals, and what else may differ then.
type cured struct {
	check, where string
	do           func()
	pick         func(mend string) []string // the command lines in a mend that is a text; nil: it is one
	differs      []string                   // nodes whose hosts the fault changed
	after        func()
	// before: what a person does first, as the mend says.
	before func(mend string)
}

// findingText is a finding as 'causeway doctor' prints it.
var findingText = regexp.MustCompile(`(?m)^(?:critical|warning|info) +(.+?): ([a-z_-]+)(?:, since .*)?\n +(.*)\n(?: +mend  (.*)\n)?`)

// finding is the mend that is printed with a finding; ok: it is there.
func (c *curing) finding(ctx context.Context, check, where string) (mend string, ok bool, out string) {
	out, err := c.s.CLI(ctx, "doctor")
	if r := (*lab.RunError)(nil); errors.As(err, &r) {
		out = r.Stdout
	}
	for _, m := range findingText.FindAllStringSubmatch(out, -1) {
		if m[1] == where && m[2] == check {
			return m[4], true, out
		}
	}
	return "", false, out
}

func (c *curing) found(check, where string) (mend string) {
	c.t.Helper()
	require.NoError(c.t, lab.Wait(step(c.t), "doctor to find "+check, func(ctx context.Context) error {
		m, ok, out := c.finding(ctx, check, where)
		if !ok {
			return errors.New(out)
		}
		mend = m
		return nil
	}))
	return mend
}

func (c *curing) gone(check, where string) {
	c.t.Helper()
	require.NoError(c.t, lab.Wait(step(c.t), check+" to be found no more", func(ctx context.Context) error {
		if _, ok, out := c.finding(ctx, check, where); ok {
			return errors.New(out)
		}
		return nil
	}))
}

// programs is a directory of a host with what mends name, and returns the file that calls of systemctl
// are written to.
func (c *curing) programs(h *lab.Host, n *smallNode) (dir, calls string) {
	c.t.Helper()
	dir = filepath.Join(h.Dir(), "programs")
	calls = filepath.Join(dir, "calls")
	require.NoError(c.t, os.MkdirAll(dir, 0o755))
	write := func(name, script string) {
		require.NoError(c.t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	}
	// A person at a terminal answers what is asked before somebody is shut out.
	write("causeway", fmt.Sprintf("case \"$1 $2\" in 'admin revoke'|'node revoke') set -- \"$@\" --yes;; esac; exec %s --socket %s \"$@\"", c.s.Bin.CLI, c.s.Hub.Socket))
	write("journalctl", ":") // it only shows
	write("systemctl", "echo \"$*\" >>"+calls)
	if n != nil {
		write("causeway-agent", fmt.Sprintf("case $1 in\ndoctor|join) exec %s \"$@\" --state-dir %s --config %s;;\n*) exec %[1]s \"$@\" --debug-socket %[4]s;;\nesac", c.s.Bin.Agent, n.StateDir, n.Config, n.Socket))
	}
	require.NoError(c.t, os.WriteFile(calls, nil, 0o644))
	return dir, calls
}

// run pastes a line into a shell: 'on NODE: …' into root's there, any other one into an admin's.
func (c *curing) run(line string) string {
	c.t.Helper()
	c.t.Logf("applied: %s", line)
	h, script := c.s.Hub.Host, line
	var n *smallNode
	if place, rest, ok := strings.Cut(strings.TrimPrefix(line, "on "), ": "); ok && strings.HasPrefix(line, "on ") {
		i := slices.IndexFunc(c.nodes, func(n *smallNode) bool { return n.Node != nil && n.Name == place })
		require.GreaterOrEqual(c.t, i, 0, line)
		n, script = c.nodes[i], rest
		h = n.Host
	} else {
		require.True(c.t, strings.HasPrefix(line, "causeway "), "no command line: %s", line)
	}
	return c.shell(h, n, script)
}

func (c *curing) shell(h *lab.Host, n *smallNode, script string) string {
	c.t.Helper()
	dir, calls := c.programs(h, n)
	out, err := h.Run(step(c.t), "env", "-C", dir, "PATH="+dir+":"+os.Getenv("PATH"), "sh", "-c", script)
	require.NoError(c.t, err, script)
	asked, err := os.ReadFile(calls)
	require.NoError(c.t, err)
	for l := range strings.Lines(string(asked)) {
		switch strings.TrimSpace(l) {
		case "start causeway-agent", "enable --now causeway-agent":
			if n.Proc == nil || !n.Proc.Running() {
				require.NoError(c.t, n.Start())
			}
		case "reload causeway-agent":
			n.Proc.Signal(syscall.SIGHUP)
		default:
			require.Fail(c.t, "unknown to the lab", l)
		}
	}
	return out
}

// hosts are what each host has that is not its agent's: addresses, routes, rules, firewalls and settings.
func (c *curing) hosts() map[string][]string {
	out := map[string][]string{}
	for _, n := range c.nodes {
		out[n.Host.Name] = strings.Split(n.Host.Sh(`ip -o addr show scope global | grep -v cw0; ip -4 route show table all | grep -v -e 'proto 202' -e cw0 -e 'local 198.18'
			ip -6 route show table all | grep -v -e 'proto 202' -e cw0 -e expires -e fe80 -e 'local fd63'; ip -4 rule | grep -v 'proto 202'; ip -6 rule | grep -v 'proto 202'
			nft list tables | grep -v causeway | while read _ t; do nft -s list table $t; done; sysctl -a 2>/dev/null | grep -E '^net\.(ipv[46]\.ip_forward|ipv4\.conf\.(all|default|eth0|pods0)\.(forwarding|rp_filter))' || :`), "\n")
	}
	return out
}

// others are the nodes that are ready, with since when.
func (c *curing) others(but string) map[string]time.Time {
	all, err := c.s.Nodes(step(c.t))
	require.NoError(c.t, err)
	out := map[string]time.Time{}
	for name, n := range all {
		if name != but && n.State == api.NodeReady {
			out[name] = n.StateSince
		}
	}
	return out
}

// whole wants nothing to be cut by a mend: no host has lost or gained anything but those that the fault is
// at, no other node was anything but ready, and the connection between pods goes on.
func (c *curing) whole(what string, before map[string][]string, ready map[string]time.Time, node string, differs ...string) {
	c.t.Helper()
	now := c.others(node)
	for name, since := range ready {
		require.Equal(c.t, since, now[name], "%s: node %s was not ready all the time", what, name)
	}
	require.True(c.t, c.held.Alive(), "%s: a connection between pods broke", what)
	after := c.hosts()
	for name, b := range before {
		if !slices.Contains(differs, name) {
			require.Equal(c.t, b, after[name], "%s: host %s", what, name)
		}
	}
}

// try makes a fault, reads the mend off doctor's words, runs it and sees the finding go.
func (c *curing) try(f cured) {
	t := c.t
	t.Helper()
	start := time.Now()
	if _, ok, out := c.finding(step(t), f.check, f.where); ok {
		t.Fatalf("%s is found before it is there:\n%s", f.check, out)
	}
	f.do()
	mend := c.found(f.check, f.where)
	t.Logf("%s %s: %s", f.where, f.check, mend)
	if f.before != nil {
		f.before(mend)
	}
	lines := []string{mend}
	if f.pick != nil {
		lines = f.pick(mend)
	}
	before, ready := c.hosts(), c.others(f.where)
	for _, l := range lines {
		c.run(l)
	}
	c.gone(f.check, f.where)
	if f.after != nil {
		f.after()
	}
	c.whole(f.check, before, ready, f.where, f.differs...)
	t.Logf("%s: %.1f s", f.check, time.Since(start).Seconds())
}

func (c *curing) announce(i int, routes ...string) {
	c.t.Helper()
	require.NoError(c.t, c.nodes[i].Configure(routes, nil))
	c.nodes[i].Proc.Signal(syscall.SIGHUP)
}

// route wants a route of a node to be in a state.
func (c *curing) route(node, prefix, state string) {
	c.t.Helper()
	require.NoError(c.t, Wait(c.t, func() error {
		var l []api.Route
		if err := c.s.Ask(step(c.t), &l, "route", "list"); err != nil {
			return err
		}
		for _, r := range l {
			if r.Node == node && r.Prefix.String() == prefix && string(r.State) == state {
				return nil
			}
		}
		return fmt.Errorf("route %s of %s is not %s: %+v", prefix, node, state, l)
	}))
}

// commands are the command lines that stand in a text after a colon.
func commands(mend string) (out []string) {
	for part := range strings.SplitSeq(mend, "; ") {
		for i := strings.Index(part, "causeway "); i >= 0; i = -1 {
			out = append(out, part[i:])
		}
	}
	return out
}

// newCuring is hosts of which the first three have joined, with a connection between pods of n2 and n3.
func newCuring(t *testing.T, hosts int) *curing {
	t.Helper()
	l, hub, nodes := smallHosts(t, hosts)
	s := startSmall(t, l, hub, nodes, "--listen-admin", ":7443")
	for i := 1; i <= 3; i++ {
		joinSmall(t, s, nodes, i)
	}
	c := &curing{t: t, s: s, nodes: nodes}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	_, err := s.Serve(step(t), nodes[2].Pod.Host)
	require.NoError(t, err)
	require.NoError(t, Ping(step(t), nodes[1].Pod.Host, nodes[2].Pod.V4))
	c.held, err = s.Hold(step(t), nodes[1].Pod.Host, nodes[2].Pod.V4)
	require.NoError(t, err)
	return c
}

// end wants the connection between pods to have gone on all the time.
func (c *curing) end() {
	c.t.Helper()
	lines, gap, err := c.held.End(step(c.t))
	require.NoError(c.t, err)
	c.t.Logf("%d lines of the connection between pods came back, the longest gap %.1f s", lines, gap)
}

// Each command that 'causeway doctor' prints for a fault is run as it is printed: the finding goes, and nothing
// else does. hub/doctor's ledger names the cases.
func TestDoctorMends(t *testing.T) {
	t.Parallel()
	c := newCuring(t, 4)
	for _, f := range c.faults() {
		c.try(f)
	}
	c.end()
}

func (c *curing) faults() []cured {
	n1, n4 := c.nodes[0], c.nodes[3]
	const range1 = "192.168.91.0/24"
	return []cured{
		{check: "route-not-approved", where: "n1", do: func() { c.announce(0, range1) }, differs: []string{"n1", "n2", "n3"}, after: func() { // which get the route
			c.route("n1", range1, "approved")
			require.NoError(c.t, c.nodes[1].Installed(step(c.t), range1))
			require.NoError(c.t, c.nodes[2].Installed(step(c.t), range1))
		}},
		{check: "route-overlaps", where: "n2", do: func() { c.announce(1, "192.168.91.0/25") }, after: func() {
			c.route("n1", range1, "approved")
			c.route("n2", "192.168.91.0/25", "rejected")
		}},
		{check: "node-drained", where: "n1", do: func() {
			_, err := c.s.CLI(step(c.t), "node", "drain", "n1")
			require.NoError(c.t, err)
		}},
		{check: "node-unreachable", where: "n1", do: func() { require.NoError(c.t, n1.Proc.Stop(step(c.t))) }, differs: []string{"n1"}, after: func() {
			require.NoError(c.t, c.s.WaitReady(step(c.t), "n1"))
			require.NoError(c.t, Ping(step(c.t), c.nodes[1].Pod.Host, n1.Pod.V4))
		}},
		{check: "node-never-seen", where: "n4", do: func() {
			var err error
			n4.Node, err = c.s.Enroll(step(c.t), NodeSpec{Name: "n4", Site: "s4", Host: n4.Host, TokenRoutes: PodRoutes(4, 1)})
			require.NoError(c.t, err)
		}, differs: []string{"n1", "n2", "n3", "n4"}, after: func() {
			require.NoError(c.t, c.s.WaitReady(step(c.t), "n4"))
			require.NoError(c.t, Ping(step(c.t), c.nodes[1].Pod.Host, n4.Pod.V4))
		}},
		{check: "admin-expires", where: "admin joe", do: func() {
			_, err := c.s.CLI(step(c.t), "admin", "create", "joe", "--role", "viewer", "--ttl", "1h", "--file", filepath.Join(c.s.Hub.Host.Dir(), "joe.context"))
			require.NoError(c.t, err)
		}, pick: commands, after: func() {
			var l []api.Admin
			require.NoError(c.t, c.s.Ask(step(c.t), &l, "admin", "list"))
			require.True(c.t, slices.ContainsFunc(l, func(a api.Admin) bool { return a.Name == "joe-2" && a.Role == "viewer" && a.State == "active" }), "%+v", l)
			require.FileExists(c.t, filepath.Join(c.s.Hub.Host.Dir(), "programs", "joe-2.context"))
		}},
	}
}

// advised is a fault that a command of 'causeway-agent doctor' heals at its host.
type advised struct {
	check, fault string                      // a script
	adds         int                         // lines of the host's rules
	bites        func(context.Context) error // nil once it does
}

// do is what 'causeway-agent doctor' of a node says to do about a check; "": it is well.
func (c *curing) do(n *smallNode, check string) (do, out string) {
	c.t.Helper()
	dir, _ := c.programs(n.Host, n)
	out, err := n.Host.Run(step(c.t), filepath.Join(dir, "causeway-agent"), "doctor")
	if err != nil {
		out = failed(c.t, err).Stdout
	}
	m := regexp.MustCompile(`(?m)^(?:warn|fail) +` + check + ` +.*\n(?: +why: .*\n)? +do:  (.*)$`).FindStringSubmatch(out)
	if m == nil {
		return "", out
	}
	return m[1], out
}

// What 'causeway-agent doctor' prints against firewalls of its host, and for a TUN device that is none.
// agent/doctor's ledger names the cases.
func TestAgentDoctorMends(t *testing.T) {
	t.Parallel()
	c := newCuring(t, 3)
	n := c.nodes[0]
	c.tun(n)
	silent := func(ctx context.Context) error {
		if PingOnce(ctx, c.nodes[1].Pod.Host, n.Pod.V4) == nil {
			return errors.New("n1 answers")
		}
		if _, ok, out := c.finding(ctx, "condition-firewall", "n1"); !ok {
			return errors.New(out)
		}
		return nil
	}
	lost := func(ctx context.Context) error {
		if _, ok, out := c.finding(ctx, "node-unreachable", "n1"); !ok {
			return errors.New(out)
		}
		return nil
	}
	for _, f := range some([]advised{
		{check: "firewall", adds: 2, bites: silent, fault: `nft 'add table ip fw; add chain ip fw f { type filter hook forward priority 0; policy drop; }; add rule ip fw f tcp dport 22 drop'`},
		{check: "firewall", adds: 2, bites: silent, fault: `nft 'add table inet fw; add chain inet fw f { type filter hook forward priority 0; }; add rule inet fw f tcp dport 22 drop; add rule inet fw f reject'`},
		{check: "firewall", adds: 2, bites: lost, fault: `nft 'add table inet fw; add chain inet fw out { type filter hook output priority 0; policy drop; }; add rule inet fw out tcp dport 25 drop'`},
	}, func(f advised) bool { return strings.Contains(f.fault, "table ip fw") }) {
		start := time.Now()
		do, out := c.do(n, f.check)
		require.Empty(t, do, out)
		n.Host.Sh(f.fault)
		require.NoError(t, lab.Wait(within(t, time.Minute), "it to bite", f.bites))
		do, out = c.do(n, f.check)
		command, ok := strings.CutPrefix(strings.TrimSuffix(do, "'"), "run '")
		require.True(t, ok, out)
		t.Logf("applied on n1: %s", command)
		before, ready := c.hosts(), c.others("n1")
		c.shell(n.Host, n, command)
		require.NoError(t, Ping(step(t), c.nodes[1].Pod.Host, n.Pod.V4))
		require.NoError(t, Ping(step(t), n.Pod.Host, c.nodes[1].Pod.V4))
		c.gone("condition-firewall", "n1")
		do, out = c.do(n, f.check)
		require.Empty(t, do, out)
		require.NoError(t, c.s.WaitReady(step(t), "n1"))
		c.whole(f.check, before, ready, "n1", "n1")
		var added []string
		for _, l := range c.hosts()["n1"] {
			if i := slices.Index(before["n1"], l); i >= 0 {
				before["n1"] = slices.Delete(before["n1"], i, i+1)
			} else {
				added = append(added, l)
			}
		}
		require.Empty(t, before["n1"], "what the host lost")
		require.Len(t, added, f.adds, "what the host gained: %q", added)
		t.Logf("%s: %.1f s", f.check, time.Since(start).Seconds())
		n.Host.Sh("nft delete table ip fw 2>/dev/null || nft delete table inet fw")
	}
	c.end()
}

// tun has the doctor look where /dev/net/tun is missing, or a file, in a mount namespace of its own, and
// runs what it prints there.
func (c *curing) tun(n *smallNode) {
	dir, _ := c.programs(n.Host, n)
	for fault, says := range map[string]string{"true": "/dev/net/tun is not there", "touch /dev/net/tun": "what is at /dev/net/tun is no TUN device", "mkdir /dev/net/tun": "what is at /dev/net/tun is no TUN device"} {
		out, err := n.Host.Run(step(c.t), "unshare", "-m", "sh", "-c", `PATH="$0:$PATH"; mount -t tmpfs tmpfs /dev/net; `+fault+`
			causeway-agent doctor >"$0/said" 2>&1; cat "$0/said"
			mend=$(grep -A2 '^fail *tun ' "$0/said" | sed -n "s/.* do:  on a host, run '\(.*\)'; in a container, .*/\1/p")
			echo "mend: $mend"; sh -c "$mend"; ls /dev/net; causeway-agent doctor | grep '^[a-z]* *tun '`, dir)
		require.NoError(c.t, err, "%s: %s", fault, out)
		require.Contains(c.t, out, says)
		require.Regexp(c.t, `(?s)mend: modprobe tun; .*\ntun\nok +tun +/dev/net/tun opens\n$`, out, fault)
	}
}
