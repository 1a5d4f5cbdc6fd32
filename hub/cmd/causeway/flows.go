package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

func (c *cli) flows() *cobra.Command {
	var q api.FlowQuery
	var since string
	cmd := &cobra.Command{
		Use:   "flows",
		Short: "Show what passed through tunnels and what was refused, as nodes log it, newest last",
		Long: `Show the flows that nodes log while a document of kind flowlog is declared ('causeway
explain flowlog-file'), with or without any policy: each once, with how often it began,
by which rule of a policy, or that it was refused. --from and --to take an address, a
CIDR, a node (its own addresses) or a site. A flow that goes on is told of again after an
hour, a refused one after a minute. --watch prints each time.`,
		Example: "  causeway flows --from idc-sh --to 10.2.1.0/24 --since 24h\n  causeway flows --denied --watch",
		Args:    frame.Exactly(),
	}
	cmd.Flags().StringVar(&q.From, "from", "", "that began here: an address, CIDR, node or site")
	cmd.Flags().StringVar(&q.To, "to", "", "that were begun to this")
	for _, f := range []string{"from", "to"} {
		frame.Must(cmd.RegisterFlagCompletionFunc(f, c.Completer(1, nodeNames)))
	}
	cmd.Flags().StringVar(&q.Rule, "rule", "", "by this rule, POLICY/RULE, or by any of a POLICY")
	cmd.Flags().BoolVar(&q.Denied, "denied", false, "refused ones alone")
	cmd.Flags().StringVar(&since, "since", "", "seen later: so long ago, as 24h, or a time, as 2026-01-31T08:00:00Z")
	frame.LimitFlag(cmd, &q.Limit)
	return c.Watchable(api.WatchFlows, cmd, func(ctx context.Context, hub *api.Client, _ []string) (err error) {
		if err := frame.CheckLimit(q.Limit); err != nil {
			return err
		}
		if q.Since.IsZero() && since != "" {
			if q.Since, err = sinceTime(since); err != nil {
				return err
			}
		}
		flows, err := frame.Listed(ctx, c.CLI, func(ctx context.Context) ([]api.Flow, error) { return hub.Flows(ctx, q) })
		if err != nil {
			return err
		}
		wanted := flows[:0]
		for _, f := range flows {
			if q.Matches(f) {
				wanted = append(wanted, f)
			}
		}
		return frame.List(c.CLI, wanted, func(f api.Flow) string { return fmt.Sprint(f.Sequence) },
			"No flows are known; nodes log them while a flowlog is declared (causeway explain flowlog-file)",
			[]string{"LAST", "FROM", "TO", "PORT", "VERDICT", "COUNT", "RULE", "+NODE", "+FROM-AT", "+TO-AT", "+FIRST"},
			func(_ *frame.Page, f api.Flow) []any {
				verdict := frame.Cell{Text: f.Verdict, Meaning: frame.Good}
				if f.Verdict == api.FlowRefused {
					verdict.Meaning = frame.Bad
				}
				return []any{frame.Stamp(f.Last), f.From.String(), f.To.String(), portOf(f), verdict, f.Count, cmp.Or(f.Rule, "-"), f.Node, at(f.FromNode, f.FromSite), at(f.ToNode, f.ToSite), frame.Stamp(f.First)}
			})
	})
}

// portOf is the port of a flow; of one that was seen in its middle it may be that of who began.
func portOf(f api.Flow) string {
	if f.Midway {
		return f.Port + "?"
	}
	return f.Port
}

func at(node, site string) string { return cmp.Or(strings.Trim(site+"/"+node, "/"), "-") }

// sinceTime reads a length of time until now, or a time.
func sinceTime(text string) (time.Time, error) {
	if d, err := protocol.ParseDuration(text); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, frame.Usagef("--since %q is neither a length of time, as 24h, nor a time, as 2026-01-31T08:00:00Z", text)
	}
	return t, nil
}

func (c *cli) policySuggest() *cobra.Command {
	var days int
	var since, name string
	cmd := &cobra.Command{
		Use:   "suggest",
		Short: "Write a policy that opens what nodes logged",
		Long: `Write a policy that opens the flows that nodes logged ('causeway flows'), as a file for
'causeway apply': one rule for two sides with all ports between them, with how many flows
it stands on. Sides are nodes, routes, sites or labels all of whose nodes were seen. What
was refused is not in it. Read it before you apply it: what it does not open is closed.`,
		Example: "  causeway policy suggest --days 14 > policy.yaml\n  causeway diff -f policy.yaml",
		Args:    frame.Exactly(),
	}
	cmd.Flags().IntVar(&days, "days", 0, "of flows seen in the last `N` days (default: of all that are known)")
	cmd.Flags().StringVar(&since, "since", "", "of flows seen later: so long ago, as 1h, or a time, as 2026-01-31T08:00:00Z")
	cmd.Flags().StringVar(&name, "name", "", "of the policy (default: suggested)")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		from := time.Time{}
		var err error
		switch {
		case days < 0 || days > 0 && since != "":
			return frame.Usagef("say either --days, 1 or more, or --since")
		case days > 0:
			from = time.Now().AddDate(0, 0, -days)
		case since != "":
			if from, err = sinceTime(since); err != nil {
				return err
			}
		}
		if name != "" {
			if err := frame.CheckName("policy", name); err != nil {
				return err
			}
		}
		s, err := hub.SuggestPolicy(ctx, from, name)
		if err != nil {
			return err
		}
		return c.Show(s, []string{s.Document.Name}, func(p *frame.Page) {
			for line := range strings.Lines(s.YAML) {
				p.Line("%s", protocol.Printable(strings.TrimSuffix(line, "\n")))
			}
		})
	})
}
