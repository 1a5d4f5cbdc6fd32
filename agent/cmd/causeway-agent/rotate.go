package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"causeway/internal/flagenv"
	"causeway/protocol"
)

func rotateCommand(o *options) *cobra.Command {
	overlap := protocol.DefaultKeyOverlap
	cmd := &cobra.Command{
		Use:   "rotate-key",
		Short: "Give this node a new WireGuard key",
		Long: "Make a new WireGuard key, signed by the node's identity, and tell the hub. Traffic goes on. The old key\n" +
			"stays good for --overlap, for peers that have not heard of the new one; give 0 if it was stolen.",
		Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if overlap < 0 || overlap > protocol.MaxKeyOverlap {
				return fmt.Errorf("--overlap %s is not between 0 and %s", overlap, protocol.MaxKeyOverlap)
			}
			client, err := o.agent(cmd, false)
			if err != nil {
				return err
			}
			r, err := client.RotateKey(cmd.Context(), overlap)
			switch {
			case err != nil:
				return err
			case !r.Taken:
				return errors.New(r.Error)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "key %s, epoch %d, is this node's now\n", r.Key, r.Epoch)
			return nil
		},
	}
	flagenv.DurationVar(cmd.Flags(), &overlap, "overlap", overlap, "how long the old key stays good; 0: not at all")
	o.stateFlag(cmd)
	o.configFlag(cmd)
	o.socketFlag(cmd)
	return cmd
}
