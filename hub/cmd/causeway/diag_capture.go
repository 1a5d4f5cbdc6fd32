package main

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
)

func (c *cli) capture() *cobra.Command {
	length, megabytes, payload := api.CaptureDefaultTime, 16, false
	cmd := &cobra.Command{
		Use:   "capture NODE|POD [FILTER]",
		Short: "Record packets of a node's tunnel or of a pod as pcapng on standard output",
		Long: `Record packets as pcapng on standard output, as they come: of a node's tunnel interface,
or of a pod's (NAME, NODE/NAME or its address). Payloads are cut off; --payload keeps
them where the node's config allows it (debug: {allow: [payload]}). Packets from and to
hubs are never in it, and the underlay is not captured.

The filter is, as tcpdump has it: [src|dst] host ADDR, [src|dst] net CIDR,
[tcp|udp] [src|dst] port N, tcp, udp, icmp, icmp6, ip, ip6, proto N, joined by and, or,
not and parentheses.

A node sends at most 2 MiB a second; what is left out beyond that is counted in the
file. The agent needs CAP_NET_RAW for it: a drop-in of its package gives it.`,
		Example: `  causeway diag capture sh-1 | wireshark -k -i -
  causeway diag capture sh-1/web 'tcp port 443 and host 10.2.1.7' --duration 1m > web.pcapng`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("a NODE or POD is missing")
			}
			return nil
		},
		ValidArgsFunction: c.Completer(1, nodeNames),
	}
	flagenv.DurationVar(cmd.Flags(), &length, "duration", length, "record for this long, at most 5m")
	cmd.Flags().IntVar(&megabytes, "size", megabytes, "end at this many `MIB`, at most 64")
	cmd.Flags().BoolVar(&payload, "payload", false, "keep payloads, where the node's config allows it")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := checkEnd(args[0]); err != nil {
			return err
		}
		if length <= 0 || length > api.CaptureMaxTime {
			return frame.Usagef("--duration %s is not between 1ms and %s", length, api.CaptureMaxTime)
		}
		if megabytes < 1 || megabytes > api.CaptureMaxBytes>>20 {
			return frame.Usagef("--size %d is not between 1 and %d", megabytes, api.CaptureMaxBytes>>20)
		}
		if frame.IsTerminal(c.Out) {
			return frame.Usagef("a capture is not for a terminal: write '> FILE' or '| wireshark -k -i -'")
		}
		c.Progress.End()
		err := hub.Capture(ctx, api.CaptureRequest{On: args[0], Filter: strings.Join(args[1:], " "), Time: length, Bytes: int64(megabytes) << 20, Payload: payload}, c.Out)
		// Whoever reads has seen enough, or the operator has.
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	})
}
