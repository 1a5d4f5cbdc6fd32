package doctor

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// healthy is a hub with two nodes that reach each other directly.
func healthy() Facts {
	node := func(number, peer protocol.NodeNumber, name, peerName string) api.Node {
		return api.Node{Name: name, Site: "s-" + name, Number: number, State: api.NodeReady, StateSince: now.Add(-time.Hour), Connected: now.Add(-time.Hour), AgentVersion: "v1.0.0",
			Conditions: []protocol.Condition{{Name: "tunnel", OK: true}},
			Paths: []protocol.PathStatus{{Peer: 1, Name: "hub", Path: protocol.PathDirect},
				{Peer: peer, Name: peerName, Path: protocol.PathDirect, RTT: 20 * time.Millisecond, Loss: 0.01, MTU: 1420}},
			Routes: []api.Route{{Node: name, Prefix: netip.MustParsePrefix("10.1.0.0/24"), State: protocol.RouteApproved, Owner: true}}}
	}
	return Facts{Now: now, Upgrades: map[protocol.NodeNumber]bool{2: true}, CAExpires: now.AddDate(5, 0, 0),
		Status:    api.Status{Hub: api.HubStatus{Version: "v1.0.0", PublicUDP: "hub:51820"}, Conditions: []protocol.Condition{{Name: "disk", OK: true}}},
		Nodes:     []api.Node{node(2, 3, "n1", "n2"), node(3, 2, "n2", "n1")},
		Incidents: []api.Incident{{ID: "2-1", Node: "n1", Incident: protocol.Incident{State: protocol.IncidentOver}}},
		Admins:    []api.Admin{{Name: "joe", Role: "viewer", State: "active", Expires: now.AddDate(0, 0, 60)}, {Name: "old", State: "expired", Expires: now.AddDate(0, 0, -1)}}}
}

func TestHealthyGivesNothing(t *testing.T) {
	require.Equal(t, api.Checkup{Findings: []api.Finding{}, Nodes: 2, Pairs: 1, Open: true}, Examine(healthy()))
	require.Equal(t, api.Checkup{Findings: []api.Finding{}, Open: true}, Examine(Facts{}), "a hub without nodes")
}

// finding is one that a fault alone gives.
type finding struct {
	severity, check, where, mend string
	fault                        func(*Facts)
}

// refusedFlow is one that n1 refuses again and again.
func refusedFlow(proto uint8, port uint16, nobodys bool) Refused {
	return Refused{Node: "n1", Why: "closed: no rule opens it", Nobodys: nobodys, RefusedFlow: protocol.RefusedFlow{From: netip.MustParseAddr("10.2.0.7"), To: netip.MustParseAddr("10.1.0.1"), Proto: proto, Port: port, Count: 100, Since: time.Unix(1e9, 0)}}
}

func serviceFault(check string) func(*Facts) {
	return func(f *Facts) { f.Services = []Service{{"web", check, "why"}} }
}

func findings() []finding {
	hubCondition := func(c protocol.Condition) func(*Facts) {
		return func(f *Facts) { f.Status.Conditions = append(f.Status.Conditions, c) }
	}
	a := func(change func(*api.Node)) func(*Facts) { return func(f *Facts) { change(&f.Nodes[0]) } }
	px := netip.MustParsePrefix("10.9.0.0/24")
	pending := func(f *Facts) { f.Nodes[0].Routes[0] = api.Route{Node: "n1", Prefix: px, State: protocol.RoutePending} }
	return append([]finding{
		{"critical", "hub-disk", "hub", "journalctl", func(f *Facts) { f.Status.Conditions[0] = protocol.Condition{Name: "disk", Cause: "full"} }},
		{"critical", "hub-tunnel", "hub", "journalctl", hubCondition(protocol.Condition{Name: "tunnel", Cause: "no port"})},
		{"warning", "hub-archive", "hub", "causeway backup", hubCondition(protocol.Condition{Name: "archive", Cause: "log/3.zst is damaged"})},
		{"critical", "hub-nats", "hub", "journalctl", hubCondition(protocol.Condition{Name: "nats", Cause: "away"})},
		{"critical", "hub-state", "hub", "journalctl", hubCondition(protocol.Condition{Name: "state", Cause: "broken"})},
		{"warning", "hub-keys", "hub", "causeway node rotate-key n1 --wait", hubCondition(protocol.Condition{Name: "keys", Cause: "node n1: asked for a new key at 2026, it still has the old one; and 2 more nodes are overdue"})},
		{"warning", "hub-hub_list", "hub", "journalctl", hubCondition(protocol.Condition{Name: "hub_list", Cause: "old"})},
		{"warning", "hub-inventory", "hub", "causeway events", hubCondition(protocol.Condition{Name: "inventory", Cause: "nonsense"})},
		{"warning", "hub-certificate", "hub", "admins.md", func(f *Facts) { f.CAExpires = now.Add(time.Hour) }},
		{"critical", "hub-certificate", "hub", "admins.md", func(f *Facts) { f.CAExpires = now.Add(-time.Hour) }},
		{"critical", "policy-stuck", "hub", "causeway policy status", func(f *Facts) { f.Status.Policies.Error = "policies cannot be compiled" }},
		{"warning", "policy-doubt", "hub", "causeway policy status", func(f *Facts) { f.Status.Policies.Doubts = []string{"site a is in segments x and y"} }},
		{"warning", "node-unknown", "x", "token create --site s", func(f *Facts) { f.Status.Unknown = []api.UnknownNode{{Name: "x", Site: "s", ReportedBy: "n1"}} }},
		{"warning", "node-unknown", "x; reboot", "causeway status", func(f *Facts) {
			f.Status.Unknown = []api.UnknownNode{{Name: "x; reboot", Site: "s", ReportedBy: "n1"}}
		}},
		{"critical", "node-unreachable", "n1", "on n1: systemctl", a(func(n *api.Node) {
			n.State, n.Connected, n.AgentVersion, n.Refused = api.NodeUnreachable, time.Time{}, "v0", []protocol.RefusedPart{{Peer: 3}}
		})},
		{"critical", "node-quarantined", "n1", "node release n1", a(func(n *api.Node) { n.State = api.NodeQuarantined })},
		{"warning", "node-never-seen", "n1", "causeway-agent doctor", a(func(n *api.Node) { n.State, n.Connected = api.NodeJoined, time.Time{} })},
		{"warning", "condition-clock", "n1", "node show n1", a(func(n *api.Node) {
			n.State, n.Conditions = api.NodeDegraded, []protocol.Condition{{Name: "clock", Cause: "a day back"}, {Name: "nats", Cause: "refused", DependsOn: []string{"clock"}}}
		})},
		{"warning", "condition-paths", "n1", "node show n1", a(func(n *api.Node) {
			n.State, n.Conditions = api.NodeReady, []protocol.Condition{{Name: protocol.ConditionPaths, Cause: "none arrived"}}
		})},
		{"warning", "node-degraded", "n1", "node show n1", a(func(n *api.Node) { n.State, n.Reasons = api.NodeDegraded, []string{"why"} })},
		{"warning", "identity-unproven", "n1", "causeway node upgrade n1", a(func(n *api.Node) { n.Unproven = true })},
		{"info", "node-drained", "n1", "undrain n1", a(func(n *api.Node) { n.Drained = now })},
		{"warning", "upgrade-failed", "n1", "node upgrade n1", a(func(n *api.Node) { n.Upgrade = &api.NodeUpgrade{State: protocol.UpgradeFailed} })},
		{"warning", "policy-refuses", "n1", "causeway policy test 10.2.0.7 10.1.0.1 tcp/22", func(f *Facts) { f.Refused = []Refused{refusedFlow(6, 22, false)} }},
		{"warning", "policy-refuses", "n1", "causeway policy test 10.2.0.7 10.1.0.1 any", func(f *Facts) { f.Refused = []Refused{refusedFlow(47, 0, false)} }},
		{"warning", "policy-refuses", "n1", "causeway route list", func(f *Facts) { f.Refused = []Refused{refusedFlow(6, 22, true)} }},
		{"warning", "service-empty", "web", "causeway service show web", serviceFault("service-empty")},
		{"warning", "service-selects-nobody", "web", "causeway service show web", serviceFault("service-selects-nobody")},
		{"warning", "service-no-route", "web", "causeway route list", serviceFault("service-no-route")},
		{"warning", "service-public", "web", "causeway service show web", serviceFault("service-public")},
		{"critical", "service-switch", "web", "causeway service show web", serviceFault("service-switch")},
		{"warning", "service-surplus", "web", "causeway service show web", serviceFault("service-surplus")},
		{"warning", "netmap-refused", "n1", "diag explain n1 n2", a(func(n *api.Node) {
			n.Refused = []protocol.RefusedPart{{Peer: 3, Prefix: "10.0.0.0/8", Reason: "accept"}}
		})},
		{"warning", "netmap-refused", "n1", "causeway get limit branch", a(func(n *api.Node) {
			n.Refused = []protocol.RefusedPart{{Kind: "limit", Name: "branch", Reason: "it limits nothing"}}
		})},
		{"info", "range-held", "n1", "on n1: causeway-agent status", a(func(n *api.Node) {
			n.Conditions = []protocol.Condition{{Name: "held", OK: true, Note: "'causeway-agent release 10.9.0.0/16' …"}, {Name: "local", OK: true}}
		})},
		{"info", "range-excepted", "n1", "on n1: causeway-agent status", a(func(n *api.Node) {
			n.Conditions = []protocol.Condition{{Name: "held", OK: true}, {Name: "local", OK: true, Note: "10.9.0.53 (resolver)"}}
		})},
		{"warning", "announces-often", "n1", "causeway events", func(f *Facts) { f.Late = map[protocol.NodeNumber]bool{2: true} }},
		{"warning", "netmap-behind", "n1", "journalctl", func(f *Facts) { f.Behind = map[protocol.NodeNumber]time.Duration{2: time.Minute} }},
		{"critical", "node-set-back", "n1", "token create --site s-n1 --replace n1 --route 10.1.0.0/24 --label 'rack=a b' --label zone=1, then there", func(f *Facts) {
			f.Nodes[0].Labels = map[string]string{"zone": "1", "rack": "a b"}
			f.Strays = []Stray{{Node: "n1", Site: "s-n1", Number: 2, Addr: "192.0.2.7", Epoch: 1, KeyEpoch: 3}}
		}},
		{"warning", "node-set-back", "n1", "stop the agent there; if nobody knows that host: causeway node revoke n1", func(f *Facts) {
			f.Strays = []Stray{{Node: "n1", Site: "s-n1", Number: 2, Addr: "192.0.2.7", Epoch: 1, KeyEpoch: 3, There: true}}
		}},
		{"warning", "node-set-back", "x", "token create --site s", func(f *Facts) {
			f.Strays = []Stray{{Node: "x", Site: "s", Number: 7, Addr: "192.0.2.7", Gone: "left"}}
		}},
		{"info", "node-set-back", "n1", "stop the agent there", func(f *Facts) {
			f.Strays = []Stray{{Node: "n1", Site: "s-n1", Number: 1, Addr: "192.0.2.7", Gone: "revoked", There: true}}
		}},
		{"info", "backup-old", "hub", "causeway backup", a(func(n *api.Node) { n.Joined = now.AddDate(0, 0, -8) })},
		{"info", "backup-old", "hub", "causeway backup", func(f *Facts) { f.Nodes[0].Joined, f.Backup = now.AddDate(0, -2, 0), now.AddDate(0, 0, -8) }},
		{"info", "agent-version", "n1", "node upgrade n1", a(func(n *api.Node) { n.AgentVersion = "v0.9.0" })},
		{"info", "agent-version", "n1", "install the package", func(f *Facts) { f.Nodes[0].AgentVersion, f.Upgrades = "v0.9.0", nil }},
		{"warning", "route-not-approved", "n1", "route approve n1 10.9.0.0/24", pending},
		{"warning", "route-overlaps", "n1", "route reject n1 10.9.0.0/24", func(f *Facts) {
			pending(f)
			f.Conflicts = map[RouteKey]string{{"n1", "10.9.0.0/24"}: "n2 has it"}
		}},
		{"info", "route-forbidden", "n1", "on n1 take 10.9.0.0/24 out of routes:", a(func(n *api.Node) {
			n.Routes[0] = api.Route{Prefix: px, State: protocol.RouteRejected, Why: "loopback"}
		})},
	}, pathFindings()...)
}

// pathFindings are those of paths, incidents and admins.
func pathFindings() []finding {
	a := func(change func(*api.Node)) func(*Facts) { return func(f *Facts) { change(&f.Nodes[0]) } }
	path := func(change func(*protocol.PathStatus)) func(*Facts) {
		return func(f *Facts) { change(&f.Nodes[1].Paths[1]) }
	}
	return []finding{
		{"warning", "udp-blocked", "n1", "hub:51820", a(func(n *api.Node) { n.Paths[0].Path = protocol.PathStream })},
		{"info", "path-relayed", "n1 n2", "diag path n1 n2", path(func(p *protocol.PathStatus) { p.Path = protocol.PathRelay })},
		{"warning", "path-loss", "n1 n2", "diag trace n1 n2", path(func(p *protocol.PathStatus) { p.Loss = 0.05 })},
		{"warning", "path-slow", "n1 n2", "diag trace n1 n2", path(func(p *protocol.PathStatus) { p.RTT = time.Second })},
		{"warning", "mtu-small", "n1 n2", "diag mtu n1 n2", path(func(p *protocol.PathStatus) { p.MTU = 1279 })},
		{"warning", "incident-open", "n1", "incidents show 2-1", func(f *Facts) { f.Incidents[0].State = protocol.IncidentOpen }},
		{"critical", "repair-stopped", "n1", "causeway-agent repair", func(f *Facts) { f.Incidents[0].State = protocol.IncidentStopped }},
		{"warning", "admin-expires", "admin joe", "causeway admin create joe-2 --role viewer --file joe-2.context; once that file is imported: causeway admin revoke joe", func(f *Facts) { f.Admins[0].Expires = now.Add(time.Hour) }},
	}
}

// Each fault alone gives one finding, at its place, with what mends it.
func TestEachFinding(t *testing.T) {
	for _, c := range findings() {
		t.Run(c.severity+" "+c.check, func(t *testing.T) {
			f := healthy()
			c.fault(&f)
			l := Examine(f).Findings
			require.Len(t, l, 1, "%+v", l)
			require.Equal(t, []string{c.severity, c.check, c.where}, []string{l[0].Severity, l[0].Check, l[0].Where})
			require.Contains(t, l[0].Mend, c.mend)
			require.NotEmpty(t, l[0].Summary)
		})
	}
}

// Many pairs behind NATs are one line.
func TestRelayedPairsAreOneFinding(t *testing.T) {
	f := healthy()
	for i := range protocol.NodeNumber(9) {
		n := f.Nodes[1]
		n.Name, n.Number, n.Paths = fmt.Sprintf("n%d", i), 10+i, []protocol.PathStatus{{Peer: f.Nodes[0].Number, Path: protocol.PathRelay}}
		f.Nodes = append(f.Nodes, n)
	}
	l := Examine(f).Findings
	require.Len(t, l, 1)
	require.Contains(t, l[0].Summary, "and so do 8 other pairs")
}

// What is no trouble: nodes of the past, idle paths, pairs whose other end is away.
func TestNoFinding(t *testing.T) {
	f := healthy()
	f.Nodes[0].Joined, f.Backup = now.AddDate(0, -1, 0), now.AddDate(0, 0, -6)
	f.Behind = map[protocol.NodeNumber]time.Duration{2: 20 * time.Second}
	f.Nodes[0].Paths[1] = protocol.PathStatus{Peer: 3, Path: protocol.PathNone}
	f.Nodes[1].Paths[1].Path, f.Nodes[1].Paths[1].Idle = protocol.PathRelay, true
	f.Nodes = append(f.Nodes, api.Node{Name: "gone", Number: 4, State: api.NodeRevoked}, api.Node{Name: "left", Number: 5, State: api.NodeLeft})
	f.Nodes[0].Paths = append(f.Nodes[0].Paths, protocol.PathStatus{Peer: 4, Path: protocol.PathRelay, Loss: 1})
	require.Equal(t, api.Checkup{Findings: []api.Finding{}, Nodes: 2, Open: true}, Examine(f))
}

// The worst comes first, texts are one short line, and the answer is bounded.
func TestOrderAndBounds(t *testing.T) {
	f := healthy()
	f.Nodes[0].Drained = now
	f.Nodes[0].Routes[0].State = protocol.RoutePending
	f.Nodes[1].State, f.Nodes[1].Connected, f.Nodes[1].Reasons = api.NodeUnreachable, time.Time{}, []string{"silent\nfor long"}
	var got []string
	for _, x := range Examine(f).Findings {
		got = append(got, x.Severity+" "+x.Where+" "+x.Check)
		require.NotContains(t, x.Summary, "\n")
	}
	require.Equal(t, []string{"critical n2 node-unreachable", "warning n1 route-not-approved", "info n1 node-drained"}, got)

	for i := range 2 * api.MaxFindings {
		f.Incidents = append(f.Incidents, api.Incident{ID: fmt.Sprint(i), Node: "n1", Incident: protocol.Incident{State: protocol.IncidentOpen, Reason: string(make([]byte, 5000))}})
	}
	k := Examine(f)
	require.Len(t, k.Findings, api.MaxFindings)
	require.Equal(t, api.MaxFindings+3, k.LeftOut)
	require.Equal(t, "node-unreachable", k.Findings[0].Check)
	for _, x := range k.Findings {
		require.LessOrEqual(t, len(x.Summary), maxText+len("…"))
	}
}
