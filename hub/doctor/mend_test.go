package doctor

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/internal/docpage"
	"causeway/protocol"
)

// mend is what is printed with a check's finding.
type mend struct {
	check, kind, text string
	test              string // that applies it as it is printed; of what only shows, none
}

// ledger is every mend that there is. Of a command, and of a command that stands in a text, a test is named
// which makes the fault, reads the command off the finding, runs it and sees the finding go.
var ledger = []mend{
	{"hub-", docpage.Shows, "on the hub's host: journalctl -u causeway-hub", ""},
	{"hub-keys", docpage.Command, "causeway node rotate-key NODE --wait", `e2e TestNodeKeyRotated: node", "rotate-key", "n1", "--wait`},
	{"hub-inventory", docpage.Shows, "causeway events", ""},
	{"hub-archive", docpage.ByHand, "copy the file that it names from a copy of the hub's data directory, then: causeway backup FILE --recipient age1…", "hub TestDamagedArchiveIsNamed"},
	{"policy-stuck", docpage.Shows, "causeway policy status", ""},
	{"policy-doubt", docpage.Shows, "causeway policy status", ""},
	{"node-unknown", docpage.ByHand, "causeway token create --site SITE, then on NODE, with the agent stopped: causeway-agent join --replace TOKEN --name NODE", "e2e TestHubIsSetBackAnywhere"},
	{"node-unknown", docpage.Shows, "causeway status", ""},
	{"hub-certificate", docpage.ByHand, "contexts and NATS users depend on it: see docs/guide/admins.md", ""},
	{"identity-unproven", docpage.Command, "causeway node upgrade NODE", "e2e TestSystemdAgent"},
	{"node-set-back", docpage.ByHand, "stop the agent there", ""},
	{"node-set-back", docpage.ByHand, "stop the agent there; or, if that host is to be a node: causeway token create --site SITE, then there: causeway-agent join --replace TOKEN --name NODE", "e2e TestNodeIsSetBackAnywhere"},
	{"node-set-back", docpage.ByHand, "stop the agent there; if nobody knows that host: causeway node revoke NODE, and join the node again", ""},
	{"node-set-back", docpage.ByHand, "put the newer state directory back there; or: causeway token create --site SITE --replace NODE --route RANGE --label LABEL, then there, with the agent stopped: causeway-agent join --replace TOKEN --name NODE", "e2e TestNodeIsSetBackAnywhere"},
	{"backup-old", docpage.ByHand, "causeway backup FILE --recipient age1…", ""},
	{"node-unreachable", docpage.Command, "on NODE: systemctl start causeway-agent; journalctl -u causeway-agent", "e2e TestDoctorMends: node-unreachable"},
	{"node-quarantined", docpage.ByHand, "stop the agent of one of the two hosts, then: causeway node release NODE; or, if it is to go: causeway node revoke NODE", "e2e TestClonedMachine"},
	{"node-never-seen", docpage.Command, "on NODE: systemctl enable --now causeway-agent; causeway-agent doctor", "e2e TestDoctorMends: node-never-seen"},
	{"condition-", docpage.Shows, "causeway node show NODE", ""},
	{"node-degraded", docpage.Shows, "causeway node show NODE", ""},
	{"node-drained", docpage.Command, "causeway node undrain NODE", "e2e TestDoctorMends: node-drained"},
	{"upgrade-failed", docpage.Command, "causeway node upgrade NODE", "e2e TestSystemdAgent"},
	{"announces-often", docpage.Shows, "causeway events", ""},
	{"policy-refuses", docpage.Shows, "causeway policy test FROM TO PORT", ""},
	{"policy-refuses", docpage.Shows, "causeway route list", ""},
	{"policy-refuses", docpage.Shows, "causeway flows --denied", ""},
	{"service-empty", docpage.Shows, "causeway service show NAME", ""},
	{"service-empty", docpage.Shows, "causeway service list", ""},
	{"service-selects-nobody", docpage.Shows, "causeway service show NAME", ""},
	{"service-no-route", docpage.Shows, "causeway route list", ""},
	{"service-public", docpage.Shows, "causeway service show NAME", ""},
	{"service-switch", docpage.Shows, "causeway service show NAME", ""},
	{"service-surplus", docpage.Shows, "causeway service show NAME", ""},
	{"netmap-refused", docpage.Shows, "causeway diag explain NODE PEER", ""},
	{"netmap-refused", docpage.Shows, "causeway get KIND NAME", ""},
	{"netmap-behind", docpage.Shows, "on NODE: journalctl -u causeway-agent", ""},
	{"agent-version", docpage.Command, "causeway node upgrade NODE", "e2e TestSystemdAgent"},
	{"agent-version", docpage.ByHand, "on NODE install the package causeway-agent of VERSION; or let its hub do it: upgrade: in /etc/causeway/agent.yaml there", ""},
	{"range-held", docpage.Shows, "on NODE: causeway-agent status", ""},
	{"range-excepted", docpage.Shows, "on NODE: causeway-agent status", ""},
	{"route-not-approved", docpage.Command, "causeway route approve NODE RANGE", "e2e TestDoctorMends: route-not-approved"},
	{"route-not-approved", docpage.Shows, "causeway route list", ""},
	{"route-overlaps", docpage.Command, "causeway route reject NODE RANGE", "e2e TestDoctorMends: route-overlaps"},
	{"route-forbidden", docpage.ByHand, "on NODE take RANGE out of routes: in /etc/causeway/agent.yaml, then: systemctl reload causeway-agent", ""},
	{"udp-blocked", docpage.ByHand, "let UDP pass from NODE to hub:51820", ""},
	{"path-loss", docpage.Shows, "causeway diag trace NODE PEER", ""},
	{"path-slow", docpage.Shows, "causeway diag trace NODE PEER", ""},
	{"mtu-small", docpage.Shows, "causeway diag mtu NODE PEER", ""},
	{"path-relayed", docpage.Shows, "causeway diag path NODE PEER", ""},
	{"repair-stopped", docpage.ByHand, "find who changes it and end that, then on NODE: causeway-agent repair", "e2e TestFight"},
	{"incident-open", docpage.Shows, "causeway incidents show ID", ""},
	{"admin-expires", docpage.ByHand, "causeway admin create NAME-2 --role ROLE --file NAME-2.context; once that file is imported: causeway admin revoke NAME", "e2e TestDoctorMends: admin-expires"},
}

// crowded is a node with more routes that wait than are named.
var crowded = finding{check: "route-not-approved", fault: func(f *Facts) {
	for range maxRouteFindings + 1 {
		f.Nodes[0].Routes = append(f.Nodes[0].Routes, api.Route{Node: "n1", Prefix: netip.MustParsePrefix("10.9.0.0/24"), State: protocol.RoutePending})
	}
}}

// refusing is a node that refuses more than is named.
var refusing = finding{check: "policy-refuses", fault: func(f *Facts) {
	for i := range maxRefusedFindings + 2 {
		f.Refused = append(f.Refused, refusedFlow(6, 22, i%2 == 0))
	}
}}

// troubled are more services with a finding than are named.
var troubled = finding{check: "service-empty", fault: func(f *Facts) {
	for i := range maxServiceFindings + 1 {
		f.Services = append(f.Services, Service{fmt.Sprintf("s%d", i), "service-empty", "nobody takes its connections"})
	}
	f.Services = append(f.Services, f.Services[0])
}}

var numbered = regexp.MustCompile(`show s\d+`)

// general is a mend as the ledger has it: without the names of the facts in the tests.
func general(text string) string {
	return strings.NewReplacer("show web", "show NAME", "--label 'rack=a b' --label zone=1", "--label LABEL", "--site s-n1", "--site SITE", "--site s,", "--site SITE,", "n1", "NODE", "on x,", "on NODE,", "--name x", "--name NODE", "n2", "PEER",
		"10.9.0.0/24", "RANGE", "10.1.0.0/24", "RANGE", "v1.0.0", "VERSION", "2-1", "ID", "joe", "NAME", "limit branch", "KIND NAME", "10.2.0.7 10.1.0.1 tcp/22", "FROM TO PORT", "10.2.0.7 10.1.0.1 any", "FROM TO PORT", "--role viewer", "--role ROLE").Replace(numbered.ReplaceAllString(text, "show NAME"))
}

// of reports whether m is of a check; a name that ends with - is of all that begin so and have no mend of their own.
func (m mend) of(check string) bool {
	if !strings.HasSuffix(m.check, "-") {
		return m.check == check
	}
	return strings.HasPrefix(check, m.check) && !slices.ContainsFunc(ledger, func(o mend) bool { return o.check == check })
}

// Whatever is printed is in the ledger, and whatever the ledger has is printed; each command is applied in
// a test that there is, and docs/DIAG.md says the same.
func TestMendLedger(t *testing.T) {
	printed := map[mend]bool{}
	for _, c := range append(findings(), crowded, refusing, troubled) {
		f := healthy()
		c.fault(&f)
		for _, x := range Examine(f).Findings {
			text := general(x.Mend)
			i := slices.IndexFunc(ledger, func(m mend) bool { return m.of(x.Check) && m.text == text })
			if i < 0 {
				t.Errorf("%s prints %q, which is not in the ledger", x.Check, text)
				continue
			}
			printed[ledger[i]] = true
		}
	}
	for _, m := range ledger {
		if !printed[m] {
			t.Errorf("%s: no fault prints %q", m.check, m.text)
		}
		if m.test != "" {
			docpage.Applied(t, "../..", m.test)
		}
		line := strings.HasPrefix(m.text, "causeway ") || strings.HasPrefix(m.text, "on NODE: ")
		switch m.kind {
		case docpage.Command:
			require.True(t, line && m.test != "", "%s: %q is a command, and no test applies it", m.check, m.text)
		case docpage.Shows:
			require.Empty(t, m.test)
		}
	}
	for _, check := range checksOfCode(t) {
		require.True(t, slices.ContainsFunc(ledger, func(m mend) bool { return m.check == check || m.of(check) }), "%s has no mend in the ledger", check)
	}
	docpage.Column(t, "../../docs/DIAG.md", "| check | severity | what it means | its mend |", column)
}

// column is what docs/DIAG.md has of the mends of a row's checks.
func column(checks string) string {
	var out []string
	for c := range strings.SplitSeq(checks, ", ") {
		c = strings.TrimSuffix(strings.Trim(c, "`"), "…")
		for _, m := range ledger {
			text := fmt.Sprintf("%s: `%s`", m.kind, m.text)
			if (m.check == c || m.of(c) || strings.HasSuffix(c, "-") && strings.HasPrefix(m.check, c)) && !slices.Contains(out, text) &&
				!(strings.HasSuffix(c, "-") && m.check == "hub-certificate") { // which has a row
				out = append(out, text)
			}
		}
	}
	return strings.Join(out, "; ")
}

// checksOfCode are the checks that the code names, as many times as it does: each place has a fault in findings.
func checksOfCode(t *testing.T) (out []string) {
	places := map[string]int{}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if s, ok := call.Fun.(*ast.SelectorExpr); !ok || s.Sel.Name != "find" {
				return true
			}
			check := call.Args[1]
			if b, ok := check.(*ast.BinaryExpr); ok { // "hub-" + c.Name
				check = b.X
			}
			lit, ok := check.(*ast.BasicLit)
			require.True(t, ok, "a check of which the name does not stand there: %v", call.Pos())
			places[strings.Trim(lit.Value, `"`)]++
			return true
		})
	}
	require.Greater(t, len(places), 25)
	for check, n := range places {
		have := 0
		for _, c := range append(findings(), crowded, troubled) {
			if c.check == check || strings.HasSuffix(check, "-") && strings.HasPrefix(c.check, check) {
				have++
			}
		}
		require.GreaterOrEqual(t, have, n, "%s is found at %d places, and %d faults are tried", check, n, have)
		out = append(out, check)
	}
	return out
}

// Nothing that is printed has a placeholder but what only a person knows.
func TestMendsAreWhole(t *testing.T) {
	for _, c := range findings() {
		f := healthy()
		c.fault(&f)
		for _, x := range Examine(f).Findings {
			for w := range strings.FieldsSeq(x.Mend) {
				w = strings.Trim(w, ",;:'")
				known := []string{"TOKEN", "FILE", "UDP", "NATS"} // the first is printed by the command before it
				require.False(t, len(w) > 2 && strings.ToUpper(w) == w && strings.ToLower(w) != w && !slices.Contains(known, w), "%s: %q in %q", x.Check, w, x.Mend)
			}
			require.NotEqual(t, api.Finding{}, x)
		}
	}
}
