package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// overview is what 'causeway status' says: the hub's own status, and what follows from
// its nodes.
type overview struct {
	api.Status
	Traffic  []traffic `json:"traffic"`
	Problems []trouble `json:"problems"`
}

// traffic is what the nodes of a site say of their tunnels.
type traffic struct {
	Site    string                    `json:"site"`
	Paths   map[protocol.PathKind]int `json:"paths"` // to other nodes, by kind
	Rates   bool                      `json:"rates_known"`
	RxBytes uint64                    `json:"rx_bytes_per_s"`
	TxBytes uint64                    `json:"tx_bytes_per_s"`
}

// trouble is something that is wrong, or waits for an operator.
type trouble struct {
	What  string    `json:"what"`
	Since time.Time `json:"since,omitzero"`
	Why   string    `json:"why"`
	Next  string    `json:"next,omitempty"` // what to do
}

func (c *cli) status() *cobra.Command {
	return c.Leaf(&cobra.Command{
		Use:   "status",
		Short: "Show hub, sites, paths and what is wrong since when, on one screen",
		Long: `Show the hub, its sites with their nodes, paths and rates, and what is wrong or
waits for an operator, since when, and what to do. 'causeway top' shows it live.`,
		Args: frame.Exactly(),
	}, func(ctx context.Context, hub *api.Client, _ []string) error {
		s, err := hub.Status(ctx)
		if err != nil {
			return err
		}
		nodes, err := hub.Nodes(ctx)
		if err != nil {
			return err
		}
		facts, err := hub.Inventories(ctx)
		if err != nil {
			return err
		}
		o := overview{s, siteTraffic(s, nodes, facts), troubles(s, nodes)}
		names := make([]string, len(s.Sites))
		for i, site := range s.Sites {
			names[i] = site.Name
		}
		return c.Show(o, names, func(p *frame.Page) { statusPage(p, o) })
	})
}

func siteTraffic(s api.Status, nodes []api.Node, facts []api.Inventory) []traffic {
	out := make([]traffic, len(s.Sites))
	at := map[string]*traffic{}
	for i, site := range s.Sites {
		out[i] = traffic{Site: site.Name, Paths: map[protocol.PathKind]int{}}
		at[site.Name] = &out[i]
	}
	for _, n := range nodes {
		if t := at[n.Site]; t != nil {
			for _, p := range n.Paths {
				if p.Name != "hub" && p.Path != protocol.PathNone {
					t.Paths[p.Shown()]++
				}
			}
		}
	}
	for _, f := range facts {
		t := at[f.Site]
		if t == nil {
			continue
		}
		for _, p := range f.Paths {
			t.Rates = true
			t.RxBytes += p.RxRate
			t.TxBytes += p.TxRate
		}
	}
	return out
}

// troubles lists what is wrong, the longest first.
func troubles(s api.Status, nodes []api.Node) []trouble {
	out := []trouble{}
	for _, c := range s.Conditions {
		if !c.OK {
			t := trouble{What: "hub: " + c.Name, Since: c.Since, Why: c.Cause}
			if len(c.DependsOn) > 0 {
				t.Why += " (follows from " + strings.Join(c.DependsOn, ", ") + ")"
			}
			out = append(out, t)
		}
	}
	out = append(out, policyTroubles(s.Policies)...)
	for _, n := range s.Policies.Behind {
		out = append(out, trouble{What: "policy: node " + n, Why: "did not acknowledge in time who may talk, and goes on with what it had", Next: "causeway node show " + n})
	}
	for _, n := range nodes {
		t := trouble{What: "node " + n.Name + ": " + n.State, Since: n.StateSince, Why: strings.Join(n.Reasons, "; ")}
		switch n.State {
		case api.NodeLeft, api.NodeRevoked:
			continue
		case api.NodeReady:
		default:
			t.Next = "causeway node show " + n.Name
			out = append(out, t)
		}
		if !n.Drained.IsZero() {
			out = append(out, trouble{What: "node " + n.Name + ": drained", Since: n.Drained, Why: "other nodes carry its routes where they can", Next: "causeway node undrain " + n.Name})
		}
		for _, r := range n.Routes {
			if r.State == protocol.RoutePending {
				out = append(out, trouble{What: "route " + r.Prefix.String(), Why: "of " + n.Name + " waits for a decision", Next: fmt.Sprintf("causeway route approve %s %s", n.Name, r.Prefix)})
			}
		}
	}
	if t, ok := unproven(nodes); ok {
		out = append(out, t)
	}
	slices.SortStableFunc(out, func(a, b trouble) int {
		switch {
		case a.Since.IsZero() == b.Since.IsZero():
			return a.Since.Compare(b.Since)
		case b.Since.IsZero():
			return -1
		}
		return 1
	})
	return out
}

// policyTroubles are what is closed, or not as it is declared, without anybody's having wanted that.
func policyTroubles(s api.PolicyStatus) (out []trouble) {
	if s.Error != "" {
		out = append(out, trouble{What: "policy", Why: s.Error})
	}
	if s.Confirm != nil {
		out = append(out, trouble{What: "policy", Since: s.Confirm.Since, Why: pendingText(s.Confirm), Next: "causeway policy confirm"})
	}
	for _, d := range s.Doubts {
		out = append(out, trouble{What: "policy", Why: d + ": what is in doubt is closed"})
	}
	if s.MoreDoubts > 0 {
		out = append(out, trouble{What: "policy", Why: fmt.Sprintf("%d more that are in two segments", s.MoreDoubts)})
	}
	return out
}

// unproven names the nodes that keep an operator from running the hub with --require-proof.
func unproven(nodes []api.Node) (trouble, bool) {
	var names []string
	for _, n := range nodes {
		if n.Unproven {
			names = append(names, n.Name)
		}
	}
	if len(names) == 0 {
		return trouble{}, false
	}
	const shown = 8
	text := strings.Join(names[:min(len(names), shown)], ", ")
	if n := len(names) - shown; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return trouble{What: fmt.Sprintf("identity of %d nodes", len(names)), Why: "agents of an older version, which do not prove who they are: " + text, Next: "causeway doctor"}, true
}

// policyText says who may talk to whom.
func policyText(s api.PolicyStatus) string {
	switch {
	case s.Segments+s.Policies == 0:
		return "none: every node may talk to every other"
	case s.Policies == 0:
		return fmt.Sprintf("none, segments: %d, each open inside and closed to the others", s.Segments)
	}
	return fmt.Sprintf("what no rule opens is closed; policies: %d, segments: %d", s.Policies, s.Segments)
}

func statusPage(p *frame.Page, o overview) {
	s := o.Status
	p.Facts(
		"Hub", fmt.Sprintf("number %d, version %s, up %s, log sequence %d", s.Hub.Number, s.Hub.Version, frame.Age(s.Hub.Started), s.Hub.LogLength),
		"Public", fmt.Sprintf("%s (udp), %s (https)", s.Hub.PublicUDP, s.Hub.PublicHTTP),
		"Overlay", frame.Join(s.Hub.Overlay),
		"Relay", relayText(s.Relay),
		"Policy", policyText(s.Policies),
	)
	p.Gap()
	if len(s.Sites) == 0 {
		p.Line("No sites yet: causeway site create NAME")
	} else {
		rows := make([][]any, len(s.Sites))
		for i, t := range s.Sites {
			rx, tx := "-", "-"
			if o.Traffic[i].Rates {
				rx, tx = rate(float64(o.Traffic[i].RxBytes)), rate(float64(o.Traffic[i].TxBytes))
			}
			rows[i] = []any{t.Name, t.Nodes, counted(t.Ready, frame.Good), counted(t.Degraded, frame.Warn), counted(t.Unreachable, frame.Bad), kindCounts(o.Traffic[i].Paths), rx, tx}
		}
		p.Table([]string{"SITE", "NODES", "READY", "DEGRADED", "UNREACHABLE", "PATHS", "RECEIVES", "SENDS"}, rows)
	}
	if len(s.Unknown) > 0 {
		rows := make([][]any, len(s.Unknown))
		for i, u := range s.Unknown {
			rows[i] = []any{u.Name, u.Site, u.Number, u.ReportedBy}
		}
		p.Gap()
		p.Line("Joined after the backup that this hub was restored from; they have to join again:")
		p.Table([]string{"NODE", "SITE", "NUMBER", "REPORTED BY"}, rows)
	}
	p.Gap()
	if len(o.Problems) == 0 {
		if len(s.Unknown) == 0 {
			p.Line("%s", p.Paint(frame.Good, "Nothing is wrong"))
		}
		return
	}
	const shown = 12
	var rows [][]any
	for _, t := range o.Problems[:min(len(o.Problems), shown)] {
		since, why := "-", t.Why
		if !t.Since.IsZero() {
			since = frame.Age(t.Since)
		}
		if t.Next != "" {
			why = strings.TrimPrefix(why+"; ", "; ") + "see '" + t.Next + "'"
		}
		rows = append(rows, []any{frame.Cell{Text: t.What, Meaning: frame.Warn}, since, why})
	}
	p.Table([]string{"WRONG", "SINCE", "WHY"}, rows)
	if n := len(o.Problems) - shown; n > 0 {
		p.Line("and %d more: causeway status -o json, causeway node list", n)
	}
}

// rate is bytes a second as bits a second.
func rate(bytes float64) string {
	f, unit := bytes*8, 0
	for f >= 1000 && unit < 4 {
		f, unit = f/1000, unit+1
	}
	digits := 0
	if unit > 0 && f < 100 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, f, []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"}[unit])
}

// counted gives a number a meaning when it is not zero.
func counted(n int, m frame.Meaning) frame.Cell {
	if n == 0 {
		m = frame.Plain
	}
	return frame.Cell{Text: fmt.Sprint(n), Meaning: m}
}

func relayText(r api.RelayStatus) string {
	s := fmt.Sprintf("%d nodes bound, %s in %d datagrams forwarded, ", r.Bound, frame.Size(r.ForwardedBytes), r.Forwarded)
	var total uint64
	var by []string
	for reason, n := range r.Dropped {
		if n > 0 {
			total += n
			by = append(by, fmt.Sprintf("%s %d", reason, n))
		}
	}
	slices.Sort(by)
	s += fmt.Sprintf("%d dropped", total)
	if len(by) > 0 {
		s += " (" + strings.Join(by, ", ") + ")"
	}
	return s
}
