package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// hubs is no "hub", whose manual page would have the name of the hub program's.
func (c *cli) hubs() *cobra.Command {
	return c.Group("hubs", "The cluster's hubs, as agents know them", "", c.hubList())
}

func (c *cli) hubList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "Show the hub list that the cluster key signed", Args: frame.Exactly(),
		Long: `Show the hub list that the cluster key signed: each hub's key, and where agents look
for it. With -o json it is as an agent takes it that no hub reaches any more:

  causeway hubs list -o json >hubs.json           here
  causeway-agent hubs set @hubs.json             on the node`}
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		signed, err := hub.Hubs(ctx)
		if err != nil {
			return err
		}
		l, err := signed.Open(signed.ClusterKey.Pin())
		if err != nil {
			return err
		}
		var names []string
		for _, h := range l.Hubs {
			names = append(names, fmt.Sprint(h.Number))
		}
		return c.Show(signed, names, func(p *frame.Page) {
			p.Facts("serial", fmt.Sprint(l.Serial), "valid until", l.NotAfter.Format(time.RFC3339))
			for _, h := range l.Hubs {
				p.Line("hub %d, key %s: UDP %s, HTTPS %s", h.Number, h.WireGuardKey, spaced(h.UDP), spaced(h.HTTPS))
			}
		})
	})
}

// spaced are addresses that somebody signed, for a terminal.
func spaced(l []string) string { return protocol.OneLine(strings.Join(l, " "), 500) }
