package frame

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
)

// completeTimeout keeps a shell from hanging on a hub that does not answer.
const completeTimeout = 2 * time.Second

// Completer offers what f lists for the first n arguments. A hub that cannot
// be reached offers nothing.
func (c *CLI) Completer(n int, f func(context.Context, *api.Client, []string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		hub, err := c.hub()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer hub.Close()
		ctx := cmd.Context()
		if ctx == nil { // cobra completes without one
			ctx = context.Background()
		}
		ctx, cancel := context.WithTimeout(ctx, completeTimeout)
		defer cancel()
		names, err := f(ctx, hub, args)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
