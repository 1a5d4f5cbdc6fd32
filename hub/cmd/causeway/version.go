package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// versions is what 'causeway version' says.
type versions struct {
	api.Version
	Hub      *api.Version `json:"hub,omitempty"`
	HubError string       `json:"hub_error,omitempty"`
}

func (c *cli) version() *cobra.Command {
	var client bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this program and of the hub",
		Args:  frame.Exactly(),
	}
	cmd.Flags().BoolVar(&client, "client", false, "do not ask the hub")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		v := versions{Version: api.Version{Version: version, Protocol: protocol.Version}}
		if !client {
			ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			if h, err := hub.Version(ctx); err != nil {
				v.HubError = err.Error()
			} else {
				v.Hub = &h
			}
		}
		return c.Show(v, []string{version}, func(p *frame.Page) {
			line := func(v api.Version) string { return fmt.Sprintf("%s, protocol %d", v.Version, v.Protocol) }
			hub := v.HubError
			if v.Hub != nil {
				hub = line(*v.Hub)
			}
			p.Facts("causeway", line(v.Version), "hub", hub)
		})
	})
}
