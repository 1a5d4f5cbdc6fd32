package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/internal/hijack"
	"causeway/netns/lab"
	"causeway/protocol"
)

// accessWorld is a data centre of two nodes whose pods' ranges are approved by its range,
// with a LAN behind n1 that nobody announced, and another site's node:
//
//	dc   n1 10.1.1.0/24, LAN 192.168.77.0/24 (not announced), n2 10.2.1.0/24
//	far  n3 10.3.1.0/24
type accessWorld struct {
	t *testing.T
	*System
	victim, neighbour, far *smallNode
	lan                    *lab.Host
	overlay                map[string][]netip.Addr // by node
}

const accessLAN = "192.168.77.50"

func newAccessWorld(t *testing.T, engine string) *accessWorld {
	l, hub, nodes := smallHosts(t, 3)
	w := &accessWorld{t: t, victim: nodes[0], neighbour: nodes[1], far: nodes[2], overlay: map[string][]netip.Addr{}}
	behind := l.Switch("lan1")
	w.victim.Host.Link("eth1", behind, "192.168.77.1/24", "fd77::1/64")
	w.lan = l.Host("lan").Link("eth0", behind, accessLAN+"/24", "fd77::50/64").Default("192.168.77.1", "fd77::1")
	s, err := NewSystem(step(t), l, binaries(t), hub, HubAddr)
	require.NoError(t, err)
	w.System = s
	for _, h := range []*lab.Host{w.victim.Host, w.neighbour.Host, w.far.Host, w.lan} {
		require.NoError(t, h.Settle(step(t)))
	}
	require.NoError(t, s.CreateSite(step(t), "dc", "10.1.0.0/16", "10.2.0.0/16", "fd10:1::/32", "fd10:2::/32"))
	require.NoError(t, s.CreateSite(step(t), "far", "10.3.0.0/16", "fd10:3::/32"))
	for i, n := range nodes {
		site := "dc"
		if n == w.far {
			site = "far"
		}
		n.Node, err = s.Join(step(t), NodeSpec{Name: fmt.Sprintf("n%d", i+1), Site: site, Host: n.Host, Routes: PodRoutes(i+1, 1), Engine: engine})
		require.NoError(t, err)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	list, err := s.Nodes(step(t))
	require.NoError(t, err)
	for name, n := range list {
		w.overlay[name] = n.Overlay
	}
	for _, n := range []*smallNode{w.victim, w.neighbour} {
		require.NoError(t, Ping(step(t), w.far.Pod.Host, n.Pod.V4))
		require.NoError(t, Ping(step(t), w.far.Pod.Host, n.Pod.V6))
	}
	for _, h := range []*lab.Host{w.victim.Host, w.lan, w.victim.Pod.Host} {
		_, err := s.Serve(step(t), h)
		require.NoError(t, err)
	}
	return w
}

// fetch asks an HTTP server once, for two seconds at most.
func (w *accessWorld) fetch(from *lab.Host, addr netip.Addr) error {
	_, err := from.Run(within(w.t, step2), "timeout", "2", w.Bin.Labtool, "http", "http://"+netip.AddrPortFrom(addr, 7080).String()+"/access")
	return err
}

const step2 = stepTimeout / 6

// closed checks that a host is served at none of the addresses, all asked at once.
func (w *accessWorld) closed(from *lab.Host, addrs ...netip.Addr) {
	w.t.Helper()
	errs := make([]error, len(addrs))
	var wg sync.WaitGroup
	for i, a := range addrs {
		wg.Go(func() { errs[i] = w.fetch(from, a) })
	}
	wg.Wait()
	for i, a := range addrs {
		require.Error(w.t, errs[i], "%s from %s", a, from.Name)
	}
}

// reload writes a node's configuration and has the agent take it.
func (w *accessWorld) reload(n *smallNode, routes []string) {
	w.t.Helper()
	require.NoError(w.t, n.Configure(routes, nil))
	n.Proc.Signal(syscall.SIGHUP)
}

// dropped are the packets that a node's access list dropped, by chain, both walls of it.
func (w *accessWorld) dropped(n *smallNode, chain string) (count int) {
	w.t.Helper()
	for l := range strings.Lines(n.Host.Sh("nft list chain inet causeway " + chain)) {
		if _, rest, ok := strings.Cut(l, "counter packets "); ok {
			var c int
			_, err := fmt.Sscan(rest, &c)
			require.NoError(w.t, err)
			count += c
		}
	}
	return count
}

// A neighbour of the same site, with a range that approves, takes no running pod's
// address: neither by the same prefix nor by a longer or a wider one.
func TestHijackNeighbour(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	w := newAccessWorld(t, "")
	p := startPings(t, w.System, w.far.Pod, w.victim.Pod)
	own := PodRoutes(2, 1)
	claims := []string{"10.1.1.11/32", "10.1.1.0/24", "10.1.1.8/29", "10.1.0.0/16", "fd10:1:1::11/128", "fd10:1:1::/64", "fd10:1::/32"}
	var victims []netip.Prefix
	for _, p := range PodRoutes(1, 1) {
		victims = append(victims, netip.MustParsePrefix(p))
	}
	for p := range hijack.Claims(150, victims...) { // what the configuration takes of them
		if s := p.String(); p == p.Masked() && p.Bits() > 0 && slices.ContainsFunc(victims, p.Overlaps) && !slices.Contains(claims, s) {
			claims = append(claims, s)
		}
	}
	w.reload(w.neighbour, append(slices.Clone(own), claims...))
	var routes []api.Route
	require.NoError(t, lab.Wait(step(t), "the claims at the hub", func(ctx context.Context) error {
		if err := w.Ask(ctx, &routes, "route", "list"); err != nil || len(routes) == 6+len(claims) {
			return err
		}
		return fmt.Errorf("%d routes", len(routes))
	}))
	n := 0
	for _, r := range routes {
		switch {
		case r.Node == "n2" && !slices.Contains(own, r.Prefix.String()):
			n++
			require.False(t, r.Owner)
			if r.State == protocol.RouteRejected && r.By == "rule" { // wide enough to hold loopback
				continue
			}
			require.Equal(t, protocol.RoutePending, r.State, r)
			require.Regexp(t, `^it (is the same as|lies inside|lies over) route \S+ of node n\d, which is approved`, r.Why)
		default:
			require.Equal(t, protocol.RouteApproved, r.State, r)
			require.True(t, r.Owner, r)
		}
	}
	require.Equal(t, len(claims), n)
	out, err := w.CLI(step(t), "route", "list")
	require.NoError(t, err)
	require.Contains(t, out, "it lies inside route 10.1.1.0/24 of node n1")

	// A token's grant is an operator's word, and he is told what he does by it.
	out, err = w.Hub.Host.Run(step(t), "sh", "-c", `exec 2>&1; exec "$@"`, "sh", w.Bin.CLI, "--socket", w.Hub.Socket, "token", "create", "--site", "dc", "--route", "10.1.1.64/26")
	require.NoError(t, err)
	require.Contains(t, out, "Mind route 10.1.1.64/26: it lies inside route 10.1.1.0/24 of node n1, which is approved")

	sent, got := p.end()
	t.Logf("%d claims of a neighbour, all wait; the victim's pings meanwhile: %d sent, %d answered", n, sent, got)
	require.Positive(t, sent)
	require.Equal(t, sent, got)
	// Approved by an operator it is so: the longest prefix wins, and whoever approves knows.
	_, err = w.CLI(step(t), "route", "approve", "n2", "10.1.1.11/32")
	require.NoError(t, err)
	require.NoError(t, w.far.Installed(step(t), "10.1.1.11"))
}

// Root on a node of another site, who writes his own netmap, reaches through the tunnel the
// pods that were approved and nothing else behind the victim, nor its host; a LAN host
// forges no pod's source. Approved routes bound both ends of what a peer sends.
func TestAccessList(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	engines := some([]string{EngineInline, EngineWireGuardGo}, func(e string) bool { return e == EngineInline })
	for _, e := range engines {
		t.Run(e, func(t *testing.T) { accessList(t, e) })
	}
}

func accessList(t *testing.T, engine string) {
	w := newAccessWorld(t, engine)
	victim := w.overlay["n1"]
	pod := netip.MustParseAddr(w.victim.Pod.V4)
	require.NoError(t, w.fetch(w.far.Pod.Host, pod), "the pod's page, as approved")

	// Shields: of the host itself nothing is reached but echo, by whatever address of it.
	hosts := append(slices.Clone(victim), netip.MustParseAddr("10.1.1.1"), netip.MustParseAddr("fd10:1:1::1"))
	for _, a := range hosts {
		require.NoError(t, Ping(step(t), w.far.Host, a.String()))
	}
	w.closed(w.far.Host, hosts...)
	require.Positive(t, w.dropped(w.victim, "shields"))
	out, err := w.victim.Agent(step(t), "status")
	require.NoError(t, err)
	require.Regexp(t, `shields +up\n`, out)
	// The verdict names them, and the cure that it prints is one.
	explain := func() (x api.Explanation) {
		out, err := w.CLI(step(t), "diag", "explain", "n3", "n1", "--port", "7080", "-o", "json")
		var failed *lab.RunError
		if errors.As(err, &failed) {
			out = failed.Stdout
		}
		require.NoError(t, json.Unmarshal([]byte(out), &x), out)
		return x
	}
	x := explain()
	require.NotEmpty(t, x.Faults)
	require.Equal(t, "shields", x.Faults[0].Cause, verdictText(x))
	require.Equal(t, "on n1: add tcp/7080 to shields: {allow: […]} in /etc/causeway/agent.yaml, then: systemctl reload causeway-agent", x.Faults[0].Mend)
	w.victim.Shields = "allow: [tcp/7080]"
	w.reload(w.victim, PodRoutes(1, 1))
	require.NoError(t, lab.Wait(step(t), "the opened port", func(context.Context) error { return w.fetch(w.far.Host, victim[0]) }))
	require.Equal(t, api.VerdictHealthy, explain().Verdict)
	w.victim.Shields = ""
	w.reload(w.victim, PodRoutes(1, 1))
	require.NoError(t, lab.Wait(step(t), "the closed port", func(context.Context) error {
		if w.fetch(w.far.Host, victim[0]) == nil {
			return errors.New("still open")
		}
		return nil
	}))

	// Forged sources, whatever rp_filter says.
	w.lan.Sh("ip addr add 10.1.1.99/32 dev lo; ip addr add fd10:1:1::99/128 dev lo nodad")
	w.far.Pod.Nft("table inet seen { chain i { type filter hook prerouting priority -300; ip saddr 10.1.1.99 counter; ip6 saddr fd10:1:1::99 counter; }\n}")
	for _, rp := range []string{"0", "2"} {
		w.victim.Host.Sysctl("net.ipv4.conf.all.rp_filter="+rp, "net.ipv4.conf.eth1.rp_filter="+rp)
		for _, f := range [][2]string{{"10.1.1.99", w.far.Pod.V4}, {"fd10:1:1::99", w.far.Pod.V6}} {
			before := w.dropped(w.victim, "access-interface")
			_, err := w.lan.Run(step(t), "ping", "-nqc2", "-i0.2", "-W0.3", "-I", f[0], f[1])
			require.Error(t, err)
			require.Equal(t, before+2, w.dropped(w.victim, "access-interface"), "rp_filter %s", rp)
		}
	}
	require.Equal(t, 2, strings.Count(w.far.Pod.Sh("nft list table inet seen"), "counter packets 0 "))
	require.NoError(t, PingOnce(step(t), w.victim.Pod.Host, w.far.Pod.V4), "the pod itself does reach it")

	if engine != EngineWireGuardGo { // which does not say whose source it refuses
		w.misledSource()
	}

	// Another site's root gives himself the victim's LAN. His own netmap is no secret and no
	// signature keeps him from it: he keeps the hub's away and starts the agent with it.
	require.NoError(t, w.far.Proc.Stop(step(t)))
	w.far.Host.Sh("nft 'add table inet deaf; add chain inet deaf o { type filter hook output priority 0; }; add rule inet deaf o oifname cw0 tcp dport 4710 drop'")
	file := filepath.Join(w.far.StateDir, "netmap.json")
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	forged := strings.Replace(string(b), `"10.1.1.0/24"`, `"192.168.77.0/24","203.0.113.21/32","10.1.1.0/24"`, 1)
	require.NotEqual(t, string(b), forged)
	forged = regexp.MustCompile(`,\s*"sum": "[0-9a-f]{64}"`).ReplaceAllString(forged, "") // as agents of before wrote it
	require.NoError(t, os.WriteFile(file, []byte(forged), 0o600))
	require.NoError(t, w.far.Configure(PodRoutes(3, 1), []string{"10.0.0.0/8", "fd10::/16", "192.168.77.0/24", "203.0.113.21/32"}))
	require.NoError(t, w.far.Start())
	require.NoError(t, w.far.Installed(step(t), "192.168.77.0/24"))
	require.NoError(t, Ping(step(t), w.far.Pod.Host, w.victim.Pod.V4))
	refused := func() int { return w.engineDrops(protocol.DropElsewhere) }
	before := refused()
	for _, from := range []*lab.Host{w.far.Pod.Host, w.far.Host} {
		require.Error(t, PingOnce(step(t), from, accessLAN))
		// A LAN host that nobody announced, and the host by its addresses of LAN and underlay.
		w.closed(from, netip.MustParseAddr(accessLAN), netip.MustParseAddr("192.168.77.1"), netip.MustParseAddr("203.0.113.21"))
	}
	require.Greater(t, refused(), before+8, "counted by the engine, which comes first")
	require.NoError(t, w.fetch(w.far.Pod.Host, pod), "the pod's page, all the while")
}

// engineDrops is the victim's metric of what its engine dropped for a reason.
func (w *accessWorld) engineDrops(reason protocol.DropReason) (n int) {
	w.t.Helper()
	out, err := w.victim.Host.Run(step(w.t), "curl", "-sf", "--unix-socket", w.victim.Socket, "http://agent/metrics")
	require.NoError(w.t, err)
	_, rest, ok := strings.Cut(out, fmt.Sprintf("\ncauseway_agent_dropped_packets_total{reason=%q} ", reason))
	require.True(w.t, ok, reason)
	_, err = fmt.Sscan(rest, &n)
	require.NoError(w.t, err)
	return n
}

// misledSource: a rule on n3, behind all of the agent's, gives what goes into the tunnel a source
// that is not n3's. n1 drops that, and says so in metrics, in its status and where somebody asks why the flow fails;
// n3 says so by itself once it has tried its firewalls, and names the rule.
func (w *accessWorld) misledSource() {
	t := w.t
	for _, r := range protocol.DropReasons() {
		w.engineDrops(r) // all are there
	}
	before := w.engineDrops(protocol.DropSpoofed)
	w.far.Host.Nft("table ip misled { chain post { type filter hook postrouting priority 300; oifname cw0 ip daddr 10.1.1.0/24 ip saddr set 192.0.2.77; }\n}")
	out, err := w.CLI(step(t), "diag", "explain", "n3", w.victim.Pod.V4, "--port", "7080", "-o", "json")
	var failed *lab.RunError
	require.ErrorAs(t, err, &failed, out)
	var x api.Explanation
	require.NoError(t, json.Unmarshal([]byte(failed.Stdout), &x), failed.Stdout)
	const tried = "packets that 10.3.1.11 sends by pods0 leave by cw0 with another source, 192.0.2.77: nftables chain ip misled post gives it to them: "
	require.NotEmpty(t, x.Faults)
	f := x.Faults[0]
	if f.Cause == "host-firewall" { // the trial was first
		require.Equal(t, "n3", f.Node)
		require.Contains(t, f.Summary, tried)
	} else {
		require.Equal(t, "lost-on-the-way", f.Cause, verdictText(x))
		require.Equal(t, "n1", f.Node)
		require.Contains(t, f.Summary, "n1 drops packets that come from n3 under an address that n3 may not send from")
	}
	require.NoError(t, lab.Wait(step(t), "what n3 finds by itself", func(ctx context.Context) error {
		out, _ := w.far.Agent(ctx, "health", "-o", "json") // its status is not 0 where a condition does not hold
		if !strings.Contains(out, tried) {
			return errors.New(out)
		}
		return nil
	}))
	w.far.Host.Sh("nft delete table ip misled")
	require.Regexp(t, `n1 dropped meanwhile: \d+ from an address that the peer may not send from \(spoofed\)`, strings.Join(f.Evidence, "\n"))
	grown := w.engineDrops(protocol.DropSpoofed)
	require.Greater(t, grown, before)
	out, err = w.victim.Agent(step(t), "status")
	require.NoError(t, err)
	require.Regexp(t, fmt.Sprintf(`(?m)^dropped   .*%d from an address that the peer may not send from \(spoofed\)`, grown), out)
	require.NoError(t, lab.Wait(step(t), "the flow again", func(context.Context) error { return w.fetch(w.far.Host, netip.MustParseAddr(w.victim.Pod.V4)) }))
}
