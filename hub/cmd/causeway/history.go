package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
)

func (c *cli) events() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:     "events",
		Short:   "Show what happened lately, newest first",
		Example: "  causeway events -n 10 --watch",
		Long: `Show what happened since the hub's start and changed no state: nodes that came
and went, joins that were refused. What changed state is in 'causeway audit'.
--watch shows the last ones, oldest first, and goes on.`,
		Args: frame.Exactly(),
	}
	frame.LimitFlag(cmd, &limit)
	return c.Watchable(api.WatchEvents, cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		if err := frame.CheckLimit(limit); err != nil {
			return err
		}
		events, err := frame.Listed(ctx, c.CLI, func(ctx context.Context) ([]api.Event, error) { return hub.Events(ctx, limit) })
		if err != nil {
			return err
		}
		name := func(e api.Event) string { return e.Kind }
		if c.Watching() {
			name = func(e api.Event) string { return fmt.Sprint(e.Sequence) }
		}
		return frame.List(c.CLI, events, name, "No events since the hub's start",
			[]string{"TIME", "KIND", "NODE", "MESSAGE"},
			func(_ *frame.Page, e api.Event) []any {
				node := e.Node
				if node == "" {
					node = "-"
				}
				return []any{frame.Stamp(e.Time), e.Kind, node, e.Message}
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
		Args: frame.Exactly(),
	}
	frame.LimitFlag(cmd, &limit)
	cmd.Flags().Uint64Var(&before, "before", 0, "show what was before transaction `SEQ`")
	return c.Watchable(api.WatchAudit, cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		if err := frame.CheckLimit(limit); err != nil {
			return err
		}
		entries, err := frame.Listed(ctx, c.CLI, func(ctx context.Context) ([]api.AuditEntry, error) {
			if before > 0 {
				return hub.AuditBefore(ctx, before, limit)
			}
			return hub.Audit(ctx, limit)
		})
		if err != nil {
			return err
		}
		return frame.List(c.CLI, entries, func(e api.AuditEntry) string { return fmt.Sprint(e.Sequence) }, "The state log is empty",
			[]string{"SEQ", "TIME", "WHO", "WHY", "CHANGES"},
			func(_ *frame.Page, e api.AuditEntry) []any {
				return []any{e.Sequence, frame.Stamp(e.Time), e.Who, e.Why, strings.Join(append(slices.Clone(e.Changes), beforeAfter(e)...), "; ")}
			})
	})
}
