package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
)

// stamp is a moment in the reader's time zone.
func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func limitFlag(cmd *cobra.Command, n *int) {
	cmd.Flags().IntVarP(n, "limit", "n", 50, "show at most this many, 1 to 1000")
}

func checkLimit(n int) error {
	if n < 1 || n > 1000 {
		return usagef("--limit %d is not between 1 and 1000", n)
	}
	return nil
}

func (c *cli) events() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:     "events",
		Short:   "Show what happened lately, newest first",
		Example: "  causeway events -n 10 --watch",
		Long: `Show what happened since the hub's start and changed no state: nodes that came
and went, joins that were refused. What changed state is in 'causeway audit'.
--watch shows the last ones, oldest first, and goes on.`,
		Args: exactly(),
	}
	limitFlag(cmd, &limit)
	return c.watchable(api.WatchEvents, cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		if err := checkLimit(limit); err != nil {
			return err
		}
		events, err := listed(ctx, c, func(ctx context.Context) ([]api.Event, error) { return hub.Events(ctx, limit) })
		if err != nil {
			return err
		}
		name := func(e api.Event) string { return e.Kind }
		if c.watch != nil {
			name = func(e api.Event) string { return fmt.Sprint(e.Sequence) }
		}
		return list(c, events, name, "No events since the hub's start",
			[]string{"TIME", "KIND", "NODE", "MESSAGE"},
			func(_ *page, e api.Event) []any {
				node := e.Node
				if node == "" {
					node = "-"
				}
				return []any{stamp(e.Time), e.Kind, node, e.Message}
			})
	})
}

// beforeAfter words what a change replaced; what is new or gone is in its line already.
func beforeAfter(e api.AuditEntry) (out []string) {
	for _, d := range e.Differences {
		if d.Before != "" && d.After != "" {
			out = append(out, fmt.Sprintf("%s %s: %s -> %s", d.Object, strings.ToLower(d.Field), d.Before, d.After))
		}
	}
	return out
}

func (c *cli) audit() *cobra.Command {
	var limit int
	var before uint64
	cmd := &cobra.Command{
		Use:     "audit",
		Short:   "Show who changed what, newest first",
		Example: "  causeway audit --watch",
		Long: `Show the transactions of the hub's state log: who made each change, why, and
what it was; and joins that were refused, with the reason. --watch shows the last ones,
oldest first, and goes on. --before SEQ shows what was before the transaction with that
sequence, however old it is.`,
		Args: exactly(),
	}
	limitFlag(cmd, &limit)
	cmd.Flags().Uint64Var(&before, "before", 0, "show what was before transaction `SEQ`")
	return c.watchable(api.WatchAudit, cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		if err := checkLimit(limit); err != nil {
			return err
		}
		entries, err := listed(ctx, c, func(ctx context.Context) ([]api.AuditEntry, error) {
			if before > 0 {
				return hub.AuditBefore(ctx, before, limit)
			}
			return hub.Audit(ctx, limit)
		})
		if err != nil {
			return err
		}
		return list(c, entries, func(e api.AuditEntry) string { return fmt.Sprint(e.Sequence) }, "The state log is empty",
			[]string{"SEQ", "TIME", "WHO", "WHY", "CHANGES"},
			func(_ *page, e api.AuditEntry) []any {
				return []any{e.Sequence, stamp(e.Time), e.Who, e.Why, strings.Join(append(slices.Clone(e.Changes), beforeAfter(e)...), "; ")}
			})
	})
}
