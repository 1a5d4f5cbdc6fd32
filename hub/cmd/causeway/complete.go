package main

import (
	"context"

	"causeway/hub/api"
)

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
