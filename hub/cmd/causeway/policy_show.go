package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// What a table shows of a rule, in characters: a row fits 100 columns.
const (
	nameShown  = 20
	sideShown  = 19
	allowShown = 13
)

func (c *cli) policyShow() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show the rules of policies, and how many nodes each means now",
		Long: `Show the rules of all policies, or of one: who may reach whom, by which ports, until when,
across which walls, and how many nodes each side means now. 'causeway policy explain RULE'
names them, -o json and yaml have all of it.`,
		Example: "  causeway policy show\n  causeway policy show main -o yaml",
		Args:    frame.Between(0, "NAME"),
		ValidArgsFunction: c.Completer(1, func(ctx context.Context, hub *api.Client, _ []string) ([]string, error) {
			return c.objectNames(ctx, hub, []string{"policy"})
		}),
	}
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		name := ""
		if len(args) == 1 {
			if name = args[0]; frame.CheckName("policy", name) != nil {
				return frame.CheckName("policy", name)
			}
		}
		l, err := hub.PolicyRules(ctx, name)
		if err != nil {
			return err
		}
		return frame.List(c.CLI, l, func(r api.PolicyRuleState) string { return r.Rule }, "No policy has a rule: causeway explain policy-file",
			[]string{"RULE", "FROM", "TO", "ALLOW", "NODES", "TESTS", "UNTIL", "ACROSS"},
			func(_ *frame.Page, r api.PolicyRuleState) []any {
				nodes := frame.Cell{Text: fmt.Sprintf("%d to %d", r.From.Nodes, r.To.Nodes)}
				if r.Why != "" {
					nodes.Meaning = frame.Warn
				}
				return []any{shortened(r.Rule, nameShown), shortened(r.From.Side, sideShown), shortened(r.To.Side, sideShown), shortened(strings.Join(r.Allow, ","), allowShown), nodes, r.Tests, dash(r.Until), dash(strings.Join(r.Across, " "))}
			})
	})
}

// shortened is a text of so many characters at most.
func shortened(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (c *cli) policyStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say who has what is declared of who may talk, and what is wrong with it",
		Long: `Say since when segments and policies are as they are, how many nodes have acknowledged that,
which have not and why, and what is to be looked at: rules that name what is gone, that end
soon or ended, tests that do not hold any more, what is in two segments, and a change that
waits to be confirmed.`,
		Args: frame.Exactly(),
	}
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		r, err := hub.Policy(ctx)
		if err != nil {
			return err
		}
		return c.Show(r, nil, func(p *frame.Page) { policyPage(p, r) })
	})
}

func policyPage(p *frame.Page, r api.PolicyReport) {
	facts := []string{"Policy", policyText(r.PolicyStatus)}
	if !r.Changed.IsZero() {
		facts = append(facts, "Changed", frame.Age(r.Changed)+" ago", "Nodes", fmt.Sprintf("%d/%d have it", r.Have, r.Nodes))
	}
	if r.Confirm != nil {
		facts = append(facts, "Waits", pendingText(r.Confirm)+": causeway policy confirm")
	}
	p.Facts(append(facts, "Stuck", r.Error)...)
	var rows [][]any
	add := func(what, why string) {
		rows = append(rows, []any{frame.Cell{Text: what, Meaning: frame.Warn}, why})
	}
	for _, x := range r.Lack {
		add("node "+x.Node, x.Why)
	}
	if r.MoreLack > 0 {
		add(counts(r.MoreLack, "node"), "more that have not acknowledged it")
	}
	for _, d := range r.Doubts {
		add("closed", d)
	}
	for _, x := range r.Stale {
		add("rule "+x.Rule, "opens nothing: "+x.Why)
	}
	for _, x := range r.Ending {
		add("rule "+x.Rule, x.Why)
	}
	for _, x := range r.Failing {
		add("test", x)
	}
	if len(rows) > 0 {
		p.Gap()
		p.Table([]string{"WHAT", "WHY"}, rows)
	}
}

func (c *cli) policyExplain() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain RULE | explain FROM TO [PORT]",
		Short: "Say what a rule means now, or all that is open between two ends and why",
		Long: `Say what a rule means now: which addresses at which nodes its sides are, and why it opens
nothing where it does not. Or of two ends, addresses or nodes, in which segment they are,
which sides of rules mean them, and all that is open from one to the other and back; with
PORT also whether that is open. 'causeway policy test' answers the last alone, for scripts.`,
		Example: `  causeway policy explain main/web-to-db
  causeway policy explain 10.1.1.11 10.2.1.11 tcp/5432`,
		Args:              frame.Between(1, "RULE or FROM", "TO", "PORT"),
		ValidArgsFunction: c.Completer(2, nodeNames),
	}
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		q := api.PolicyExplain{Rule: args[0]}
		if len(args) > 1 {
			q = api.PolicyExplain{From: args[0], To: args[1]}
		}
		if len(args) > 2 {
			if _, err := protocol.ParsePorts(args[2]); err != nil {
				return frame.Usagef("PORT: %v", err)
			}
			q.Port = args[2]
		}
		e, err := hub.ExplainPolicy(ctx, q)
		if err != nil {
			return err
		}
		return c.Show(e, nil, func(p *frame.Page) {
			if e.Rule != nil {
				rulePage(p, *e.Rule)
			} else {
				endsPage(p, e)
			}
		})
	})
}

func rulePage(p *frame.Page, r api.PolicyRuleState) {
	allow := strings.Join(r.Allow, ", ")
	facts := []string{"Rule", r.Rule, "Allows", allow, "Across", strings.Join(r.Across, " "), "Until", r.Until}
	for _, s := range []struct {
		name string
		api.PolicyMeant
	}{{"From", r.From}, {"To", r.To}} {
		facts = append(facts, s.name, s.Side, "  nodes", atMost(s.Names, s.Nodes), "  addresses", atMost(s.Prefixes, s.Count), "  in", segmentsText(s.Segments))
	}
	if r.Tests > 0 {
		facts = append(facts, "Tests", fmt.Sprintf("%d by it", r.Tests))
	}
	p.Facts(append(facts, "Opens", map[bool]string{true: "nothing: " + r.Why}[r.Why != ""])...)
}

func segmentsText(l []string) string {
	var out []string
	for _, s := range l {
		out = append(out, map[string]string{"": "no segment", "?": "two segments at once"}[s])
		if out[len(out)-1] == "" {
			out[len(out)-1] = "segment " + s
		}
	}
	return strings.Join(out, ", ")
}

// atMost joins the first few of n.
func atMost[T any](l []T, n int) string {
	const shown = 8
	if n == 0 {
		return "none"
	}
	s := frame.Join(l[:min(len(l), shown)])
	if n > shown {
		s += fmt.Sprintf(" and %d more", n-min(len(l), shown))
	}
	return s
}

func endsPage(p *frame.Page, e api.PolicyExplained) {
	var facts []string
	for _, x := range []struct {
		name string
		end  *api.PolicyEnd
	}{{"From", e.From}, {"To", e.To}} {
		text := x.end.Asked
		if x.end.Prefix.IsValid() {
			text = fmt.Sprintf("%s: %s at %s of %s, %s", x.end.Asked, x.end.Prefix, strings.Join(x.end.Nodes, ", "), strings.Join(x.end.Sites, ", "), segmentsText([]string{x.end.Segment}))
		}
		facts = append(facts, x.name, text, "  meant by", strings.Join(x.end.Sides, "; "))
	}
	facts = append(facts, "Opens", cmp.Or(openingsText(e.Opens), "nothing"), "Back", cmp.Or(openingsText(e.Back), "nothing"))
	if e.Verdict != nil {
		facts = append(facts, "Verdict", e.Verdict.Text)
	}
	p.Facts(facts...)
}
