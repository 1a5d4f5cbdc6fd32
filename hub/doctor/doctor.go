// Package doctor says what is wrong with a cluster: Examine judges what a hub knows
// of itself, its nodes and their paths. It asks nobody: agents report their conditions,
// paths and incidents by themselves. Why one flow does not pass is hub/explain's part.
package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"causeway/hub/api"
	"causeway/protocol"
)

// Limits from which on something is a finding.
const (
	expireSoon = 14 * 24 * time.Hour    // of certificates
	lossHigh   = 0.05                   // as path-loss of hub/explain has it
	rttHigh    = 400 * time.Millisecond // farther than any two places need
	behindLong = 30 * time.Second       // an agent applies a netmap within seconds
	backupOld  = 7 * 24 * time.Hour
	mtuSmall   = 1280 // what IPv6 needs (RFC 8200, section 5)
	maxText    = 400
	// maxRouteFindings bounds the findings on routes of one node.
	maxRouteFindings = 10
)

// Facts is what is known. Zero values are what is not.
type Facts struct {
	Now       time.Time
	Status    api.Status
	Nodes     []api.Node
	Incidents []api.Incident
	// Conflicts says of routes that wait for approval what keeps them from it.
	Conflicts map[RouteKey]string
	CAExpires time.Time   // of the certificates for administration from elsewhere
	Admins    []api.Admin // that whoever asks may see
	Backup    time.Time   // when the last one was taken of this hub
	// Behind is for how long nodes have owed a newer netmap than they applied.
	Behind map[protocol.NodeNumber]time.Duration
	// Late are nodes that announce other routes so often that the hub stores no more of it for now.
	Late map[protocol.NodeNumber]bool
	// Upgrades are nodes that let their hub upgrade them.
	Upgrades map[protocol.NodeNumber]bool
	// Refused are flows that nodes refuse again and again.
	Refused []Refused
	// Services are what is wrong with services.
	Services []Service
	// Strays are hosts that have an earlier state of a node.
	Strays []Stray
}

// Stray is a host with the identity of a node, by which it gets no session: it has a key that
// was rotated out, or the node is gone.
type Stray struct {
	Node, Site      string
	Number          protocol.NodeNumber
	Addr            string // from which it asks
	Epoch, KeyEpoch uint32 // of its key, and the node's
	Gone            string // how the node went; empty: it is there
	There           bool   // a node of that name has a session
}

// RouteKey names a route.
type RouteKey struct{ Node, Prefix string }

// Examine judges facts. Nothing wrong gives no findings. It does no I/O.
func Examine(f Facts) api.Checkup {
	e := examine(f)
	slices.SortStableFunc(e.out.Findings, func(a, b api.Finding) int {
		return cmp.Or(cmp.Compare(slices.Index(api.Severities, a.Severity), slices.Index(api.Severities, b.Severity)), cmp.Compare(a.Where, b.Where))
	})
	if n := len(e.out.Findings) - api.MaxFindings; n > 0 {
		e.out.Findings, e.out.LeftOut = e.out.Findings[:api.MaxFindings], n
	}
	if e.out.Findings == nil {
		e.out.Findings = []api.Finding{}
	}
	return e.out
}

// Count counts the findings of each severity, none left out.
func Count(f Facts) map[string]int {
	out := map[string]int{}
	for _, s := range api.Severities {
		out[s] = 0
	}
	for _, x := range examine(f).out.Findings {
		out[x.Severity]++
	}
	return out
}

func examine(f Facts) *examination {
	e := &examination{Facts: f, nodes: map[protocol.NodeNumber]api.Node{}}
	for _, n := range f.Nodes {
		e.nodes[n.Number] = n
	}
	e.out.Open = f.Status.Policies.Segments+f.Status.Policies.Policies == 0
	e.hub()
	for _, n := range f.Nodes {
		e.node(n)
	}
	e.unproven()
	e.strays()
	e.pairs()
	e.incidents()
	e.refused()
	e.services()
	e.admins()
	e.backup()
	return e
}

type examination struct {
	Facts
	nodes map[protocol.NodeNumber]api.Node
	out   api.Checkup
}

func (e *examination) find(severity, check, where string, since time.Time, mend, summary string, args ...any) {
	e.out.Findings = append(e.out.Findings, api.Finding{Severity: severity, Check: check, Where: where, Since: since, Mend: mend,
		Summary: protocol.OneLine(fmt.Sprintf(summary, args...), maxText)})
}

// roots leaves out conditions that are ok, or that follow from another of the list.
func roots(l []protocol.Condition) (out []protocol.Condition) {
	failed := map[string]bool{}
	for _, c := range l {
		failed[c.Name] = !c.OK
	}
	for _, c := range l {
		if !c.OK && !slices.ContainsFunc(c.DependsOn, func(d string) bool { return d != c.Name && failed[d] }) {
			out = append(out, c)
		}
	}
	return out
}

func (e *examination) hub() {
	for _, c := range roots(e.Status.Conditions) {
		severity, mend := api.SeverityWarning, "on the hub's host: journalctl -u causeway-hub"
		switch c.Name {
		case "state", "disk", "nats", "tunnel":
			severity = api.SeverityCritical
		case "keys":
			mend = rotate(c.Cause)
		case "inventory":
			mend = "causeway events"
		case "archive":
			mend = "copy the file that it names from a copy of the hub's data directory, then: causeway backup FILE --recipient age1…"
		}
		e.find(severity, "hub-"+c.Name, "hub", c.Since, mend, "%s: %s", c.Name, c.Cause)
	}
	if p := e.Status.Policies; p.Error != "" {
		e.find(api.SeverityCritical, "policy-stuck", "hub", time.Time{}, "causeway policy status", "%s", p.Error)
	}
	for _, d := range e.Status.Policies.Doubts {
		e.find(api.SeverityWarning, "policy-doubt", "hub", time.Time{}, "causeway policy status", "%s: what is in doubt is closed", d)
	}
	for _, u := range e.Status.Unknown {
		mend := "causeway status"
		if protocol.ValidName(u.Name) && protocol.ValidName(u.Site) { // an agent's word, which stands in a command
			mend = fmt.Sprintf("causeway token create --site %s, then on %s, with the agent stopped: %s", u.Site, u.Name, api.JoinAnew(u.Name))
		}
		e.find(api.SeverityWarning, "node-unknown", u.Name, time.Time{}, mend,
			"it joined after the backup that this hub was restored from, says %s: it has to join again, with --route for what routes it got by its token", u.ReportedBy)
	}
	if left := e.CAExpires.Sub(e.Now); !e.CAExpires.IsZero() && left < expireSoon {
		e.find(expiry(left), "hub-certificate", "hub", time.Time{}, "contexts and NATS users depend on it: see docs/guide/admins.md",
			"the CA of certificates for administration %s at %s", expires(left), e.CAExpires.UTC().Format(time.RFC3339))
	}
}

// rotate has the node that condition keys names make a new key.
func rotate(cause string) string {
	node, _, _ := strings.Cut(strings.TrimPrefix(cause, "node "), ":")
	if !protocol.ValidName(node) {
		return "causeway status"
	}
	return "causeway node rotate-key " + node + " --wait"
}

// upgrade is how a node gets its hub's version: by its hub if its host allows that.
func (e *examination) upgrade(n api.Node) string {
	if !n.Connected.IsZero() && !e.Upgrades[n.Number] {
		return fmt.Sprintf("on %s install the package causeway-agent of %s; or let its hub do it: upgrade: in /etc/causeway/agent.yaml there", n.Name, e.Status.Hub.Version)
	}
	return "causeway node upgrade " + n.Name
}

// unproven names the nodes that anything on their hosts can pass as, in one line.
func (e *examination) unproven() {
	var names []string
	var first api.Node
	for _, n := range e.Facts.Nodes {
		if n.Unproven && n.State != api.NodeLeft && n.State != api.NodeRevoked {
			if names = append(names, n.Name); len(names) == 1 {
				first = n
			}
		}
	}
	if len(names) > 0 {
		e.find(api.SeverityWarning, "identity-unproven", names[0], time.Time{}, e.upgrade(first),
			"agents that do not prove who they are, or only since some minutes ago, so that whatever runs on their hosts can pass for them, until the hub runs with --require-proof (%d): %s", len(names), strings.Join(names, ", "))
	}
}

// strays names hosts with an earlier state of a node. While the node is there itself they are
// copies; else the node's disk was set back, most likely.
func (e *examination) strays() {
	for _, x := range e.Facts.Strays {
		const set = "its disk was set back to an earlier time, or it is a copy"
		node := e.nodes[x.Number]
		node.Name, node.Site = x.Node, x.Site
		again := fmt.Sprintf("put the newer state directory back there; or: %s, then there, with the agent stopped: %s", api.TokenAnew(node), api.JoinAnew(x.Node))
		switch {
		case x.Gone != "" && x.There:
			e.find(api.SeverityInfo, "node-set-back", x.Node, time.Time{}, "stop the agent there", "a host at %s has the identity of node %d, which is gone (%s) and which the node of that name now, which is there, is not", x.Addr, x.Number, x.Gone)
		case x.Gone != "":
			e.find(api.SeverityWarning, "node-set-back", x.Node, time.Time{}, fmt.Sprintf("stop the agent there; or, if that host is to be a node: causeway token create --site %s, then there: %s", x.Site, api.JoinAnew(x.Node)),
				"a host at %s has the identity of node %d, which is gone (%s): %s, or its agent was left running", x.Addr, x.Number, x.Gone, set)
		case x.There:
			e.find(api.SeverityWarning, "node-set-back", x.Node, time.Time{}, fmt.Sprintf("stop the agent there; if nobody knows that host: causeway node revoke %s, and join the node again", x.Node),
				"beside the node, a host at %s has its identity with key epoch %d, older than %d: a copy of an earlier state of the node", x.Addr, x.Epoch, x.KeyEpoch)
		default:
			e.find(api.SeverityCritical, "node-set-back", x.Node, time.Time{}, again, "a host at %s has its identity with key epoch %d, and the node's is %d: %s; a key that was rotated out is not taken again", x.Addr, x.Epoch, x.KeyEpoch, set)
		}
	}
}

// backup names a hub that had something to lose for a while, and no backup lately.
func (e *examination) backup() {
	oldest := e.Now
	for _, n := range e.Facts.Nodes {
		if n.Joined.Before(oldest) && !n.Joined.IsZero() {
			oldest = n.Joined
		}
	}
	const mend = "causeway backup FILE --recipient age1…"
	switch {
	case e.Now.Sub(oldest) < backupOld || e.Now.Sub(e.Backup) < backupOld:
	case e.Backup.IsZero():
		e.find(api.SeverityInfo, "backup-old", "hub", oldest, mend, "no backup was taken of this hub since its first node joined")
	default:
		e.find(api.SeverityInfo, "backup-old", "hub", e.Backup, mend, "the last backup is %d days old", int(e.Now.Sub(e.Backup)/(24*time.Hour)))
	}
}

func expiry(left time.Duration) string {
	if left <= 0 {
		return api.SeverityCritical
	}
	return api.SeverityWarning
}

func expires(left time.Duration) string {
	if left <= 0 {
		return "expired"
	}
	return "expires"
}

func (e *examination) node(n api.Node) {
	show := "causeway node show " + n.Name
	why := strings.Join(n.Reasons, "; ")
	switch n.State {
	case api.NodeLeft, api.NodeRevoked:
		return
	case api.NodeUnreachable:
		e.find(api.SeverityCritical, "node-unreachable", n.Name, n.StateSince, "on "+n.Name+": systemctl start causeway-agent; journalctl -u causeway-agent", "%s", cmp.Or(why, "the hub hears nothing of it"))
	case api.NodeQuarantined:
		e.find(api.SeverityCritical, "node-quarantined", n.Name, n.StateSince, fmt.Sprintf("stop the agent of one of the two hosts, then: causeway node release %s; or, if it is to go: causeway node revoke %s", n.Name, n.Name), "it talks to nobody: %s", why)
	case api.NodeJoined:
		e.find(api.SeverityWarning, "node-never-seen", n.Name, n.Joined, "on "+n.Name+": systemctl enable --now causeway-agent; causeway-agent doctor", "it joined, and its agent was never on the tunnel")
	case api.NodeReady:
		for _, c := range n.Conditions {
			if c.Name == protocol.ConditionPaths && !c.OK {
				e.find(api.SeverityWarning, "condition-"+c.Name, n.Name, c.Since, show, "%s: %s", c.Name, c.Cause)
			}
		}
	case api.NodeDegraded:
		l := roots(n.Conditions)
		for _, c := range l {
			e.find(api.SeverityWarning, "condition-"+c.Name, n.Name, c.Since, show, "%s: %s", c.Name, c.Cause)
		}
		if len(l) == 0 {
			e.find(api.SeverityWarning, "node-degraded", n.Name, n.StateSince, show, "%s", why)
		}
	}
	e.out.Nodes++
	if !n.Drained.IsZero() {
		e.find(api.SeverityInfo, "node-drained", n.Name, n.Drained, "causeway node undrain "+n.Name, "other nodes carry its routes where they can")
	}
	if u := n.Upgrade; u != nil && u.State == protocol.UpgradeFailed {
		e.find(api.SeverityWarning, "upgrade-failed", n.Name, time.Time{}, e.upgrade(n), "the upgrade to %s failed: %s", u.Version, u.Error)
	}
	e.routes(n)
	if e.Late[n.Number] {
		e.find(api.SeverityWarning, "announces-often", n.Name, time.Time{}, "causeway events", "its agent changes what it announces too often: what it said last is stored later")
	}
	if n.Connected.IsZero() {
		return // the rest is of the past
	}
	e.notes(n)
	for _, r := range n.Refused {
		if r.Kind != "" && protocol.ValidName(r.Kind) && protocol.ValidName(r.Name) { // an agent's word, too
			e.find(api.SeverityWarning, "netmap-refused", n.Name, time.Time{}, fmt.Sprintf("causeway get %s %s", r.Kind, r.Name), "its agent refuses %s: %s", r.Part(), r.Reason)
			continue
		}
		what := cmp.Or(r.Prefix, "the peer")
		e.find(api.SeverityWarning, "netmap-refused", n.Name, time.Time{}, fmt.Sprintf("causeway diag explain %s %s", n.Name, e.name(r.Peer)),
			"its agent refuses %s of %s: %s", what, e.name(r.Peer), r.Reason)
	}
	if b := e.Behind[n.Number]; b > behindLong {
		e.find(api.SeverityWarning, "netmap-behind", n.Name, e.Now.Add(-b), "on "+n.Name+": journalctl -u causeway-agent",
			"its agent has not applied the newest netmap for %s: it does not know the changes since", b.Round(time.Second))
	}
	if v := e.Status.Hub.Version; n.AgentVersion != "" && n.AgentVersion != v {
		e.find(api.SeverityInfo, "agent-version", n.Name, time.Time{}, e.upgrade(n), "its agent is %s, the hub %s", n.AgentVersion, v)
	}
}

func (e *examination) name(n protocol.NodeNumber) string {
	if p, ok := e.nodes[n]; ok {
		return p.Name
	}
	return fmt.Sprintf("node %d", n)
}

// routes looks at what waits or cannot be: one node, with all the routes that it may announce, does not crowd the others out.
func (e *examination) routes(n api.Node) {
	before, more := len(e.out.Findings), 0
	for _, r := range n.Routes {
		if len(e.out.Findings)-before < maxRouteFindings {
			e.route(n, r)
		} else if r.State == protocol.RoutePending {
			more++
		}
	}
	if more > 0 {
		e.find(api.SeverityWarning, "route-not-approved", n.Name, time.Time{}, "causeway route list", "%d more routes wait for an admin's approval", more)
	}
}

func (e *examination) route(n api.Node, r api.Route) {
	decide := func(verb string) string { return fmt.Sprintf("causeway route %s %s %s", verb, n.Name, r.Prefix) }
	conflict := e.Conflicts[RouteKey{n.Name, r.Prefix.String()}]
	switch {
	case r.State == protocol.RoutePending && conflict != "":
		e.find(api.SeverityWarning, "route-overlaps", n.Name, time.Time{}, decide("reject"), "route %s waits for a decision and cannot be approved: %s", r.Prefix, conflict)
	case r.State == protocol.RoutePending:
		e.find(api.SeverityWarning, "route-not-approved", n.Name, time.Time{}, decide("approve"), "route %s waits for an admin's approval", r.Prefix)
	case r.State == protocol.RouteRejected && r.Why != "":
		e.find(api.SeverityInfo, "route-forbidden", n.Name, time.Time{}, fmt.Sprintf("on %s take %s out of routes: in /etc/causeway/agent.yaml, then: systemctl reload causeway-agent", n.Name, r.Prefix), "route %s is announced, and no admin can approve it: %s", r.Prefix, r.Why)
	}
}

// pairs looks at the paths between ready nodes, as both ends report them.
func (e *examination) pairs() {
	type pair struct{ a, b protocol.NodeNumber }
	worst := map[pair]protocol.PathStatus{}
	for _, n := range e.Facts.Nodes {
		if n.Connected.IsZero() {
			continue
		}
		for _, p := range n.Paths {
			if p.Path == protocol.PathStream && p.Name == "hub" {
				e.find(api.SeverityWarning, "udp-blocked", n.Name, p.Since, "let UDP pass from "+n.Name+" to "+e.Status.Hub.PublicUDP, "the hub is reached over TCP alone, which is slower")
			}
			peer, known := e.nodes[p.Peer]
			if p.Path == protocol.PathNone || p.Idle || !known || peer.Connected.IsZero() {
				continue // idle, the hub, or the node is named already
			}
			k := pair{min(n.Number, p.Peer), max(n.Number, p.Peer)}
			w, seen := worst[k]
			if !seen {
				worst[k] = p
				continue
			}
			if p.Path != protocol.PathDirect && w.Path == protocol.PathDirect {
				w.Path, w.Since = p.Path, p.Since
			}
			w.Loss, w.RTT = max(w.Loss, p.Loss), max(w.RTT, p.RTT)
			if p.MTU != 0 && (w.MTU == 0 || p.MTU < w.MTU) {
				w.MTU = p.MTU
			}
			worst[k] = w
		}
	}
	e.out.Pairs = len(worst)
	order := make([]pair, 0, len(worst))
	for k := range worst {
		order = append(order, k)
	}
	slices.SortFunc(order, func(x, y pair) int { return cmp.Or(cmp.Compare(x.a, y.a), cmp.Compare(x.b, y.b)) })
	var relayed []pair
	for _, k := range order {
		p, where := worst[k], e.name(k.a)+" "+e.name(k.b)
		if p.Loss >= lossHigh {
			e.find(api.SeverityWarning, "path-loss", where, time.Time{}, "causeway diag trace "+where, "the path (%s) loses %.0f %% of its probes", p.Path, 100*p.Loss)
		}
		if p.RTT >= rttHigh {
			e.find(api.SeverityWarning, "path-slow", where, time.Time{}, "causeway diag trace "+where, "the path (%s) takes %s there and back", p.Path, p.RTT.Round(time.Millisecond))
		}
		if p.MTU != 0 && p.MTU < mtuSmall {
			e.find(api.SeverityWarning, "mtu-small", where, time.Time{}, "causeway diag mtu "+where, "packets of %d bytes at most pass; IPv6 needs %d", p.MTU, mtuSmall)
		}
		if p.Path != protocol.PathDirect {
			relayed = append(relayed, k)
		}
	}
	if n := len(relayed); n > 0 { // sites behind two NATs have many: one line for all
		first := worst[relayed[0]]
		where := e.name(relayed[0].a) + " " + e.name(relayed[0].b)
		also := ""
		if n > 1 {
			also = fmt.Sprintf(", and so do %d other pairs", n-1)
		}
		e.find(api.SeverityInfo, "path-relayed", where, first.Since, "causeway diag path "+where, "they reach each other through the hub (%s)%s", first.Path, also)
	}
}

// incidents names those that last. Of a node that is away the hub has only old ones.
func (e *examination) incidents() {
	connected := map[string]bool{}
	for _, n := range e.Facts.Nodes {
		connected[n.Name] = !n.Connected.IsZero()
	}
	for _, i := range e.Facts.Incidents {
		switch {
		case !connected[i.Node]:
		case i.State == protocol.IncidentStopped:
			e.find(api.SeverityCritical, "repair-stopped", i.Node, i.Since, "find who changes it and end that, then on "+i.Node+": causeway-agent repair", "%s: %s; %s (incident %s)", i.Subject, i.Reason, i.Action, i.ID)
		case i.State == protocol.IncidentOpen:
			e.find(api.SeverityWarning, "incident-open", i.Node, i.Since, "causeway incidents show "+i.ID, "%s: %s", i.Subject, i.Reason)
		}
	}
}

func (e *examination) admins() {
	for _, a := range e.Facts.Admins {
		if left := a.Expires.Sub(e.Now); a.State == "active" && left < expireSoon {
			e.find(api.SeverityWarning, "admin-expires", "admin "+a.Name, time.Time{}, e.adminAnew(a), "the certificate %s at %s", expires(left), a.Expires.UTC().Format(time.RFC3339))
		}
	}
}

// adminAnew gives an admin a certificate under a name that nobody has yet: one name has one certificate.
func (e *examination) adminAnew(a api.Admin) string {
	name := a.Name
	for i := 2; slices.ContainsFunc(e.Facts.Admins, func(o api.Admin) bool { return o.Name == name }); i++ {
		name = fmt.Sprintf("%.58s-%d", a.Name, i)
	}
	return fmt.Sprintf("causeway admin create %s --role %s --file %s.context; once that file is imported: causeway admin revoke %s", name, a.Role, name, a.Name)
}
