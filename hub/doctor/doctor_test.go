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
	return Facts{Now: now, CAExpires: now.AddDate(5, 0, 0),
		Status:    api.Status{Hub: api.HubStatus{Version: "v1.0.0", PublicUDP: "hub:51820"}, Conditions: []protocol.Condition{{Name: "disk", OK: true}}},
		Nodes:     []api.Node{node(2, 3, "a", "b"), node(3, 2, "b", "a")},
		Incidents: []api.Incident{{ID: "2-1", Node: "a", Incident: protocol.Incident{State: protocol.IncidentOver}}},
		Admins:    []api.Admin{{Name: "joe", State: "active", Expires: now.AddDate(0, 0, 60)}, {Name: "old", State: "expired", Expires: now.AddDate(0, 0, -1)}}}
}

func TestHealthyGivesNothing(t *testing.T) {
	require.Equal(t, api.Checkup{Findings: []api.Finding{}, Nodes: 2, Pairs: 1}, Examine(healthy()))
	require.Equal(t, api.Checkup{Findings: []api.Finding{}}, Examine(Facts{}), "a hub without nodes")
}

// Each fault alone gives one finding, at its place, with what mends it.
func TestEachFinding(t *testing.T) {
	hubCondition := func(c protocol.Condition) func(*Facts) {
		return func(f *Facts) { f.Status.Conditions = append(f.Status.Conditions, c) }
	}
	a := func(change func(*api.Node)) func(*Facts) { return func(f *Facts) { change(&f.Nodes[0]) } }
	path := func(change func(*protocol.PathStatus)) func(*Facts) {
		return func(f *Facts) { change(&f.Nodes[1].Paths[1]) }
	}
	px := netip.MustParsePrefix("10.9.0.0/24")
	pending := func(f *Facts) { f.Nodes[0].Routes[0] = api.Route{Node: "a", Prefix: px, State: protocol.RoutePending} }
	for _, c := range []struct {
		severity, check, where, mend string
		fault                        func(*Facts)
	}{
		{"critical", "hub-disk", "hub", "journalctl", func(f *Facts) { f.Status.Conditions[0] = protocol.Condition{Name: "disk", Cause: "full"} }},
		{"critical", "hub-nats", "hub", "journalctl", hubCondition(protocol.Condition{Name: "nats", Cause: "away"})},
		{"critical", "hub-state", "hub", "journalctl", hubCondition(protocol.Condition{Name: "state", Cause: "broken"})},
		{"warning", "hub-keys", "hub", "rotate-key", hubCondition(protocol.Condition{Name: "keys", Cause: "overdue"})},
		{"warning", "hub-hub_list", "hub", "journalctl", hubCondition(protocol.Condition{Name: "hub_list", Cause: "old"})},
		{"warning", "hub-inventory", "hub", "causeway events", hubCondition(protocol.Condition{Name: "inventory", Cause: "nonsense"})},
		{"warning", "hub-certificate", "hub", "README.md", func(f *Facts) { f.CAExpires = now.Add(time.Hour) }},
		{"critical", "hub-certificate", "hub", "README.md", func(f *Facts) { f.CAExpires = now.Add(-time.Hour) }},
		{"warning", "node-unknown", "x", "token create --site s", func(f *Facts) { f.Status.Unknown = []api.UnknownNode{{Name: "x", Site: "s", ReportedBy: "a"}} }},
		{"critical", "node-unreachable", "a", "on a: systemctl", a(func(n *api.Node) {
			n.State, n.Connected, n.AgentVersion, n.Refused = api.NodeUnreachable, time.Time{}, "v0", []protocol.RefusedPart{{Peer: 3}}
		})},
		{"critical", "node-quarantined", "a", "node release a", a(func(n *api.Node) { n.State = api.NodeQuarantined })},
		{"warning", "node-never-seen", "a", "causeway-agent doctor", a(func(n *api.Node) { n.State, n.Connected = api.NodeJoined, time.Time{} })},
		{"warning", "condition-clock", "a", "node show a", a(func(n *api.Node) {
			n.State, n.Conditions = api.NodeDegraded, []protocol.Condition{{Name: "clock", Cause: "a day back"}, {Name: "nats", Cause: "refused", DependsOn: []string{"clock"}}}
		})},
		{"warning", "condition-paths", "a", "node show a", a(func(n *api.Node) {
			n.State, n.Conditions = api.NodeReady, []protocol.Condition{{Name: protocol.ConditionPaths, Cause: "none arrived"}}
		})},
		{"warning", "node-degraded", "a", "node show a", a(func(n *api.Node) { n.State, n.Reasons = api.NodeDegraded, []string{"why"} })},
		{"warning", "identity-unproven", "a", "--require-proof", a(func(n *api.Node) { n.Unproven = true })},
		{"info", "node-drained", "a", "undrain a", a(func(n *api.Node) { n.Drained = now })},
		{"warning", "upgrade-failed", "a", "node upgrade a", a(func(n *api.Node) { n.Upgrade = &api.NodeUpgrade{State: protocol.UpgradeFailed} })},
		{"warning", "netmap-refused", "a", "diag explain a b", a(func(n *api.Node) {
			n.Refused = []protocol.RefusedPart{{Peer: 3, Prefix: "10.0.0.0/8", Reason: "accept"}}
		})},
		{"info", "range-held", "a", "on a: causeway-agent status", a(func(n *api.Node) {
			n.Conditions = []protocol.Condition{{Name: "held", OK: true, Note: "'causeway-agent release 10.9.0.0/16' …"}, {Name: "local", OK: true}}
		})},
		{"info", "range-excepted", "a", "on a: causeway-agent status", a(func(n *api.Node) {
			n.Conditions = []protocol.Condition{{Name: "held", OK: true}, {Name: "local", OK: true, Note: "10.9.0.53 (resolver)"}}
		})},
		{"warning", "announces-often", "a", "causeway events", func(f *Facts) { f.Late = map[protocol.NodeNumber]bool{2: true} }},
		{"warning", "netmap-behind", "a", "journalctl", func(f *Facts) { f.Behind = map[protocol.NodeNumber]time.Duration{2: time.Minute} }},
		{"critical", "node-set-back", "a", "token create --site s-a --replace a", func(f *Facts) {
			f.Strays = []Stray{{Node: "a", Site: "s-a", Number: 2, Addr: "192.0.2.7", Epoch: 1, KeyEpoch: 3}}
		}},
		{"warning", "node-set-back", "a", "stop the agent there; if nobody knows that host: causeway node revoke a", func(f *Facts) {
			f.Strays = []Stray{{Node: "a", Site: "s-a", Number: 2, Addr: "192.0.2.7", Epoch: 1, KeyEpoch: 3, There: true}}
		}},
		{"warning", "node-set-back", "x", "token create --site s", func(f *Facts) {
			f.Strays = []Stray{{Node: "x", Site: "s", Number: 7, Addr: "192.0.2.7", Gone: "left"}}
		}},
		{"info", "node-set-back", "a", "stop the agent there", func(f *Facts) {
			f.Strays = []Stray{{Node: "a", Site: "s-a", Number: 1, Addr: "192.0.2.7", Gone: "revoked", There: true}}
		}},
		{"info", "backup-old", "hub", "causeway backup", a(func(n *api.Node) { n.Joined = now.AddDate(0, 0, -8) })},
		{"info", "backup-old", "hub", "causeway backup", func(f *Facts) { f.Nodes[0].Joined, f.Backup = now.AddDate(0, -2, 0), now.AddDate(0, 0, -8) }},
		{"info", "agent-version", "a", "node upgrade a", a(func(n *api.Node) { n.AgentVersion = "v0.9.0" })},
		{"warning", "route-not-approved", "a", "route approve a 10.9.0.0/24", pending},
		{"warning", "route-overlaps", "a", "route reject a 10.9.0.0/24", func(f *Facts) {
			pending(f)
			f.Conflicts = map[RouteKey]string{{"a", "10.9.0.0/24"}: "b has it"}
		}},
		{"info", "route-forbidden", "a", "config", a(func(n *api.Node) {
			n.Routes[0] = api.Route{Prefix: px, State: protocol.RouteRejected, Why: "loopback"}
		})},
		{"warning", "udp-blocked", "a", "hub:51820", a(func(n *api.Node) { n.Paths[0].Path = protocol.PathStream })},
		{"info", "path-relayed", "a b", "diag path a b", path(func(p *protocol.PathStatus) { p.Path = protocol.PathRelay })},
		{"warning", "path-loss", "a b", "diag trace a b", path(func(p *protocol.PathStatus) { p.Loss = 0.05 })},
		{"warning", "path-slow", "a b", "diag trace a b", path(func(p *protocol.PathStatus) { p.RTT = time.Second })},
		{"warning", "mtu-small", "a b", "diag mtu a b", path(func(p *protocol.PathStatus) { p.MTU = 1279 })},
		{"warning", "incident-open", "a", "incidents show 2-1", func(f *Facts) { f.Incidents[0].State = protocol.IncidentOpen }},
		{"critical", "repair-stopped", "a", "causeway-agent repair", func(f *Facts) { f.Incidents[0].State = protocol.IncidentStopped }},
		{"warning", "admin-expires", "admin joe", "admin create", func(f *Facts) { f.Admins[0].Expires = now.Add(time.Hour) }},
	} {
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
	require.Equal(t, api.Checkup{Findings: []api.Finding{}, Nodes: 2}, Examine(f))
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
	require.Equal(t, []string{"critical b node-unreachable", "warning a route-not-approved", "info a node-drained"}, got)

	for i := range 2 * api.MaxFindings {
		f.Incidents = append(f.Incidents, api.Incident{ID: fmt.Sprint(i), Node: "a", Incident: protocol.Incident{State: protocol.IncidentOpen, Reason: string(make([]byte, 5000))}})
	}
	k := Examine(f)
	require.Len(t, k.Findings, api.MaxFindings)
	require.Equal(t, api.MaxFindings+3, k.LeftOut)
	require.Equal(t, "node-unreachable", k.Findings[0].Check)
	for _, x := range k.Findings {
		require.LessOrEqual(t, len(x.Summary), maxText+len("…"))
	}
}
