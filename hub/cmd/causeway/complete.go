package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
)

// completeTimeout keeps a shell from hanging on a hub that does not answer.
const completeTimeout = 2 * time.Second

// completer offers what f lists for the first n arguments. A hub that cannot
// be reached offers nothing.
func (c *cli) completer(n int, f func(context.Context, *api.Client, []string) ([]string, error)) cobra.CompletionFunc {
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

func siteNames(ctx context.Context, hub *api.Client, _ []string) (names []string, err error) {
	sites, err := hub.Sites(ctx)
	for _, s := range sites {
		names = append(names, s.Name)
	}
	return names, err
}

func nodeNames(ctx context.Context, hub *api.Client, _ []string) (names []string, err error) {
	nodes, err := hub.Nodes(ctx)
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return names, err
}

func openTokens(ctx context.Context, hub *api.Client, _ []string) (ids []string, err error) {
	tokens, err := hub.Tokens(ctx)
	for _, t := range tokens {
		if t.State == "open" {
			ids = append(ids, t.ID)
		}
	}
	return ids, err
}

// routeArgs offers nodes, then the routes of the node given.
func routeArgs(ctx context.Context, hub *api.Client, args []string) (words []string, err error) {
	if len(args) == 0 {
		return nodeNames(ctx, hub, args)
	}
	routes, err := hub.Routes(ctx)
	for _, r := range routes {
		if r.Node == args[0] {
			words = append(words, r.Prefix.String())
		}
	}
	return words, err
}
