package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

func (c *cli) incidents() *cobra.Command {
	cmd := c.incidentsList("incidents", `Show what went wrong on nodes, newest first: what others changed of an agent's on its
host and the agent put back, and times in which a node had no hub. What is changed again
and again is given up (stopped) until 'causeway-agent repair' on the node.`)
	cmd.AddCommand(c.incidentsList("list", ""), c.incidentsShow())
	return cmd
}

func (c *cli) incidentsList(use, long string) *cobra.Command {
	var q api.IncidentQuery
	var since string
	cmd := &cobra.Command{Use: use, Short: "Show what went wrong on nodes, newest first", Long: long, Args: frame.Exactly(),
		Example: "  causeway incidents --node sh-1 --since 24h\n  causeway incidents show 7-3"}
	cmd.Flags().StringVar(&q.Node, "node", "", "of this node alone")
	frame.Must(cmd.RegisterFlagCompletionFunc("node", c.Completer(1, nodeNames)))
	cmd.Flags().StringVar(&q.Site, "site", "", "of this site alone")
	frame.Must(cmd.RegisterFlagCompletionFunc("site", c.Completer(1, siteNames)))
	cmd.Flags().StringVar(&since, "since", "", "that lasted or began later: so long ago, as 24h, or a time, as 2026-01-31T08:00:00Z")
	frame.LimitFlag(cmd, &q.Limit)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		if err := frame.CheckLimit(q.Limit); err != nil {
			return err
		}
		for what, name := range map[string]string{"node": q.Node, "site": q.Site} {
			if name == "" {
				continue
			}
			if err := frame.CheckName(what, name); err != nil {
				return err
			}
		}
		if since != "" {
			var err error
			if q.Since, err = sinceTime(since); err != nil {
				return err
			}
		}
		l, err := hub.Incidents(ctx, q)
		if err != nil {
			return err
		}
		return frame.List(c.CLI, l, func(i api.Incident) string { return i.ID }, "No incidents are known",
			[]string{"ID", "SINCE", "NODE", "SUBJECT", "STATE", "LASTED", "REASON", "+SITE", "+ACTION", "+FELT"},
			func(_ *frame.Page, i api.Incident) []any {
				return []any{i.ID, frame.Stamp(i.Since), i.Node, i.Subject, incidentState(i.State), lasted(i), i.Reason, i.Site, i.Action, i.Felt}
			})
	})
}

func incidentState(s protocol.IncidentState) frame.Cell {
	switch s {
	case protocol.IncidentOver:
		return frame.Cell{Text: string(s), Meaning: frame.Good}
	case protocol.IncidentStopped:
		return frame.Cell{Text: string(s), Meaning: frame.Bad}
	}
	return frame.Cell{Text: string(s), Meaning: frame.Warn}
}

// lasted is how long things were wrong, all in all, or that they are.
func lasted(i api.Incident) string {
	if i.State != protocol.IncidentOver {
		return "until now"
	}
	return fmt.Sprintf("%.2fs", i.Seconds)
}

func (c *cli) incidentsShow() *cobra.Command {
	return c.Leaf(&cobra.Command{Use: "show ID", Short: "Show one incident", Args: frame.Exactly("ID"), Example: "  causeway incidents show 7-3"},
		func(ctx context.Context, hub *api.Client, args []string) error {
			i, err := hub.Incident(ctx, args[0])
			if err != nil {
				return err
			}
			return c.Show(i, []string{i.ID}, func(p *frame.Page) {
				until := "now"
				if !i.Until.IsZero() {
					until = frame.Stamp(i.Until)
				}
				p.Facts("Incident", i.ID, "Node", i.Node, "Site", i.Site, "Subject", i.Subject, "State", string(i.State),
					"Since", frame.Stamp(i.Since), "Until", until, "Lasted", lasted(i), "Reason", i.Reason, "Action", i.Action,
					"Repairs", fmt.Sprint(i.Repairs), "Felt", i.Felt)
				for _, l := range i.Found {
					p.Line("  %s", protocol.Printable(l))
				}
			})
		})
}
