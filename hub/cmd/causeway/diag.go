package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

func (c *cli) diag() *cobra.Command {
	return c.Group("diag", "Ask nodes to look for themselves", "", c.ping(), c.path(), c.trace(), c.capture(), c.mtu(), c.bench(), c.diagExplain())
}

func (c *cli) ping() *cobra.Command {
	var count int
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "ping NODE NODE|POD|ADDRESS",
		Short: "Let one node ping another through the tunnel",
		Long: `Ask the first node to ping the second, a pod or an address, and show what it saw.
Exit status is 1 when no answer came.`,
		Args:              frame.Exactly("NODE", "NODE, POD or ADDRESS"),
		ValidArgsFunction: c.Completer(2, nodeNames),
	}
	cmd.Flags().IntVarP(&count, "count", "c", 3, "echo requests to send, 1 to 20")
	flagenv.DurationVar(cmd.Flags(), &timeout, "timeout", time.Second, "wait this long for each answer, at most 10s")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("node", args[0]); err != nil {
			return err
		}
		if err := checkEnd(args[1]); err != nil {
			return err
		}
		if count < 1 || count > 20 {
			return frame.Usagef("--count %d is not between 1 and 20", count)
		}
		if timeout <= 0 || timeout > 10*time.Second {
			return frame.Usagef("--timeout %s is not between 1ms and 10s", timeout)
		}
		r, err := hub.Ping(ctx, api.PingRequest{From: args[0], To: args[1], Count: count, Timeout: api.Duration(timeout)})
		if err != nil {
			return err
		}
		if err := c.Show(r, []string{r.To}, func(p *frame.Page) { pingPage(p, r) }); err != nil {
			return err
		}
		if r.Received == 0 {
			msg := fmt.Sprintf("%s got no answer from %s", r.From, r.To)
			if r.Error != "" {
				msg += ": " + r.Error
			}
			return errors.New(protocol.Printable(msg))
		}
		return nil
	})
}

func pingPage(p *frame.Page, r api.PingResult) {
	to := r.To
	if r.Addr.IsValid() && r.Addr.String() != r.To {
		to += " (" + r.Addr.String() + ")"
	}
	if r.Path != "" {
		to += " over " + r.Path
	}
	p.Line("%s to %s: %d sent, %d received, %d lost", protocol.Printable(r.From), protocol.Printable(to), r.Sent, r.Received, r.Sent-r.Received)
	if r.Received > 0 {
		p.Line("round trip: min %s, average %s, max %s", frame.Millis(time.Duration(r.MinRTT)), frame.Millis(time.Duration(r.AvgRTT)), frame.Millis(time.Duration(r.MaxRTT)))
	}
}
