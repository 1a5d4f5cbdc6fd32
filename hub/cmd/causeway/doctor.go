package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/protocol"
)

func (c *cli) doctor() *cobra.Command {
	return c.leaf(&cobra.Command{
		Use:   "doctor",
		Short: "Say what is wrong with hub, nodes and paths, the worst first, and what mends it",
		Long: `Check the hub, every node and the paths between nodes by what the hub knows of them,
and list what is wrong: critical (something does not work), warning (it works badly, or
waits for an operator), info (worth knowing). No agent is asked. Why one end does not
reach another says 'causeway diag explain'; what is wrong on a host, before it joins
too, 'causeway-agent doctor' there.

Exit status is 0 when nothing is critical or a warning, 4 when something is, and 1 when
the hub does not answer. docs/DIAG.md lists the checks.`,
		Example: `  causeway doctor
  causeway doctor -o json | jq '.findings[] | select(.severity == "critical")'`,
		Args: exactly(),
	}, func(ctx context.Context, hub *api.Client, _ []string) error {
		k, err := hub.Doctor(ctx)
		if err != nil {
			return err
		}
		var names []string
		unwell := false // what was left out is no worse than what was not
		for _, f := range k.Findings {
			names = append(names, f.Check)
			unwell = unwell || f.Severity != api.SeverityInfo
		}
		if err := c.show(k, names, func(p *page) { checkupPage(p, k) }); err != nil {
			return err
		}
		if unwell {
			return errUnwell
		}
		return nil
	})
}

func checkupPage(p *page, k api.Checkup) {
	if len(k.Findings) == 0 {
		p.line("%s: the hub, nodes (%d) and pairs of them (%d)", p.paint(good, "Nothing is wrong"), k.Nodes, k.Pairs)
		return
	}
	for i, f := range k.Findings {
		if i > 0 {
			p.gap()
		}
		m := map[string]meaning{api.SeverityCritical: bad, api.SeverityWarning: warn}[f.Severity]
		since := ""
		if !f.Since.IsZero() {
			since = ", since " + stamp(f.Since)
		}
		p.line("%s  %s: %s%s", p.paint(m, fmt.Sprintf("%-8s", f.Severity)), protocol.Printable(f.Where), protocol.Printable(f.Check), since)
		p.line("          %s", protocol.Printable(f.Summary))
		if f.Mend != "" {
			p.line("    mend  %s", protocol.Printable(f.Mend))
		}
	}
	if k.LeftOut > 0 {
		p.gap()
		p.line("and %d more, less severe: mend these first", k.LeftOut)
	}
}
