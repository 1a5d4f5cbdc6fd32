package explain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/netns"
	"causeway/netns/lab"
	"causeway/netns/look"
	"causeway/protocol"
)

// ground is a node b1 as its kernel sees it, and what is around it; a cable stands for the
// tunnel. Everything listens at 7080 and 22.
//
//	far 10.1.1.11 ── cw0 b1 pods0 ── pod 10.2.1.11
//	                     └─ lan0 ── lan 192.168.9.2
type ground struct {
	t                 *testing.T
	node, far, pod, l *lab.Host
}

const groundRules = `ip -4 rule flush; ip -4 rule add lookup main pref 32766; ip -4 rule add not fwmark 0xca5e lookup 51806 pref 5206 protocol 202
	ip -6 rule flush; ip -6 rule add lookup main pref 32766; ip -6 rule add not fwmark 0xca5e lookup 51806 pref 5206 protocol 202
	sysctl -qw net.ipv4.conf.cw0.forwarding=1
	ip -4 route flush table 51806 2>/dev/null || :; ip -6 route flush table 51806 2>/dev/null || :
	ip route add 10.1.1.0/24 dev cw0 table 51806; ip -6 route add fd10:1:1::/64 dev cw0 table 51806`

func newGround(t *testing.T) *ground {
	l := lab.New(t)
	g := &ground{t: t, node: l.Host("b1"), far: l.Host("far"), l: l.Host("lan")}
	l.Wire(g.far, "eth0", []string{"10.1.1.11/24", "fd10:1:1::11/64"}, g.node, "cw0", []string{"198.18.0.3/32", "fdca:5e::3/128"})
	l.Wire(g.l, "eth0", []string{"192.168.9.2/24", "fd00:9::2/64"}, g.node, "lan0", []string{"192.168.9.1/24", "fd00:9::1/64"})
	g.pod = g.node.PodNet("pods0", "10.2.1.1/24", "fd10:2:1::1/64").Pod("pod", "10.2.1.11/24", "fd10:2:1::11/64")
	g.node.Sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	g.node.Sh(groundRules + `
		ip route add default via 192.168.9.2; ip -6 route add default via fd00:9::2`)
	for h, via := range map[*lab.Host][2]string{g.far: {"198.18.0.3", "fdca:5e::3"}, g.l: {"192.168.9.1", "fd00:9::1"}} {
		h.Sh(fmt.Sprintf("ip route add 10.2.0.0/16 via %s dev eth0 onlink; ip -6 route add fd10:2::/32 via %s dev eth0 onlink", via[0], via[1]))
	}
	g.far.Sh("ip route add 198.18.0.3/32 dev eth0; ip -6 route add fdca:5e::3/128 dev eth0")
	g.pod.Sh("ip route replace default via 10.2.1.1; ip -6 route replace default via fd10:2:1::1")
	for _, h := range []*lab.Host{g.node, g.pod, g.l} {
		require.NoError(t, h.Do(func() error {
			var errs error
			for _, port := range []string{"7080", "22"} {
				x, err := net.Listen("tcp", ":"+port)
				if errs = errors.Join(errs, err); err == nil {
					t.Cleanup(func() { x.Close() })
				}
			}
			return errs
		}))
	}
	require.NoError(t, lab.Wait(t.Context(), "the ground", func(context.Context) error {
		if r := g.reached(); slices.Contains(r, false) {
			return fmt.Errorf("%v", r)
		}
		return nil
	}))
	return g
}

// tries are the connections that are tried, of which the first two are the flow's.
var tries = []struct{ from, to string }{
	{"far", "10.2.1.11:7080"}, {"far", "[fd10:2:1::11]:7080"}, {"far", "10.2.1.11:22"}, {"far", "[fd10:2:1::11]:22"}, {"far", "198.18.0.3:22"},
	{"lan", "10.2.1.11:7080"}, {"lan", "10.2.1.11:22"}, {"lan", "[fd10:2:1::11]:22"}, {"lan", "192.168.9.1:22"}, {"pod", "192.168.9.2:7080"}, {"node", "192.168.9.2:22"},
}

func (g *ground) reached() []bool {
	out := make([]bool, len(tries))
	var wg sync.WaitGroup
	for i := range tries {
		wg.Go(func() {
			for range 2 { // a machine that is busy is slow
				out[i] = out[i] || g.reaches(i) == nil
			}
		})
	}
	wg.Wait()
	return out
}

func (g *ground) reaches(i int) error {
	h := map[string]*lab.Host{"far": g.far, "lan": g.l, "pod": g.pod, "node": g.node}[tries[i].from]
	return h.Do(func() error {
		c, err := net.DialTimeout("tcp", tries[i].to, 500*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// explain is the verdict by what the node's own evidence is now.
func (g *ground) explain(six bool) api.Explanation {
	f := well()
	f.Port, f.From.Evidence.Connect, f.To.Evidence.Pod.Spaces[0].Listeners = 7080, nil, []string{"[::]:7080"}
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	if six {
		f.From.Addr, f.To.Addr = addr("fd10:1:1::11"), addr("fd10:2:1::11")
		f.From.Routes[0].Prefix, f.To.Routes[0].Prefix = prefix("fd10:1:1::/64"), prefix("fd10:2:1::/64")
	}
	i := 0
	if six {
		i = 1
	}
	f.From.Evidence.Connect = &protocol.Connect{From: f.From.Addr, Result: protocol.ConnectOK}
	if g.reaches(i) != nil {
		f.From.Evidence.Connect.Result = protocol.ConnectTimeout
	}
	plan, err := netns.NewPlan(netns.Config{Interface: "cw0", MTU: 1380, Mark: netns.DefaultMark, Table: netns.DefaultTable, Overlay: []netip.Addr{addr("198.18.0.3"), addr("fdca:5e::3")}, Routes: []netip.Prefix{prefix("10.1.1.0/24"), prefix("fd10:1:1::/64")}})
	require.NoError(g.t, err)
	require.NoError(g.t, g.node.Do(func() error {
		flow := look.Flow{Local: f.To.Addr, Remote: f.From.Addr, Proto: protocol.FlowTCP, Port: 7080, Serves: true}
		f.To.Evidence.Flow = look.At(netns.NewHost(g.t.TempDir(), zerolog.Nop())).Flow(context.Background(), plan, flow)
		return nil
	}))
	require.Empty(g.t, f.To.Evidence.Flow.Error)
	w := &f.To.Evidence.Flow // no agent runs here
	w.Missing = slices.DeleteFunc(w.Missing, func(l string) bool { return !strings.Contains(l, " rule add ") && !strings.Contains(l, " route add ") })
	return Decide(*f)
}

// state is what a mend may change, line by line. Handles and counters are no part of it.
func (g *ground) state() []string {
	text := g.node.Sh(`ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all
		nft -s list ruleset; iptables-legacy-save 2>/dev/null | grep -v '^[#:]' || :`)
	return strings.Split(text, "\n")
}

func less(a, b []string) (out []string) {
	left := slices.Clone(b)
	for _, l := range a {
		if i := slices.Index(left, l); i >= 0 {
			left = slices.Delete(left, i, i+1)
		} else {
			out = append(out, strings.TrimSpace(l))
		}
	}
	return out
}

// mended is a fault that a mend of one command line heals.
type mended struct {
	name, cause, script string
	six                 bool
	mend                string // a part of the mend; what it names
	adds                int    // lines that it adds
	takes               int    // lines that it takes away
	keeps               string // an address of the host's own, which is reached as before
	thin                bool   // in every run
}

var mendedRules = []mended{
	{name: "the third of three steals", thin: true, cause: "rule-steals", mend: "pref 299 to 10.1.1.0/24 goto 5206", adds: 1, script: `ip route add default via 192.168.9.2 table 77
		ip rule add pref 100 to 10.9.0.0/16 lookup 77; ip rule add pref 200 from 10.5.0.0/16 lookup 77; ip rule add pref 300 to 10.1.0.0/16 lookup main`},
	{name: "of that range alone", thin: true, cause: "rule-steals", mend: "ip rule del pref 300 to 10.1.1.0/24 lookup 254", takes: 1,
		script: `ip rule add pref 100 to 10.9.0.0/16 lookup main; ip rule add pref 300 to 10.1.1.0/24 lookup main`},
	{name: "the second of one priority", cause: "rule-steals", mend: "ip rule del pref 300 from 10.2.1.0/24 to 10.1.1.11/32 lookup 254", takes: 1,
		script: `ip rule add pref 300 to 10.9.0.0/16 lookup main; ip rule add pref 300 from 10.2.1.0/24 to 10.1.1.11 lookup main`},
	{name: "two of that range", cause: "rule-steals", mend: "; ip rule del pref 301", takes: 2,
		script: `ip rule add pref 300 to 10.1.1.0/24 lookup main; ip rule add pref 301 iif pods0 to 10.1.1.0/25 lookup main`},
	{name: "which has a network of its own there", thin: true, cause: "rule-steals", mend: "to 10.1.1.128/25 goto 300; ip rule add pref 299 to 10.1.1.0/24 goto 5206", adds: 2, keeps: "10.1.1.130",
		script: `ip route add default via 192.168.9.2 table 77; ip route add 10.1.1.128/25 via 192.168.9.2 table 77; ip rule add pref 300 to 10.1.0.0/16 lookup 77`},
	{name: "of that range, and which has a network of its own there", thin: true, cause: "rule-steals", mend: "to 10.1.1.128/25 goto 300; ip rule add pref 299 to 10.1.1.0/24 goto 5206", adds: 2, keeps: "10.1.1.130",
		script: `ip route add default via 192.168.9.2 table 77; ip route add 10.1.1.128/25 via 192.168.9.2 table 77; ip rule add pref 300 to 10.1.1.0/24 lookup 77`},
	{name: "prohibit", cause: "rule-steals", mend: "pref 299 to 10.1.1.0/24 goto", adds: 1, script: `ip rule add pref 300 to 10.1.0.0/16 prohibit`},
	{name: "by port", thin: true, cause: "rule-steals", mend: "pref 299 to 10.1.1.0/24 goto", adds: 1, script: `ip rule add pref 200 ipproto udp lookup main; ip rule add pref 300 ipproto tcp sport 7080 lookup main`},
	{name: "by interface", cause: "rule-steals", mend: "pref 299 to 10.1.1.0/24 goto", adds: 1, script: `ip rule add pref 200 iif lan0 lookup main; ip rule add pref 300 iif pods0 lookup main`},
	{name: "all but another range", cause: "rule-steals", mend: "pref 299 to 10.1.1.0/24 goto", adds: 1, script: `ip rule add pref 300 not to 10.9.0.0/16 lookup main`},
	{name: "after one that suppresses", cause: "rule-steals", mend: "pref 299 to 10.1.1.0/24 goto", adds: 1,
		script: `ip rule add pref 50 lookup main suppress_prefixlength 0; ip rule add pref 300 to 10.0.0.0/8 lookup main`},
	{name: "a jump past the tunnel's", cause: "rule-steals", mend: "pref 99 to 10.1.1.0/24 goto", adds: 1,
		script: `ip rule add pref 30000 lookup main; ip rule add pref 100 to 10.1.0.0/16 goto 30000`},
	{name: "what comes out of the tunnel", cause: "rule-steals", mend: "pref 299 iif cw0 to 10.2.1.0/24 goto", adds: 1,
		script: `ip route add default via 192.168.9.2 table 77; ip rule add pref 200 iif lan0 lookup 77 suppress_prefixlength 0; ip rule add pref 300 iif cw0 to 10.2.0.0/16 lookup 77`},
	{name: "IPv6", thin: true, cause: "rule-steals", six: true, mend: "ip -6 rule add pref 299 to fd10:1:1::/64 goto 5206", adds: 1, script: `ip -6 rule add pref 100 to fd09::/16 lookup main; ip -6 rule add pref 300 to fd10::/16 lookup main`},
	{name: "IPv6 of that range alone", cause: "rule-steals", six: true, mend: "ip -6 rule del pref 300", takes: 1, script: `ip -6 rule add pref 300 to fd10:1:1::/64 lookup main`},
}

// What an agent puts back by itself; this is for when another program is quicker.
var mendedOwn = []mended{
	{name: "rule missing", thin: true, cause: "rule-missing", mend: "ip -4 rule add not fwmark 0xca5e lookup 51806 pref 5206 protocol 202", adds: 1, script: `ip rule add pref 300 to 10.9.0.0/16 lookup main; ip rule del pref 5206`},
	{name: "rule missing, IPv6", cause: "rule-missing", six: true, mend: "ip -6 rule add not fwmark", adds: 1, script: `ip -6 rule del pref 5206`},
	{name: "route missing", thin: true, cause: "route-missing", mend: "ip -4 route add 10.1.1.0/24 dev cw0 proto 202", adds: 1, script: `ip route flush table 51806`},
	{name: "route missing, IPv6", cause: "route-missing", six: true, mend: "ip -6 route add fd10:1:1::/64 dev cw0 proto 202", adds: 1, script: `ip -6 route flush table 51806`},
	{name: "forwarding off", thin: true, cause: "forwarding-off", mend: "sysctl -w net.ipv4.conf.cw0.forwarding=1", script: `sysctl -qw net.ipv4.conf.cw0.forwarding=0`},
}

func nftFault(hook, rules string) string {
	return "nft 'add table ip other; add chain ip other f { type filter hook forward priority 0; }; add rule ip other f ip daddr 10.9.9.9 drop; add table ip fw; add chain ip fw f { type filter hook " + hook + "; }" + rules + "'"
}

var mendedDrops = []mended{
	{name: "of the flow alone", cause: "host-firewall", mend: "insert rule ip fw f handle 3 iifname", adds: 1,
		script: nftFault("forward priority 0", `; add rule ip fw f ip daddr 10.9.9.9 drop; add rule ip fw f iifname "cw0" tcp dport 7080 drop`)},
	{name: "which guards more", thin: true, cause: "host-firewall", mend: "tcp dport 7080 accept", adds: 1, script: nftFault("forward priority 0", `; add rule ip fw f tcp dport { 22, 7080 } drop`)},
	{name: "policy", thin: true, cause: "host-firewall", mend: "add rule ip fw f", adds: 1, script: nftFault("forward priority 0; policy drop", `; add rule ip fw f ct state established accept; add rule ip fw f iifname "pods0" accept; add rule ip fw f tcp dport 22 drop`)},
	{name: "twins in two tables", thin: true, cause: "host-firewall", mend: "; nft 'insert rule inet fw f handle", adds: 2,
		script: nftFault("forward priority 0", `; add rule ip fw f tcp dport 7080 drop; add table inet fw; add chain inet fw f { type filter hook forward priority 10; }; add rule inet fw f tcp dport 7000-8000 reject`)},
	{name: "answers", cause: "host-firewall", mend: "tcp sport 7080 accept", adds: 1, script: nftFault("forward priority 0", `; add rule ip fw f ip saddr 10.2.0.0/16 ip daddr 10.0.0.0/8 drop`)},
	{name: "both ways without state", cause: "host-firewall", mend: "; nft", adds: 2, script: nftFault("forward priority 0", `; add rule ip fw f oifname "lan0" accept; add rule ip fw f iifname "lan0" accept; add rule ip fw f tcp dport 22 accept; add rule ip fw f tcp sport 22 accept; add rule ip fw f drop`)},
	{name: "a list of addresses", cause: "host-firewall", mend: "insert rule ip fw f handle", adds: 1, script: nftFault("forward priority 0", `; add set ip fw bad { type ipv4_addr; flags interval; elements = { 10.1.0.0/16, 192.0.2.0/24 } }; add rule ip fw f ip saddr @bad drop`)},
	{name: "a rate", cause: "host-firewall", mend: "insert rule ip fw f handle", adds: 1, script: nftFault("forward priority 0", `; add rule ip fw f iifname "cw0" limit rate 1000000/second drop`)},
	{name: "in a chain", cause: "host-firewall", mend: "insert rule ip fw u handle", adds: 1, script: nftFault("forward priority 0", `; add chain ip fw u; add rule ip fw u udp dport 53 accept; add rule ip fw u ip saddr 10.0.0.0/8 reject; add rule ip fw f iifname "cw0" jump u`)},
	{name: "a map", cause: "host-firewall", mend: "insert rule ip fw f handle", adds: 1, script: nftFault("forward priority 0", `; add rule ip fw f ct state vmap { established : accept, invalid : drop }; add rule ip fw f tcp dport vmap { 22 : accept, 7080 : drop }`)},
	{name: "before routing", cause: "host-firewall", mend: "iifname \"cw0\" ip saddr", adds: 1, script: nftFault("prerouting priority raw", `; add rule ip fw f iifname != "lan0" ip daddr 10.2.1.11 tcp dport != 22 drop; `)},
	{name: "after routing", cause: "host-firewall", mend: "insert rule ip fw f handle", adds: 1, script: nftFault("postrouting priority 0", `; add rule ip fw f oifname "pods0" ip saddr != 192.168.9.0/24 tcp dport != 22 drop`)},
	{name: "IPv6", cause: "host-firewall", six: true, mend: "ip6 saddr fd10:1:1::/64", adds: 1,
		script: `nft 'add table ip fw; add chain ip fw f { type filter hook forward priority 0; }; add rule ip fw f ip daddr 10.9.9.9 drop; add table inet fw; add chain inet fw f { type filter hook forward priority 0; }; add rule inet fw f meta nfproto ipv6 tcp dport 7080 drop'`},
	{name: "iptables", cause: "host-firewall", mend: "insert rule ip filter FORWARD handle", adds: 1, script: `iptables-nft -A FORWARD -d 10.9.9.9 -j DROP; iptables-nft -A FORWARD -p tcp -m multiport --dports 7080,7081 -j DROP`},
	{name: "iptables in a chain", thin: true, cause: "host-firewall", mend: "insert rule ip filter guard handle", adds: 1, script: `iptables-nft -N guard; iptables-nft -A guard -s 10.1.0.0/16 -j REJECT; iptables-nft -A FORWARD -i cw0 -p tcp --dport 7080 -j guard`},
	{name: "iptables' policy", cause: "host-firewall", mend: "add rule ip filter FORWARD", adds: 1, script: `iptables-nft -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables-nft -A FORWARD -i lan0 -j ACCEPT; iptables-nft -A FORWARD -i pods0 -j ACCEPT; iptables-nft -P FORWARD DROP`},
}

// Each command that is printed against what other programs did to a host heals the flow, and changes
// nothing else: no other rule, and nobody's reach.
func TestMends(t *testing.T) {
	t.Parallel()
	all := slices.Concat(mendedRules, mendedOwn, mendedDrops)
	const grounds = 3 // most of the time goes into waiting for what does not come
	cases := make(chan mended, len(all))
	for _, c := range all {
		if c.thin || os.Getenv("CAUSEWAY_SOAK") == "1" {
			cases <- c
		}
	}
	close(cases)
	for i := range grounds {
		t.Run(fmt.Sprintf("ground %d", i), func(t *testing.T) {
			t.Parallel()
			g := newGround(t)
			for c := range cases {
				t.Run(c.name, func(t *testing.T) { g.try(t, c) })
			}
		})
	}
}

func (g *ground) try(t *testing.T, c mended) {
	g.t = t
	defer g.node.Sh("nft flush ruleset; ip route flush table 77 2>/dev/null || :; " + groundRules + "; for t in filter nat; do iptables-legacy -t $t -F; iptables-legacy -t $t -X; iptables-legacy -t $t -P FORWARD ACCEPT 2>/dev/null || :; done")
	flow := 0
	if c.six {
		flow = 1
	}
	g.node.Sh(c.script)
	before, reach := g.state(), g.reached()
	require.False(t, reach[flow], "it does not bite")
	x := g.explain(c.six)
	require.NotEmpty(t, x.Faults)
	f := x.Faults[0]
	t.Logf("%s: %s; %s", f.Cause, strings.Join(f.Evidence, "; "), f.Mend)
	require.Equal(t, c.cause, f.Cause, "%+v", x.Faults)
	require.Contains(t, f.Mend, c.mend)
	run, ok := strings.CutPrefix(f.Mend, "on b1: ")
	require.True(t, ok, f.Mend)
	way := func() string {
		if c.keeps == "" {
			return ""
		}
		return g.node.Sh("ip route get " + c.keeps + " from 10.2.1.11 iif pods0")
	}
	own := way()
	g.node.Sh(run)
	require.Equal(t, own, way(), "a network of the host's own")
	require.NoError(t, lab.Wait(t.Context(), "the flow", func(context.Context) error { return g.reaches(flow) }))
	x = g.explain(c.six)
	require.Equal(t, api.VerdictHealthy, x.Verdict, "%+v", x.Faults)
	after := g.state()
	require.Len(t, less(after, before), c.adds, "%q", less(after, before))
	require.Len(t, less(before, after), c.takes, "%q", less(before, after))
	now := g.reached()
	for i := range now {
		// Who takes a rule of routing out of the way heals all ports.
		if i > 1 && now[i] != reach[i] && (reach[i] || c.adds > 0 && c.cause == "host-firewall" || tries[i].from != "far") {
			t.Errorf("%v: was %v", tries[i], reach[i])
		}
	}
}

// docs/DIAG.md says of each cause what its mend is: a command, and then a case here or in e2e applies it
// as it was printed, or why there is none. A cause that is new fails until that is so.
func TestMendLedger(t *testing.T) {
	applied := map[string]bool{}
	for _, c := range slices.Concat(mendedRules, mendedOwn, mendedDrops) {
		applied[c.cause] = true
	}
	for _, f := range []string{"explain_test.go", "explain_faults_test.go"} {
		b, err := os.ReadFile("../../e2e/" + f)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`want: \[\]string{"([a-z-]+)"}[^\n]* heals: true`).FindAllStringSubmatch(string(b), -1) {
			applied[m[1]] = true
		}
	}
	doc, err := os.ReadFile("../../docs/DIAG.md")
	require.NoError(t, err)
	_, table, _ := strings.Cut(string(doc), "## Causes\n")
	table, _, _ = strings.Cut(table, "\n## ")
	mends := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*) \\|[^|]*\\|[^|]*\\| ([^|]*) \\|$").FindAllStringSubmatch(table, -1) {
		for _, c := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(row[1], -1) {
			mends[c[1]] = row[2]
		}
	}
	for _, c := range causesOfCode(t) {
		switch mend := mends[c]; {
		case mend == "":
			t.Errorf("%s: docs/DIAG.md does not say what its mend is", c)
		case strings.HasPrefix(mend, "command"):
			require.True(t, applied[c], "%s: its mend is a command, and no test applies it", c)
		default:
			require.Regexp(t, "^(by hand|shows): ", mend, c)
		}
	}
}

// No mend names accept: where that cuts the host from a network of its own, nor where an agent cannot
// say what it would take, and none has a route of the host's own removed.
func TestAcceptMend(t *testing.T) {
	prefix, gateway := netip.MustParsePrefix("10.2.1.0/24"), netip.MustParseAddr("192.0.2.1")
	refused := func(why string, takes ...protocol.Own) func(*Facts) {
		return func(f *Facts) {
			e := f.From.Evidence
			e.Allowed, e.Name, e.Takes = netip.Prefix{}, prefix, takes
			e.Refused = []protocol.RefusedPart{{Peer: 3, Prefix: prefix.String(), Reason: why}}
		}
	}
	stays := func(own protocol.Own) func(*Facts) {
		return func(f *Facts) {
			f.From.Evidence.Stays, f.From.Evidence.Name, f.From.Evidence.Takes = &own, own.Prefix, []protocol.Own{own}
		}
	}
	lan := protocol.Own{Prefix: prefix, Link: "eth0", Needs: []string{"default gateway 10.2.1.1"}, Fixed: true}
	docker := protocol.Own{Prefix: netip.MustParsePrefix("10.2.1.0/25"), Link: "docker0"}
	by := protocol.Own{Prefix: prefix, Of: netip.MustParsePrefix("10.0.0.0/8"), Link: "eth0", Via: gateway}
	for _, c := range []struct {
		cause, mend string
		breaks      func(*Facts)
	}{
		{"route-overlaps", "give one of the two sites another range; accept: of a1 cannot take 10.2.1.0/24 of eth0 (with default gateway 10.2.1.1) from it", refused("it overlaps this host's own route", lan)},
		{"route-overlaps", "name 10.2.1.0/24 exactly in accept: of a1, which takes 10.2.1.0/24, a part of 10.0.0.0/8 by gateway 192.0.2.1 from it, or give one of the two sites another range", refused("it overlaps this host's own route", by)},
		{"route-overlaps", "give one of the two sites another range", func(f *Facts) { refused("it overlaps this host's own route")(f); f.From.Evidence.Name = netip.Prefix{} }},
		{"route-refused", "name 10.2.1.0/24 exactly in accept: of a1", refused("it is outside this host's accept ranges")},
		{"route-refused", "give one of the two sites another range; 10.2.1.0/24 in accept: would take 10.2.1.0/25 of docker0 from a1", refused("it is outside this host's accept ranges", docker)},
		{"stays-local", "give one of the two sites another range; 10.2.1.0/25 in accept: would take 10.2.1.0/25 of docker0 from a1", stays(docker)},
	} {
		f := well()
		c.breaks(f)
		x := Decide(*f)
		require.NotEmpty(t, x.Faults, c.mend)
		require.Equal(t, []string{c.cause, c.mend}, []string{x.Faults[0].Cause, x.Faults[0].Mend})
	}
	// Nodes of one site are on one LAN: nothing is wrong.
	f := well()
	stays(docker)(f)
	f.To.Node.Site = f.From.Node.Site
	require.Equal(t, api.VerdictHealthy, Decide(*f).Verdict)
	refused("it overlaps this host's own route", docker)(f)
	require.Regexp(t, "^nothing, if both nodes are on that network", Decide(*f).Faults[0].Mend)
}

// What an agent calls its chains, rules and interfaces means nothing to the shell of whoever pastes a mend.
func TestMendHostile(t *testing.T) {
	const evil = "x$(reboot);`id`"
	for name, breaks := range map[string]func(*Facts){
		"chain": func(f *Facts) {
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "forward", Chain: "ip fw " + evil, Rule: "drop", Handle: 3, Certain: true}}
		},
		"option": func(f *Facts) {
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "forward", Chain: "-f /etc/shadow x", Handle: 3, Certain: true}}
		},
		"too short": func(f *Facts) {
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "forward", Chain: "ip fw", Handle: 3, Certain: true}}
		},
		"interface": func(f *Facts) {
			f.To.Evidence.Flow.Interface = evil
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "forward", Chain: "ip fw f", Rule: "drop", Handle: 3, Certain: true}}
			f.To.Evidence.Flow.Out.To, f.From.Evidence.Connect.Result = evil, protocol.ConnectTimeout
		},
		"interface of ufw": func(f *Facts) {
			f.To.Evidence.Flow.Interface, f.To.Evidence.Flow.Out.From = "cw0", evil
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "forward", Chain: "ip filter FORWARD", Rule: "drop", Certain: true, Owner: protocol.OwnerUfw}}
		},
		"interface of firewalld": func(f *Facts) {
			f.To.Evidence.Flow.Interface, f.To.Evidence.Flow.Out.From = "cw0", "pods0 && reboot"
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "forward", Chain: protocol.FirewalldTable + " filter_FORWARD", Rule: "reject", Handle: 3, Certain: true}}
		},
		"interface of a raw rule": func(f *Facts) {
			f.To.Evidence.Flow.Interface = "cw0 -j ACCEPT; reboot"
			f.To.Evidence.Flow.Drops = []protocol.Drop{{Way: "in", Hook: "prerouting", Chain: "ip raw PREROUTING", Rule: "drop", Handle: 3, Certain: true}}
		},
		"setting": func(f *Facts) { f.To.Evidence.Flow.Missing = []string{"sysctl -w net.ipv4.conf.x.rp_filter=2; reboot"} },
		"lost rule": func(f *Facts) {
			f.To.Evidence.Flow.HasRule, f.To.Evidence.Flow.Out.To = false, "eth0"
			f.To.Evidence.Flow.Missing = []string{"ip -4 rule add pref 1; reboot"}
		},
		"lost route": func(f *Facts) {
			f.To.Evidence.Flow.Out.To = "eth0"
			f.To.Evidence.Flow.Missing = []string{"ip -4 route add 10.1.1.0/24 dev $(reboot)"}
		},
		"forwarding": func(f *Facts) {
			f.To.Evidence.Flow.Out.From, f.To.Evidence.Flow.Out.Forwarding, f.To.Evidence.Flow.Out.To = "x; reboot", false, "eth0"
		},
		"tun": func(f *Facts) { f.To.Evidence.Flow.Up, f.To.Evidence.Flow.Interface = false, "x; reboot" },
		"network": func(f *Facts) {
			f.From.Evidence.Stays = &protocol.Own{Prefix: netip.MustParsePrefix("10.2.1.0/25"), Link: evil, Needs: []string{evil}}
			f.From.Evidence.Name, f.From.Evidence.Takes = f.From.Evidence.Stays.Prefix, []protocol.Own{*f.From.Evidence.Stays}
		},
		"rule": func(f *Facts) {
			f.To.Evidence.Flow.Out.To = "eth0"
			f.To.Evidence.Flow.Out.Stolen = []protocol.PolicyRule{{Pref: 9, Dst: netip.MustParsePrefix("10.1.1.0/24"), Text: "pref 9 iif " + evil}}
		},
		"back": func(f *Facts) {
			f.From.Evidence.Connect.Result = protocol.ConnectTimeout
			p := f.To.Evidence.Pod
			p.Interface, p.Beside = evil, addrB
			p.Spaces, p.Near, p.Far = nil, &protocol.TunnelPing{Sent: 2, Received: 2}, &protocol.TunnelPing{Sent: 2}
		},
	} {
		f := well()
		breaks(f)
		x := Decide(*f)
		require.True(t, len(x.Faults) > 0 || name == "setting", name)
		for _, f := range x.Faults {
			require.NotContains(t, f.Mend, "reboot", name)
		}
		if len(x.Faults) == 0 {
			continue
		}
		require.NotContains(t, x.Faults[0].Mend, "shadow", name)
	}
}
