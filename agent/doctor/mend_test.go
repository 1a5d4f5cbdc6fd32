package doctor

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/internal/docpage"
	"causeway/netns/lab"
	"causeway/protocol"
)

// mend is what is printed with a check that is not ok; … stands for what the code puts in.
type mend struct {
	check, kind, text string
	test              string // that applies the command in it as it is printed
}

// ledger is every mend that the code of this package has, in the order of docs/DIAG.md.
var ledger = []mend{
	{"kernel", docpage.ByHand, "install a newer kernel", ""},
	{"capabilities", docpage.Shows, "run 'causeway-agent doctor' as root; the package's service has the capability", ""},
	{"nftables", docpage.Shows, "run 'causeway-agent doctor' as root", ""},
	{"nftables", docpage.ByHand, "install the package nftables", ""},
	{"nftables", docpage.ByHand, "load nf_tables, or install a kernel that has it", ""},
	{"tun", docpage.Command, "on a host, run 'modprobe tun; mkdir -p /dev/net; mknod -m 666 /dev/net/tun c 10 200'; in a container, hand the device in (--device /dev/net/tun)", "e2e TestAgentDoctorMends: /dev/net/tun is not there"},
	{"tun", docpage.Command, "on a host, run 'modprobe tun; rm -r /dev/net/tun; mknod -m 666 /dev/net/tun c 10 200'; in a container, hand the device in (--device /dev/net/tun)", "e2e TestAgentDoctorMends: what is at /dev/net/tun is no TUN device"},
	{"tun", docpage.ByHand, "run 'modprobe tun', or install a kernel that has it", ""},
	{"tun", docpage.Shows, "run 'causeway-agent doctor' as root; in a container, allow the device", ""},
	{"clock sync", docpage.ByHand, "run chrony or systemd-timesyncd", ""},
	{"clock", docpage.ByHand, "set the clock, and keep it by chrony or systemd-timesyncd", ""},
	{"firewall", docpage.Command, "run 'nft add rule … meta mark … accept && nft add rule … oifname … accept'", "agent/doctor TestOutputMend"},
	{"firewall", docpage.ByHand, "accept output with the mark …, and output by …", ""},
	{"firewall", docpage.ByHand, "have ufw let out UDP and TCP to the hub's ports, UDP to other nodes, and what goes by …", ""},
	{"firewall", docpage.ByHand, "let packets pass there both ways between the tunnel's interface and the one that pods are behind", ""},
	{"other VPNs", docpage.ByHand, "check that it routes neither the overlay nor other sites' ranges, nor the way to the hub", ""},
	{"rules", docpage.ByHand, "see 'ip rule'; their tables must not have routes for other sites' ranges", ""},
	{"mtu", docpage.ByHand, "give the host a default route, or routes to the hub and the other nodes", ""},
	{"mtu", docpage.ByHand, "raise the MTU of the uplink if it can be", ""},
	{"overlay range", docpage.ByHand, "give what the host has there another range; a hub that no node has joined yet can be run with another --overlay instead", ""},
	{"taken by accept:", docpage.ByHand, "take it out of accept: of the agent's config if this host needs its own, and give one of the two sites another range", ""},
	{"local networks", docpage.ByHand, "give one of the two another range, if they are to reach each other", ""},
	{"held ranges", docpage.Command, "if this host shall reach one by its own routes: causeway-agent release …; in the config, release: […]", "e2e TestClosedOnWithdrawal"},
	{"outside the tunnel", docpage.ByHand, "nothing, if they are this site's", ""},
	{"shields", docpage.ByHand, "write into /etc/causeway/agent.yaml: shields: {state: up, allow: [tcp/22]}, with the ports that shall stay open; then: systemctl reload causeway-agent", ""},
	{"hub", docpage.Shows, "name it: causeway-agent doctor --hub HOST:443", ""},
	{"udp", docpage.Shows, "join, and run this again", ""},
	{"hub … tcp", docpage.ByHand, "mend DNS on this host (/etc/resolv.conf), or the hub's --public-host", ""},
	{"hub … tcp", docpage.ByHand, "let TCP out to …", ""},
	{"hub … tcp", docpage.ByHand, "let the proxy … connect to …", ""},
	{"hub … tcp", docpage.ByHand, "look again in a minute; if it stays, check that causeway-hub runs and what is before it", ""},
	{"hub … tcp", docpage.ByHand, "check the address, and what intercepts TLS on the way", ""},
	{"hub … udp", docpage.ByHand, "let UDP out to …, and its answers in", ""},
	{"nat", docpage.ByHand, "nothing has to be done; a NAT with endpoint-independent mapping gives direct paths", ""},
}

// forwarding is what netns prints against a firewall that drops what is forwarded, for the tunnel's interface cw0
// and pods behind pods0: the agent's condition has the same words.
var forwarding = []mend{
	{"firewall", docpage.Command, drop("ip filter ufw-user-forward", protocol.OwnerUfw), "e2e TestSystemdMatrix: ufw route allow in on cw0 out on pods0 && ufw route allow in on pods0 out on cw0"},
	{"firewall", docpage.Command, drop("inet firewalld filter_FORWARD", ""), "e2e TestSystemdMatrix: firewall-cmd --permanent --zone=trusted --add-interface=cw0 --add-interface=pods0 && firewall-cmd --reload"},
	{"firewall", docpage.ByHand, drop("ip docker-bridges filter-FORWARD", ""), "e2e TestDocker29Rules"},
	{"firewall", docpage.Command, "nft add rule ip fw f iifname cw0 oifname pods0 accept && nft add rule ip fw f iifname pods0 oifname cw0 accept", "e2e TestAgentDoctorMends"},
	{"firewall", docpage.Command, "nft insert rule inet fw f handle 3 iifname cw0 oifname pods0 accept && nft insert rule inet fw f handle 3 iifname pods0 oifname cw0 accept", "netns/look TestForwardBlockedBy"},
	{"firewall", docpage.Command, "iptables-legacy -A FORWARD -i cw0 -o pods0 -j ACCEPT && iptables-legacy -A FORWARD -i pods0 -o cw0 -j ACCEPT", "netns/look TestForwardBlockedBy"},
	{"firewall", docpage.Command, "nft insert rule inet f c handle 3 iifname cw0 oifname pods0 accept", "netns/look TestTrial"},
}

func drop(chain, owner string) string {
	_, mend := protocol.Drop{Hook: "forward", Chain: chain, Owner: owner}.Mend("cw0", "pods0")
	return mend
}

func TestMendLedger(t *testing.T) {
	printed := textsOfCode(t)
	for _, p := range printed {
		if !slices.ContainsFunc(ledger, func(m mend) bool { return m.text == p }) {
			t.Errorf("not in the ledger: %q", p)
		}
	}
	var b strings.Builder
	b.WriteString("| check | its mend |\n|---|---|\n")
	for _, m := range ledger {
		if !slices.Contains(printed, m.text) {
			t.Errorf("%s: nothing prints %q", m.check, m.text)
		}
		if m.kind == docpage.Command {
			require.NotEmpty(t, m.test, "%q is a command, and no test applies it", m.text)
		}
		if m.test != "" {
			docpage.Applied(t, "../..", m.test)
		}
		fmt.Fprintf(&b, "| %s | %s: %s |\n", m.check, m.kind, m.text)
	}
	for _, m := range forwarding {
		require.NotEmpty(t, m.text)
		docpage.Applied(t, "../..", m.test)
		fmt.Fprintf(&b, "| %s | %s: %s |\n", m.check, m.kind, m.text)
	}
	docpage.Check(t, "../../docs/DIAG.md", "agent doctor's mends", b.String())
}

// textsOfCode are the texts that the code gives to Do of a Check, or to do for it.
func textsOfCode(t *testing.T) (out []string) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	add := func(e ast.Expr) {
		s := textOf(e)
		if strings.Trim(s, "… ") != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	named := func(e ast.Expr) bool {
		switch e := e.(type) {
		case *ast.Ident:
			return e.Name == "do" || e.Name == "Do"
		case *ast.SelectorExpr:
			return e.Sel.Name == "Do"
		}
		return false
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.KeyValueExpr:
				if named(n.Key) {
					add(n.Value)
				}
			case *ast.AssignStmt:
				for i, l := range n.Lhs {
					if named(l) && len(n.Rhs) == len(n.Lhs) {
						add(n.Rhs[i])
					}
				}
			}
			return true
		})
	}
	require.Greater(t, len(out), 20)
	return out
}

// textOf is a text as it stands in the code, with … for what is put in.
func textOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		if err != nil {
			return ""
		}
		return s
	case *ast.BinaryExpr:
		return textOf(e.X) + textOf(e.Y)
	case *ast.CallExpr:
		if s, ok := e.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Sprintf" {
			return verbs.Replace(textOf(e.Args[0]))
		}
	case *ast.CompositeLit: // of several advices
		var l []string
		for _, x := range e.Elts {
			l = append(l, textOf(x))
		}
		return strings.Join(l, "; ")
	}
	return "…"
}

var verbs = strings.NewReplacer("%s", "…", "%q", "…", "%d", "…", "%#x", "…", "%[1]s", "…", "%v", "…")

// What is printed against a chain that drops what the host sends is run as it stands: the finding goes, the
// tunnel's own and what goes into it are let out, and nothing else is.
func TestOutputMend(t *testing.T) {
	h := lab.New(t).Host("n1")
	h.Nft(`table inet fw { chain out { type filter hook output priority 0; policy drop; tcp dport 25 drop; }; }`)
	look := func() (out []Check) {
		require.NoError(t, h.Do(func() error {
			out = slices.DeleteFunc(firewalls(t.Context(), Config{}), func(k Check) bool { return k.Name != "firewall" })
			return nil
		}))
		return out
	}
	l := look()
	require.Len(t, l, 1, "%+v", l)
	require.Equal(t, "nftables chain inet fw out drops what the host sends unless a rule accepts it", l[0].What)
	mend, ok := strings.CutPrefix(l[0].Do, "run '")
	require.True(t, ok, l[0].Do)
	h.Sh(strings.TrimSuffix(mend, "'"))
	l = look()
	require.Len(t, l, 1, "%+v", l)
	require.Equal(t, OK, l[0].Status)
	require.Equal(t, "table inet fw {\n\tchain out {\n\t\ttype filter hook output priority filter; policy drop;\n\t\ttcp dport 25 drop\n\t\tmeta mark 0x0000ca5e accept\n\t\toifname \"cw0\" accept\n\t}\n}\n", h.Sh("nft list ruleset"))

	// A name that means something to a shell stands in no command.
	k := output(t.Context(), "echo", chain{"inet", "fw;reboot", "out", "output", "drop"}, "cw0")
	require.Len(t, k, 1)
	require.NotContains(t, k[0].Do, "reboot")
}
