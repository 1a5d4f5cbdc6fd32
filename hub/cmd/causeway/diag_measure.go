package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

// bitRate is a flag: bits a second, with k, M or G.
type bitRate uint64

func (b *bitRate) Type() string   { return "RATE" }
func (b *bitRate) String() string { return rateText(uint64(*b)) }
func (b *bitRate) Set(s string) error {
	unit := map[string]float64{"": 1, "k": 1e3, "M": 1e6, "G": 1e9}
	digits := strings.TrimRight(s, "kMG")
	f, err := strconv.ParseFloat(digits, 64)
	u, ok := unit[s[len(digits):]]
	if err != nil || !ok || !(f*u >= 1000 && f*u <= protocol.MaxMeasureRate) {
		return errors.New("write bits a second from 1k to 10G, such as 100M")
	}
	*b = bitRate(f * u)
	return nil
}

// rateText is a rate in bits a second for a person.
func rateText(n uint64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.4g Gbit/s", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.4g Mbit/s", float64(n)/1e6)
	}
	return fmt.Sprintf("%.4g kbit/s", float64(n)/1e3)
}

func (c *cli) mtu() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mtu A B",
		Short: "Measure how large packets between two nodes may be, and hold what is set to it",
		Long: `Measure the largest packet that arrives inside the tunnel, in each direction, and show
it beside what probes found on the underlay and what is set on route and interface.

` + endsText + ` Pods stand for their nodes.

Exit status is 1 when packets of a size that is set do not arrive.`,
		Args: frame.Exactly("A", "B"), ValidArgsFunction: c.Completer(2, nodeNames),
	}
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		for _, a := range args {
			if err := checkEnd(a); err != nil {
				return err
			}
		}
		m, err := hub.MTU(ctx, api.MTURequest{From: args[0], To: args[1]})
		if err != nil {
			return err
		}
		both := []api.MTUDirection{m.Forward, m.Back}
		if err := c.Show(m, []string{m.From.Node, m.To.Node}, func(p *frame.Page) {
			p.Line("%s", protocol.Printable(endText(m.From)+"  to  "+endText(m.To)))
			p.Gap()
			rows := make([][]any, len(both))
			for i, d := range both {
				verdict := frame.Cell{Text: protocol.Printable(d.Verdict), Meaning: frame.Good}
				if !d.OK {
					verdict.Meaning = frame.Bad
				}
				rows[i] = []any{protocol.Printable(d.Node), protocol.Printable(string(d.Path)), number(d.Underlay), number(d.Known), number(d.Measured), number(d.Route), number(d.Device), verdict}
			}
			p.Table([]string{"FROM", "PATH", "UNDERLAY", "INSIDE", "MEASURED", "ROUTE", "INTERFACE", "VERDICT"}, rows)
		}); err != nil {
			return err
		}
		for _, d := range both {
			if !d.OK {
				return errors.New(protocol.Printable("from " + d.Node + ": " + first(d.Verdict, "not measured")))
			}
		}
		return nil
	})
}

func (c *cli) bench() *cobra.Command {
	proto, length, limit, yes := "tcp", 5*time.Second, bitRate(100e6), false
	cmd := &cobra.Command{
		Use:   "bench A B",
		Short: "Send test traffic from one node to another through the tunnel",
		Long: `Send test traffic from node A to node B over their tunnel and show how much arrived, how
many datagrams were lost or came out of order, and their jitter. It takes room from
production on the same links, up to --rate: so it asks before it begins.

` + endsText + ` Pods stand for their nodes.

A node takes part in one measurement at a time; its config may refuse them
(debug: {deny: [bench]}).`,
		Args: frame.Exactly("A", "B"), ValidArgsFunction: c.Completer(2, nodeNames),
	}
	cmd.Flags().StringVar(&proto, "proto", proto, "tcp or udp")
	flagenv.DurationVar(cmd.Flags(), &length, "time", length, "send for this long, at most 30s")
	cmd.Flags().Var(&limit, "rate", "send at most this much, 1k to 10G bits a second")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		for _, a := range args {
			if err := checkEnd(a); err != nil {
				return err
			}
		}
		if proto != "tcp" && proto != "udp" {
			return frame.Usagef("--proto %.40q is neither tcp nor udp", proto)
		}
		if length <= 0 || length > protocol.MaxMeasureTime {
			return frame.Usagef("--time %s is not between 1ms and %s", length, protocol.MaxMeasureTime)
		}
		if err := c.Confirm(yes, "Send up to %s from %s to %s for %s, beside production traffic?", limit.String(), args[0], args[1], length); err != nil {
			return err
		}
		b, err := hub.Bench(ctx, api.BenchRequest{From: args[0], To: args[1], Proto: proto, Time: api.Duration(length), Rate: uint64(limit)})
		if err != nil {
			return err
		}
		if err := c.Show(b, []string{b.From.Node, b.To.Node}, func(p *frame.Page) { benchPage(p, b) }); err != nil {
			return err
		}
		if b.Received == 0 {
			return errors.New("nothing arrived")
		}
		return nil
	})
}

func benchPage(p *frame.Page, b api.Bench) {
	p.Line("%s to %s over %s: %s in %s (held to %s)", protocol.Printable(b.From.Node), protocol.Printable(b.To.Node), b.Proto, rateText(b.Rate), frame.Short(time.Duration(b.Took).Round(10*time.Millisecond)), rateText(b.Limit))
	kv := []string{"sent", frame.Size(b.Sent), "received", frame.Size(b.Received)}
	if b.Datagrams > 0 {
		kv = append(kv, "datagrams", fmt.Sprintf("%d, %d lost (%.2f %%), %d out of order", b.Datagrams, b.Lost, 100*float64(b.Lost)/float64(b.Datagrams), b.Reordered), "jitter", frame.Millis(time.Duration(b.Jitter)))
	}
	p.Facts(kv...)
}
