package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"
)

func releaseCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release PREFIX",
		Short: "Let a range go that is held closed, to the host's own routes",
		Long: "A range that was once routed into the tunnel is closed when no peer has it any more, so that nothing of it takes\n" +
			"the host's default route, in clear, by a hub's word. This lets the closed ranges inside PREFIX go: packets to them\n" +
			"take the host's own routes from then on. 'causeway-agent status' lists what is closed; release: in the configuration\n" +
			"names ranges that are never held.",
		Args: exactArgs(1, "the PREFIX to let go, such as 10.2.0.0/16,"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := netip.ParsePrefix(args[0])
			if err != nil {
				return fmt.Errorf("%q is no prefix; write for example 10.2.0.0/16", args[0])
			}
			if p != p.Masked() {
				return fmt.Errorf("%q has host bits set; did you mean %s?", args[0], p.Masked())
			}
			client, err := o.agent(cmd, false)
			if err != nil {
				return err
			}
			r, err := client.Release(cmd.Context(), p)
			switch {
			case err != nil:
				return err
			case r.Error != "":
				return errors.New(r.Error)
			}
			return o.print(cmd.OutOrStdout(), r, func(w io.Writer) {
				for _, x := range r.Released {
					fmt.Fprintf(w, "%s is let go: packets to it take this host's own routes\n", x.Prefix)
				}
			})
		},
	}
	o.stateFlag(cmd)
	o.configFlag(cmd)
	o.socketFlag(cmd)
	o.outputFlag(cmd)
	return cmd
}
