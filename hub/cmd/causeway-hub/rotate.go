package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

func rotateCommand() *cobra.Command {
	var dir string
	overlap := protocol.DefaultKeyOverlap
	c := &cobra.Command{
		Use: "rotate-key", Short: "Give a stopped hub a new WireGuard key", Args: cobra.NoArgs,
		Long: `Give a hub a new WireGuard key. Stop it first, start it after: it then publishes a
new hub list, signed by the cluster key, which agents ask for over HTTPS. The old
key stays good for --overlap, for agents that have not heard; give 0 if it was
stolen. Agents keep their traffic, tokens go on working. Run again before the
start it makes another key instead; the old one is then good for the shorter of
the overlaps.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := meantDir(c, dir); err != nil {
				return err
			}
			if overlap < 0 || overlap > protocol.MaxKeyOverlap {
				return fmt.Errorf("overlap %s: give 0s to %s", overlap, protocol.MaxKeyOverlap)
			}
			if err := asOwner(dir); err != nil {
				return err
			}
			key, until, err := hub.RotateKey(dir, overlap)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "new hub key %s; the old one is good until %s; start the hub now\n", key, until.Format(time.RFC3339))
			return err
		},
	}
	c.Flags().StringVar(&dir, "data-dir", hub.DefaultDataDir, "the hub's data directory")
	flagenv.DurationVar(c.Flags(), &overlap, "overlap", overlap, "how long the old key stays good; 0: not at all")
	return c
}
