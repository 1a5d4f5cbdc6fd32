package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

func (c *cli) diagExplain() *cobra.Command {
	var proto string
	var port int
	cmd := &cobra.Command{
		Use:   "explain FROM TO",
		Short: "Say why one node, pod or address does not reach another",
		Long: `Ask the agents of both ends what they see, and say which hop fails, by which
evidence, and what mends it. FROM and TO are nodes, pods of the inventory (POD or
NODE/POD) or addresses, SEGMENT/ADDRESS where several segments have one. With --port,
who listens there is looked at too. TO may be a service, by name or address: then the
way is that to the backend that FROM's node chooses.

Exit status is 1 when something is wrong, also where the flow passes all the same.
docs/DIAG.md lists the causes.`,
		Example: `  causeway diag explain sh-1 eu-1
  causeway diag explain 10.1.1.11 10.2.1.11 --port 443
  causeway diag explain sh-1 web-service --port 80
  causeway diag explain sh-1/web eu-1/db --proto udp --port 53 -o json`,
		Args:              frame.Exactly("FROM", "TO"),
		ValidArgsFunction: c.Completer(2, nodeNames),
	}
	cmd.Flags().StringVar(&proto, "proto", "", "tcp, udp or icmp (default: tcp with --port, icmp without)")
	cmd.Flags().IntVar(&port, "port", 0, "port at TO, 1 to 65535")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		switch proto {
		case "", protocol.FlowTCP, protocol.FlowUDP, protocol.FlowICMP:
		default:
			return frame.Usagef("--proto %q is not tcp, udp or icmp", proto)
		}
		if port < 0 || port > 65535 || cmd.Flags().Changed("port") && port == 0 {
			return frame.Usagef("--port %d is not between 1 and 65535", port)
		}
		if proto == protocol.FlowICMP && port != 0 {
			return frame.Usagef("icmp has no ports: leave --port out")
		}
		x, err := hub.Explain(ctx, api.ExplainRequest{From: args[0], To: args[1], Proto: proto, Port: uint16(port)})
		if err != nil {
			if !hubAway(err) {
				return err
			}
			x = awayExplanation(args, proto, uint16(port), err)
		}
		var causes []string
		for _, f := range x.Faults {
			causes = append(causes, f.Cause)
		}
		if err := c.Show(x, causes, func(p *frame.Page) { explanationPage(p, x) }); err != nil {
			return err
		}
		if len(x.Faults) > 0 {
			return errors.New(protocol.Printable(x.Faults[0].Summary))
		}
		return nil
	})
}

// hubAway reports whether err says that no hub answers at all.
func hubAway(err error) bool {
	var op *net.OpError
	return errors.Is(err, api.ErrNoHub) || errors.As(err, &op)
}

// awayExplanation is what can be said without a hub.
func awayExplanation(args []string, proto string, port uint16, err error) api.Explanation {
	return api.Explanation{From: api.ExplainEnd{Name: args[0]}, To: api.ExplainEnd{Name: args[1]}, Proto: proto, Port: port, Verdict: api.VerdictDegraded,
		Hops: []api.ExplainHop{}, Faults: []api.Fault{{Cause: "hub-away", Hop: "agent", Summary: "the hub does not answer: nodes that know each other go on, by direct paths; nothing new is learned",
			Evidence: []string{err.Error()}, Mend: "on the hub's host: systemctl status causeway-hub"}}}
}

func explanationPage(p *frame.Page, x api.Explanation) {
	flow := explainedEnd(x.From) + " to " + explainedEnd(x.To)
	if x.Port != 0 {
		flow += ", " + x.Proto + " port " + strconv.Itoa(int(x.Port))
	}
	if s := x.Service; s != nil {
		flow += ", by service " + s.Service
	}
	m := map[string]frame.Meaning{api.VerdictHealthy: frame.Good, api.VerdictDegraded: frame.Warn, api.VerdictBroken: frame.Bad}[x.Verdict]
	p.Line("%s: %s", protocol.Printable(flow), p.Paint(m, x.Verdict))
	const shown = 3
	for _, f := range x.Faults[:min(len(x.Faults), shown)] {
		p.Gap()
		m := frame.Warn
		if f.Blocks {
			m = frame.Bad
		}
		p.Line("%s: %s", p.Paint(m, f.Cause), protocol.Printable(f.Summary))
		for _, e := range f.Evidence[:min(len(f.Evidence), 5)] {
			p.Line("  seen  %s", protocol.Printable(e))
		}
		if f.Mend != "" {
			p.Line("  mend  %s", protocol.Printable(f.Mend))
		}
	}
	if n := len(x.Faults) - shown; n > 0 {
		p.Gap()
		p.Line("and %d more: -o json", n)
	}
	if len(x.Hops) == 0 {
		return
	}
	p.Gap()
	rows := make([][]any, len(x.Hops))
	for i, h := range x.Hops {
		m := map[string]frame.Meaning{api.HopOK: frame.Good, api.HopFailed: frame.Bad, api.HopDegraded: frame.Warn}[h.State]
		rows[i] = []any{h.Name, frame.Cell{Text: h.State, Meaning: m}, h.Note}
	}
	p.Table([]string{"HOP", "STATE", ""}, rows)
	p.Gap()
	p.Line("took %s", time.Duration(x.Took).Round(10*time.Millisecond))
}

func explainedEnd(e api.ExplainEnd) string {
	s := e.Name
	if e.Addr.IsValid() && e.Addr.String() != e.Name {
		s += " (" + e.Addr.String() + ")"
	}
	if e.Node != "" && e.Node != e.Name {
		s += fmt.Sprintf(" at %s", e.Node)
	}
	return s
}
