package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

func repairCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Put back what others changed of the agent's on this host",
		Long: "Put the agent's interface, addresses, routes, rules, kernel settings and nftables table back where they differ from the\n" +
			"plan. The agent does so by itself, within two seconds. What is changed again and again it gives up, until it is asked, or,\n" +
			"where that would open something (nftables, routes, rules), it goes on slowly and reaches no peer while nftables do not stand.",
		Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.agent(cmd, false)
			if err != nil {
				return err
			}
			r, err := client.Repair(cmd.Context())
			switch {
			case err != nil:
				return err
			case r.Error != "":
				return errors.New(r.Error)
			}
			return o.print(cmd.OutOrStdout(), r, func(w io.Writer) {
				if len(r.Mended) == 0 {
					fmt.Fprintln(w, "everything is as planned")
					return
				}
				fmt.Fprintln(w, "put back: "+strings.Join(r.Mended, ", "))
			})
		},
	}
	o.stateFlag(cmd)
	o.configFlag(cmd)
	o.socketFlag(cmd)
	o.outputFlag(cmd)
	return cmd
}
