package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"causeway/agent/config"
	"causeway/agent/debug"
)

func repairCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair",
		Short: "Put back what others changed of the agent's on this host",
		Long: "Put the agent's interface, addresses, routes, rules, kernel settings and nftables table back where they differ from the\n" +
			"plan. The agent does so by itself, within two seconds; but what is changed again and again it gives up, until it is asked.",
		Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			socket := o.socket
			if socket == "" {
				c, err := config.Load(o.config)
				if err != nil {
					return err
				}
				socket = c.Debug.Socket
			}
			r, err := debug.NewClient(socket).Repair(cmd.Context())
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
	o.configFlag(cmd)
	o.socketFlag(cmd)
	o.outputFlag(cmd)
	return cmd
}
