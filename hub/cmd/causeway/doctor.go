package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

func (c *cli) doctor() *cobra.Command {
	return c.Leaf(&cobra.Command{
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
		Args: frame.Exactly(),
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
		if err := c.Show(k, names, func(p *frame.Page) { checkupPage(p, k) }); err != nil {
			return err
		}
		if unwell {
			return errUnwell
		}
		return nil
	})
}

func checkupPage(p *frame.Page, k api.Checkup) {
	if len(k.Findings) == 0 {
		p.Line("%s: the hub, nodes (%d) and pairs of them (%d)", p.Paint(frame.Good, "Nothing is wrong"), k.Nodes, k.Pairs)
		openLine(p, k)
		return
	}
	for i, f := range k.Findings {
		if i > 0 {
			p.Gap()
		}
		m := map[string]frame.Meaning{api.SeverityCritical: frame.Bad, api.SeverityWarning: frame.Warn}[f.Severity]
		since := ""
		if !f.Since.IsZero() {
			since = ", since " + frame.Stamp(f.Since)
		}
		p.Line("%s  %s: %s%s", p.Paint(m, fmt.Sprintf("%-8s", f.Severity)), protocol.Printable(f.Where), protocol.Printable(f.Check), since)
		p.Line("          %s", protocol.Printable(f.Summary))
		if f.Mend != "" {
			p.Line("    mend  %s", protocol.Printable(f.Mend))
		}
	}
	if k.LeftOut > 0 {
		p.Gap()
		p.Line("and %d more, less severe: mend these first", k.LeftOut)
	}
	if k.Open {
		p.Gap()
	}
	openLine(p, k)
}

// openLine says that there is no wall.
func openLine(p *frame.Page, k api.Checkup) {
	if k.Open {
		p.Line("No policy is declared: every node may talk to every other")
	}
}
