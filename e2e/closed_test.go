package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// Gateways of the lab's host to everything else, which is the hub's host: where
// packets go that no route into the tunnel takes.
const gateway6 = "2001:db8:9::1"

// watched is a node whose LAN is captured while it and its pod send to addresses of
// other sites all the time.
type watched struct {
	t       *testing.T
	s       *System
	n       *smallNode
	filter  string
	capture *lab.Capture
	senders []*lab.Process
}

// watchClear gives node n a default route by the hub's host and begins.
func watchClear(t *testing.T, s *System, n *smallNode, addrs ...string) *watched {
	t.Helper()
	s.Hub.Host.Sh("ip -6 addr replace " + gateway6 + "/64 dev eth0 nodad")
	n.Host.Sh("ip route replace default via " + HubAddr + "; ip -6 addr replace 2001:db8:9::" + n.LAN[strings.LastIndexByte(n.LAN, '.')+1:] + "/64 dev eth0 nodad; ip -6 route replace default via " + gateway6)
	// The kernel answers only one packet a second that a pod's address sends to nobody:
	// whoever asks has one of its own.
	n.Host.Sysctl("net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
	n.Pod.Sh("ip addr add " + asking(n) + "/24 dev eth0")
	var nets []string
	for _, a := range addrs {
		nets = append(nets, "dst host "+a)
	}
	w := &watched{t: t, s: s, n: n, filter: strings.Join(nets, " or ")}
	var err error
	w.capture, err = n.Host.Capture("eth0", w.filter)
	require.NoError(t, err)
	w.send(addrs...)
	t.Cleanup(w.stop)
	return w
}

// asking is the address that the pod asks from whether something is closed.
func asking(n *smallNode) string { return n.Pod.V4[:strings.LastIndexByte(n.Pod.V4, '.')] + ".99" }

// send has host and pod ping addresses twenty times a second.
func (w *watched) send(addrs ...string) {
	for i, from := range []*lab.Host{w.n.Host, w.n.Pod.Host} {
		for j, a := range addrs {
			p, err := from.Start(lab.Program{Name: fmt.Sprintf("send%d-%d", i, j), Args: []string{"sh", "-c", "trap 'kill $!; wait; exit 0' TERM; while :; do ping -nqi0.05 -c100 -W1 " + a + " >/dev/null 2>&1 & wait $!; sleep 0.05; done"}}) // ping ends at once where the kernel says that nobody is there
			require.NoError(w.t, err)
			w.senders = append(w.senders, p)
		}
	}
}

func (w *watched) stop() {
	for _, p := range w.senders {
		require.NoError(w.t, p.Stop(step(w.t)))
	}
	w.senders = nil
}

// none ends the capture and wants nothing in it.
func (w *watched) none() {
	w.t.Helper()
	require.NoError(w.t, w.capture.Stop())
	out, err := w.n.Host.Run(step(w.t), "tcpdump", "-nr", w.capture.File)
	require.NoError(w.t, err)
	n := strings.Count(out, "\n")
	w.t.Logf("%d packets in clear on the LAN", n)
	require.Zero(w.t, n, "packets in clear on the LAN:\n%s", out[:min(len(out), 2000)])
}

// closed waits until packets to an address are answered at once as unreachable, for
// the host itself and for its pod.
func (w *watched) closed(addr string) {
	w.t.Helper()
	require.NoError(w.t, lab.Wait(step(w.t), addr+" to be closed", func(ctx context.Context) error {
		for _, from := range []*lab.Host{w.n.Host, w.n.Pod.Host} {
			source := ""
			if from == w.n.Pod.Host && !strings.Contains(addr, ":") {
				source = "-I " + asking(w.n)
			}
			out, err := from.Run(ctx, "sh", "-c", "ping -nc1 -W1 "+source+" "+addr+" 2>&1 || :")
			if err != nil || !strings.Contains(out, "nreachable") && !strings.Contains(out, "No route to host") {
				return fmt.Errorf("%s: %v %s", from.Name, err, out)
			}
		}
		return nil
	}))
}

func (w *watched) open(addr string) {
	w.t.Helper()
	require.NoError(w.t, Ping(step(w.t), w.n.Host, addr))
	require.NoError(w.t, Ping(step(w.t), w.n.Pod.Host, addr))
}

func (w *watched) reload(accept []string) {
	w.t.Helper()
	require.NoError(w.t, w.n.Configure(nil, accept))
	w.n.Proc.Signal(syscall.SIGHUP)
}

// Whatever way a range leaves by, nothing of it is seen in clear on the LAN: it is closed,
// across restarts, until a peer has it again or the host's operator lets it go. What the
// host has of its own inside stays local, and takes nothing with it.
func TestClosedOnWithdrawal(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	s, nodes := newSmall(t, 4)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3", "n4"))
	n, n2 := nodes[0], nodes[1]
	r4, r6 := PodRoutes(2, 1)[0], PodRoutes(2, 1)[1]
	all := []string{}
	for _, o := range nodes[1:] {
		for _, a := range []string{o.Pod.V4, o.Pod.V6} {
			all = append(all, a)
			require.NoError(t, Ping(step(t), n.Pod.Host, a))
		}
	}
	w := watchClear(t, s, n, all...)
	took := func(what string, begun time.Time) {
		t.Logf("%-60s %.1f s", what, time.Since(begun).Seconds())
	}
	both := func(f func(string)) { f(n2.Pod.V4); f(n2.Pod.V6) }
	ways := []struct {
		name     string
		do, undo func()
	}{
		{"route rejected, approved", func() {
			for _, r := range []string{r4, r6} {
				_, err := s.CLI(step(t), "route", "reject", "n2", r)
				require.NoError(t, err)
			}
		}, func() {
			for _, r := range []string{r4, r6} {
				require.NoError(t, s.Approve(step(t), "n2", r))
			}
		}},
		{"the config accepts it no more, again", func() { w.reload([]string{"10.3.0.0/16", "10.4.0.0/16", "fd10:3::/32", "fd10:4::/32"}) }, func() { w.reload(nil) }},
		{"a wider route by a gateway appears, goes", func() {
			n.Host.Sh("ip route add 10.0.0.0/9 via " + HubAddr + "; ip -6 route add fd10::/16 via " + gateway6)
		}, func() { n.Host.Sh("ip route del 10.0.0.0/9; ip -6 route del fd10::/16") }},
	}
	for i := range rounds(5) * len(ways) {
		way := ways[i%len(ways)]
		begun := time.Now()
		way.do()
		both(w.closed)
		if way.name == ways[0].name { // and stays so while the agent goes and comes
			n.Proc.Kill()
			both(w.closed)
			require.NoError(t, n.Start())
			require.NoError(t, s.WaitReady(step(t), "n1"))
			both(w.closed)
		}
		way.undo()
		both(w.open)
		took(way.name, begun)
	}
	begun := time.Now()
	// A network of the host's own, as large as the range: packets stay there, and come back to the tunnel.
	net := func(v4, v6 string) {
		n.Host.Sh("ip link add own9 type bridge && ip link set own9 up && ip addr add " + v4 + " dev own9 && ip -6 addr add " + v6 + " dev own9 nodad")
	}
	way := func(addr, dev string) {
		t.Helper()
		require.NoError(t, lab.Wait(step(t), addr+" by "+dev, func(ctx context.Context) error {
			out, err := n.Host.Run(ctx, "ip", "route", "get", addr)
			if err == nil && !strings.Contains(out, "dev "+dev) {
				err = fmt.Errorf("%s", out)
			}
			return err
		}))
	}
	net("10.2.1.77/24", "fd10:2:1::77/64")
	both(func(a string) { way(a, "own9") })
	n.Host.Sh("ip link del own9")
	both(w.open)
	took("a network of the host's own, as large, appears, goes", begun)
	// One inside the range takes only itself out, without a ping lost for the rest.
	begun = time.Now()
	held, err := s.Hold(step(t), n.Pod.Host, startServer(t, s, n2.Pod))
	require.NoError(t, err)
	net("10.2.1.129/25", "fd10:2:1::8000:1/113")
	way("10.2.1.130", "own9")
	way("fd10:2:1::8000:2", "own9")
	both(w.open)
	n.Host.Sh("ip link set own9 down")
	require.Contains(t, n.Host.Sh("ip route get 10.2.1.130"), "dev cw0", "at once")
	n.Host.Sh("ip link set own9 up")
	way("10.2.1.130", "own9")
	n.Host.Sh("ip link del own9")
	require.Contains(t, n.Host.Sh("ip route get 10.2.1.130; ip route get fd10:2:1::8000:2"), "dev cw0", "at once")
	both(w.open)
	_, gap, err := held.End(step(t))
	require.NoError(t, err)
	require.Less(t, gap, 2.0)
	took("a network of the host's own inside, up, down, gone", begun)
	// The device goes.
	begun = time.Now()
	n.Host.Sh("ip link del cw0")
	both(w.open)
	took("the device deleted and mended", begun)

	// Nodes that are no more.
	begun = time.Now()
	_, err = s.CLI(step(t), "node", "revoke", "n3", "--yes")
	require.NoError(t, err)
	require.NoError(t, nodes[3].Leave(step(t)))
	gone := []string{nodes[2].Pod.V4, nodes[2].Pod.V6, nodes[3].Pod.V4, nodes[3].Pod.V6}
	for _, a := range gone {
		w.closed(a)
	}
	took("a node revoked, one left", begun)
	told(t, s, n)

	// A damaged file, killed: the kernel has it still.
	begun = time.Now()
	n.Proc.Kill()
	for _, f := range []string{"held.json", "held.json.copy"} {
		require.NoError(t, os.WriteFile(filepath.Join(n.StateDir, f), []byte("{}"), 0o600))
	}
	require.NoError(t, n.Start())
	require.NoError(t, s.WaitReady(step(t), "n1"))
	both(w.open)
	for _, a := range gone {
		w.closed(a)
	}
	took("killed, with a damaged file", begun)

	// A reboot without a hub: nothing of the kernel's is left, and before the agent
	// starts nobody sends.
	begun = time.Now()
	w.stop()
	s.Hub.Proc.Kill()
	n.Proc.Kill()
	n.Host.Sh("ip link del cw0; for f in -4 -6; do ip $f route flush table 51806 || :; while ip $f rule del table 51806 2>/dev/null; do :; done; done; nft flush ruleset")
	require.NoError(t, n.Start())
	require.NoError(t, n.Installed(step(t), r4))
	require.NoError(t, n.Installed(step(t), r6))
	w.send(all...)
	for _, a := range gone {
		w.closed(a)
	}
	require.NoError(t, s.StartHub(step(t)))
	both(w.open)
	took("a reboot without a hub", begun)
	w.none()

	// The host's operator lets them go, by the very command that is printed: now they are
	// seen on the LAN, as the host has no other way.
	clear, err := n.Host.Capture("eth0", w.filter)
	require.NoError(t, err)
	out, err := n.Agent(step(t), "status")
	require.NoError(t, err)
	require.Contains(t, out, "'causeway-agent release 10.3.1.0/24'")
	for _, args := range [][]string{{"10.3.1.0/25"}, {"10.2.1.0/24"}, {"10.9.0.0/16"}, {"10.3.1.1/24"}, {"x"}} {
		_, err = n.Agent(step(t), append([]string{"release"}, args...)...)
		requireOneLine(t, err, args[0])
	}
	c := &curing{t: t, s: s, nodes: nodes}
	do, out := c.do(n, "held ranges")
	command := regexp.MustCompile(`^if this host shall reach one by its own routes: (causeway-agent release 10\.3\.1\.0/24);`).FindStringSubmatch(do)
	require.NotNil(t, command, out)
	out = c.shell(n.Host, n, command[1])
	do, _ = c.do(n, "held ranges")
	require.NotContains(t, do, "10.3.1.0/24")
	require.Equal(t, "10.3.1.0/24 is let go: packets to it take this host's own routes\n", out)
	require.NoError(t, lab.Wait(step(t), "packets in clear", func(ctx context.Context) error {
		out, err := n.Host.Run(ctx, "sh", "-c", "tcpdump -nr "+clear.File+" 2>/dev/null || :")
		if err == nil && !strings.Contains(out, "> "+nodes[2].Pod.V4+":") {
			err = fmt.Errorf("none")
		}
		if strings.Contains(out, nodes[3].Pod.V4) {
			return lab.Permanent(fmt.Errorf("what was not let go is seen"))
		}
		return err
	}))
	w.closed(nodes[3].Pod.V4)
	w.closed(nodes[2].Pod.V6)
	require.NoError(t, clear.Stop())
	w.stop()
	require.NoError(t, n.Leave(step(t)))
	require.NoDirExists(t, n.StateDir)
	require.Empty(t, n.Host.Sh("ip route show table 51806 2>/dev/null; ip -6 route show table 51806 2>/dev/null"))
}

// startServer starts the traffic server on a pod and returns its address.
func startServer(t *testing.T, s *System, p *Pod) string {
	t.Helper()
	_, err := s.Serve(step(t), p.Host)
	require.NoError(t, err)
	return p.V4
}

// told checks that every view names the closed ranges with since when and what lets
// them go.
func told(t *testing.T, s *System, n *smallNode) {
	t.Helper()
	out, err := n.Agent(step(t), "status")
	require.NoError(t, err)
	require.Regexp(t, `closed +.*as no peer has them any more; 'causeway-agent release RANGE'.* 10\.3\.1\.0/24 since 20\S+Z`, out)
	out, err = n.Host.Run(step(t), s.Bin.Agent, "doctor", "--state-dir", n.StateDir, "--config", n.Config)
	if err != nil {
		out = failed(t, err).Stdout
	}
	require.Regexp(t, `warn +held ranges +closed: 10\.3\.1\.0/24 since 20\S+Z, 10\.4\.1\.0/24 since`, out)
	require.Contains(t, out, "causeway-agent release 10.3.1.0/24")
	require.NoError(t, lab.Wait(within(t, 15*time.Second), "the hub's word of it", func(context.Context) error {
		ctx := step(t)
		shown, err := s.CLI(ctx, "node", "show", "n1")
		if err != nil || !strings.Contains(shown, "causeway-agent release 10.3.1.0/24") || !strings.Contains(shown, "10.4.1.0/24 since 20") {
			return fmt.Errorf("node show: %v\n%s", err, shown)
		}
		var c api.Checkup
		if err := s.Ask(ctx, &c, "doctor"); err != nil {
			return err
		}
		for _, f := range c.Findings {
			if f.Check == "range-held" && f.Where == "n1" && strings.Contains(f.Summary, "10.3.1.0/24 since 20") && strings.Contains(f.Mend, "causeway-agent status") {
				return nil
			}
		}
		return fmt.Errorf("doctor: %+v", c.Findings)
	}))
}

// An approval draws nothing to another site that a host uses itself: its resolver stays
// where it is though the range has it, and every view says so, until accept: names the
// range. A resolver of the other site, set once the range was there, is reached there.
func TestOwnResolverStays(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	const resolver, range2 = "10.2.9.53", "10.2.0.0/16"
	s, nodes := newSmall(t, 2)
	n, n2 := nodes[0], nodes[1]
	// The site's resolver is behind the default gateway.
	s.Hub.Host.Sh("ip addr add " + resolver + "/32 dev lo; ip route add 10.1.1.0/24 via " + n.LAN)
	n.Host.Sysctl("net.ipv4.ip_forward=1") // as an engine does, so that pods reach it
	n.Host.Sh("ip route replace default via " + HubAddr)
	var err error
	n.Node, err = s.Enroll(step(t), NodeSpec{Name: "n1", Site: "s1", Host: n.Host, TokenRoutes: PodRoutes(1, 1)})
	require.NoError(t, err)
	n.Resolv = filepath.Join(n.Host.Dir(), "resolv.conf")
	use := func(addr string) {
		require.NoError(t, os.WriteFile(n.Resolv, []byte("nameserver "+addr+"\n"), 0o644))
	}
	use(resolver)
	require.NoError(t, n.Start())
	n2.Node, err = s.Join(step(t), NodeSpec{Name: "n2", Site: "s2", Host: n2.Host, Routes: []string{range2}})
	require.NoError(t, err)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), n.Host, resolver))
	require.NoError(t, Ping(step(t), n.Pod.Host, resolver))

	// What is asked from now on is counted at the gateway.
	seen, err := s.Hub.Host.Capture("eth0", "icmp and dst host "+resolver)
	require.NoError(t, err)
	require.NoError(t, s.Approve(step(t), "n2", range2))
	require.NoError(t, n.Installed(step(t), range2))
	require.NoError(t, Ping(step(t), n.Host, n2.Pod.V4), "the rest of the range is the other site's")
	for _, from := range []*lab.Host{n.Host, n.Pod.Host} {
		for range 3 {
			require.NoError(t, PingOnce(step(t), from, resolver), from.Name)
		}
	}
	require.NoError(t, seen.Stop())
	require.Equal(t, 6, strings.Count(s.Hub.Host.Sh("tcpdump -nr "+seen.File+" 2>/dev/null"), "echo request"), "each packet went where it went before")

	out, err := n.Agent(step(t), "status")
	require.NoError(t, err)
	require.Contains(t, out, resolver+" (resolver of /etc/resolv.conf) stays outside the tunnel; if it is the other site's: "+range2+" exactly in accept:, which takes "+resolver+" (resolver of /etc/resolv.conf) from this host")
	out, err = n.Host.Run(step(t), s.Bin.Agent, "doctor", "--state-dir", n.StateDir, "--config", n.Config)
	if err != nil {
		out = failed(t, err).Stdout
	}
	require.Regexp(t, `warn +outside the tunnel +10\.2\.9\.53 \(resolver of /etc/resolv\.conf\)`, out)
	require.NoError(t, Wait(t, func() error {
		var c api.Checkup
		if err := s.Ask(step(t), &c, "doctor"); err != nil {
			return err
		}
		for _, f := range c.Findings {
			if f.Check == "range-excepted" && f.Where == "n1" && strings.Contains(f.Summary, resolver) {
				return nil
			}
		}
		return fmt.Errorf("%+v", c.Findings)
	}))
	by := func() string { return n.Host.Sh("ip route get " + resolver) }
	again := func() {
		require.NoError(t, n.Proc.Stop(step(t)))
		require.NoError(t, n.Start())
		require.NoError(t, s.WaitReady(step(t), "n1"))
	}
	again()
	require.Contains(t, by(), "via "+HubAddr, "after a restart")
	// The operator wants it in the tunnel.
	require.NoError(t, n.Configure(nil, []string{range2, "10.0.0.0/8"}))
	n.Proc.Signal(syscall.SIGHUP)
	require.NoError(t, Wait(t, func() error {
		if out := by(); !strings.Contains(out, "dev cw0") {
			return fmt.Errorf("%s", out)
		}
		return nil
	}))
	// A resolver at the other site, set when its range was there already.
	require.NoError(t, n.Configure(nil, nil))
	use(n2.Pod.V4)
	again()
	require.Contains(t, n.Host.Sh("ip route get "+n2.Pod.V4), "dev cw0")
	require.NoError(t, Ping(step(t), n.Pod.Host, n2.Pod.V4))
}

// A node that announces by mistake what another site has does not lose its way there.
func TestAnnouncingWhatOneHasNot(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	s, nodes := newSmall(t, 2)
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	n, n2 := nodes[0], nodes[1]
	w := watchClear(t, s, n, n2.Pod.V4, n2.Pod.V6)
	w.open(n2.Pod.V4)
	held, err := s.Hold(step(t), n.Pod.Host, startServer(t, s, n2.Pod))
	require.NoError(t, err)
	require.NoError(t, n.Configure(PodRoutes(2, 1), nil))
	n.Proc.Signal(syscall.SIGHUP)
	for _, r := range PodRoutes(2, 1) {
		require.NoError(t, s.WaitRoute(step(t), "n1", netip.MustParsePrefix(r)))
		w.open(n2.Pod.V4) // while it is pending
		_, err := s.CLI(step(t), "route", "reject", "n1", r)
		require.NoError(t, err)
	}
	w.open(n2.Pod.V4)
	w.open(n2.Pod.V6)
	n.Proc.Kill()
	require.NoError(t, n.Start())
	require.NoError(t, s.WaitReady(step(t), "n1"))
	w.open(n2.Pod.V4)
	w.open(n2.Pod.V6)
	_, _, err = held.End(step(t))
	require.NoError(t, err)
	w.stop()
	w.none()
}
