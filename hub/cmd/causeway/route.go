package main

import (
	"cmp"
	"context"
	"slices"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

func (c *cli) route() *cobra.Command {
	return c.Group("route", "CIDRs that nodes announce", "", c.routeList(),
		c.routeDecide("approve", "Let other nodes reach a route through its node", true),
		c.routeDecide("reject", "Refuse a route, or take an approval back", false))
}

func (c *cli) routeList() *cobra.Command {
	var pending bool
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List announced routes and what became of them", Args: frame.Exactly()}
	var sel frame.Selector
	sel.Flag(cmd)
	cmd.Flags().BoolVar(&pending, "pending", false, "only those that wait for a decision")
	return c.Watchable(api.WatchRoutes, cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		routes, err := frame.Listed(ctx, c.CLI, hub.Routes)
		if err != nil {
			return err
		}
		if len(sel) > 0 { // labels are the nodes'
			nodes, err := hub.Nodes(ctx)
			if err != nil {
				return err
			}
			labels := map[string]map[string]string{}
			for _, n := range nodes {
				labels[n.Name] = n.Labels
			}
			routes = frame.Pick(sel, routes, func(r api.Route) map[string]string { return labels[r.Node] })
		}
		columns := []string{"NODE", "SITE", "ROUTE", "STATE", "BY", "CARRIED"}
		segments := slices.ContainsFunc(routes, func(r api.Route) bool { return r.Segment != "" })
		if segments { // else it tells nothing
			columns = slices.Insert(columns, 2, "SEGMENT")
		}
		none := "No routes: nodes announce those of their token and of routes: in agent.yaml"
		if pending {
			all := routes
			routes, none = nil, "No route waits for a decision"
			for _, r := range all {
				if r.State == protocol.RoutePending {
					routes = append(routes, r)
				}
			}
		}
		return frame.List(c.CLI, routes, func(r api.Route) string { return r.Node + " " + r.Prefix.String() }, none,
			columns, func(_ *frame.Page, r api.Route) []any {
				row := []any{r.Node, r.Site, r.Prefix, routeCell(r.State), by(r), carried(r)}
				if segments {
					row = slices.Insert(row, 2, any(cmp.Or(r.Segment, "-")))
				}
				return row
			})
	})
}

func routeCell(s protocol.RouteState) frame.Cell {
	m := frame.Plain
	switch s {
	case protocol.RouteApproved:
		m = frame.Good
	case protocol.RoutePending:
		m = frame.Warn
	case protocol.RouteRejected:
		m = frame.Bad
	}
	return frame.Cell{Text: string(s), Meaning: m}
}

func by(r api.Route) string {
	if r.By == "" {
		return "-"
	}
	return r.By
}

// carried says whether the route leads anywhere, and why not where that differs
// from its state.
func carried(r api.Route) string {
	switch {
	case r.Why != "":
		return "no: " + r.Why
	case r.Owner:
		return "yes"
	}
	return "no"
}

func (c *cli) routeDecide(verb, short string, approve bool) *cobra.Command {
	return c.Leaf(&cobra.Command{
		Use:               verb + " NODE CIDR",
		Short:             short,
		Args:              frame.Exactly("NODE", "CIDR"),
		ValidArgsFunction: c.Completer(2, routeArgs),
	}, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("node", args[0]); err != nil {
			return err
		}
		prefix, err := frame.ParsePrefix(args[1])
		if err != nil {
			return frame.Usagef("route %q: %w", args[1], err)
		}
		r, err := hub.DecideRoute(ctx, api.RouteDecision{Node: args[0], Prefix: prefix, Approve: approve})
		if err != nil {
			return err
		}
		return c.Show(r, []string{r.Node + " " + r.Prefix.String()}, func(p *frame.Page) {
			p.Line("%s of %s: %s, carried: %s", r.Prefix, protocol.Printable(r.Node), protocol.Printable(string(r.State)), protocol.Printable(carried(r)))
		})
	})
}
