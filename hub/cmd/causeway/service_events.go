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

// narrow is how much of a name, or of a list of them, a wide table shows: it fits 120 columns. -o json has all.
const narrow = 16

func (c *cli) serviceEvents() *cobra.Command {
	var q api.ServiceEventQuery
	var since string
	cmd := &cobra.Command{
		Use: "events [NAME]", Short: "Show which services nodes moved between sites, why, and how long that took, newest last",
		Long: `Show what nodes switched of services for their clients: each node decides by itself. WHY is
suspect (a backend's node does not answer), dead (it is silent, and open connections were
reset), back, not-ready and ready (as the backend's node says), ejected (it refused several
connections in a row), lease (of a single-writer, without a hub), declared, endpoints (backends
came or went), or share (a site's share grew or shrank to nothing). GAP is the time from the
last answer of the backend's node until new connections went elsewhere. -o wide and -o json
have who decided, when what had only begun was free to go elsewhere, and how much was reset.`,
		Example:           "  causeway service events web --since 1h\n  causeway service events --watch",
		Args:              frame.Between(0, "NAME"),
		ValidArgsFunction: c.Completer(1, c.serviceNames),
	}
	cmd.Flags().StringVar(&q.Node, "node", "", "that this node did")
	frame.Must(cmd.RegisterFlagCompletionFunc("node", c.Completer(1, nodeNames)))
	cmd.Flags().StringVar(&since, "since", "", "later: so long ago, as 24h, or a time, as 2026-01-31T08:00:00Z")
	frame.LimitFlag(cmd, &q.Limit)
	return c.Watchable(api.WatchServiceEvents, cmd, func(ctx context.Context, hub *api.Client, args []string) (err error) {
		if err := frame.CheckLimit(q.Limit); err != nil {
			return err
		}
		if len(args) > 0 {
			if err := frame.CheckName("service", args[0]); err != nil {
				return err
			}
			q.Service = args[0]
		}
		if q.Node != "" {
			if err := frame.CheckName("node", q.Node); err != nil {
				return err
			}
		}
		if q.Since.IsZero() && since != "" {
			if q.Since, err = sinceTime(since); err != nil {
				return err
			}
		}
		l, err := frame.Listed(ctx, c.CLI, func(ctx context.Context) ([]api.ServiceEvent, error) { return hub.ServiceEvents(ctx, q) })
		if err != nil {
			return err
		}
		wanted := l[:0]
		for _, e := range l {
			if q.Matches(e) {
				wanted = append(wanted, e)
			}
		}
		return frame.List(c.CLI, wanted, func(e api.ServiceEvent) string { return fmt.Sprint(e.Sequence) }, "No switch of a service is known",
			[]string{"TIME", "NODE", "SERVICE", "FROM", "TO", "WHY", "GAP", "+SITE", "+BY", "+BACKEND", "+RELEASED", "+FLOWS", "+RESET"},
			func(_ *frame.Page, e api.ServiceEvent) []any {
				from, to := switchSites(e.From), switchSites(e.To)
				if e.Why == protocol.SwitchDead && from.Text == to.Text { // new connections had left before
					from = frame.Cell{Text: shortened(e.Site, narrow)}
				}
				why := frame.Cell{Text: string(e.Why)}
				if e.Why == protocol.SwitchDead || e.Why == protocol.SwitchSuspect || e.Why == protocol.SwitchNotReady {
					why.Meaning = frame.Warn
				}
				backend := "-"
				if e.Addr.IsValid() {
					backend = e.Addr.String()
				}
				return []any{frame.Stamp(e.Time), shortened(e.Node, narrow), shortened(e.Service, narrow), from, to, why, lengthText(e.Gap), cmp.Or(e.Site, "-"), e.By, backend, lengthText(e.Released), e.Flows, e.Reset}
			})
	})
}

func switchSites(l []string) frame.Cell {
	if len(l) == 0 {
		return frame.Cell{Text: "nobody", Meaning: frame.Bad}
	}
	var out []string
	for i, s := range l {
		if i == sitesShown {
			out = append(out, fmt.Sprintf("%d more", len(l)-i))
			break
		}
		out = append(out, shortened(s, nameShown))
	}
	return frame.Cell{Text: shortened(strings.Join(out, ","), narrow)}
}

// lengthText is a measured length of time; 0: there is none.
func lengthText(d protocol.Duration) string {
	if d == 0 {
		return "-"
	}
	return time.Duration(d).Round(time.Millisecond).String()
}
