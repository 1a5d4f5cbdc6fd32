package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// endsText is the help on how ends are named.
const endsText = `Each end is a node, a pod (NAME or NODE/NAME as in 'causeway inventory list') or an
address that a node carries, SEGMENT/ADDRESS where several segments have one.`

// checkEnd refuses what can be neither a node, a pod nor an address.
func checkEnd(s string) error {
	if s == "" || len(s) > 256 || protocol.Printable(s) != s {
		return frame.Usagef("%.80q is no node, pod or address", s)
	}
	return nil
}

// tracer is a command that lets both ends look and shows what they saw.
func (c *cli) tracer(cmd *cobra.Command, show func(*frame.Page, api.Trace), failure func(api.Trace) string) *cobra.Command {
	var count int
	cmd.Args, cmd.ValidArgsFunction = frame.Exactly("A", "B"), c.Completer(2, nodeNames)
	cmd.Flags().IntVarP(&count, "count", "c", 3, "echo requests to each hop, 1 to 10")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		for _, a := range args {
			if err := checkEnd(a); err != nil {
				return err
			}
		}
		if count < 1 || count > protocol.MaxTracePings {
			return frame.Usagef("--count %d is not between 1 and %d", count, protocol.MaxTracePings)
		}
		t, err := hub.Trace(ctx, api.TraceRequest{From: args[0], To: args[1], Count: count})
		if err != nil {
			return err
		}
		if err := c.Show(t, []string{t.From.Node, t.To.Node}, func(p *frame.Page) { show(p, t) }); err != nil {
			return err
		}
		if msg := failure(t); msg != "" {
			return errors.New(protocol.Printable(msg))
		}
		return nil
	})
}

func (c *cli) path() *cobra.Command {
	return c.tracer(&cobra.Command{
		Use:   "path A B",
		Short: "Show over which path two ends reach each other, and why over that one",
		Long: `Show the path that each end's node has to the other's: direct, relay or stream,
through which address, with round trip time, loss, MTU, since when, why this one,
and what else could be. Both nodes take part.

` + endsText + `

Exit status is 1 when one of the two has no path.`,
	}, pathPage, func(t api.Trace) string {
		for _, s := range sides(t) {
			switch {
			case s.view == nil:
				return s.err
			case s.view.Peer.Path == protocol.PathNone || s.err != "":
				return fmt.Sprintf("%s has no path to %s: %s", s.from, s.to, cmp.Or(s.err, s.view.Peer.Why, "its agent does not say why"))
			}
		}
		return ""
	})
}

func (c *cli) trace() *cobra.Command {
	return c.tracer(&cobra.Command{
		Use:   "trace A B",
		Short: "Show the hops between two ends, with the time that each takes",
		Long: `Show pod, host, tunnel, hub (where traffic goes through one), host and pod between two
ends: whether each answers, and the time there and back between it and the hop before.
'total' is an echo from the first host through everything up to that hop. Each hop is
measured by the node beside it.

` + endsText + `

Exit status is 1 when a hop does not answer.`,
	}, tracePage, func(t api.Trace) string {
		for _, h := range t.Hops {
			if !h.OK {
				return fmt.Sprintf("%s %s does not answer: %s", h.Kind, hopName(h), first(h.Note, "nothing says why"))
			}
		}
		return ""
	})
}

// first is the first of two texts that is not empty.
func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// side is one end's view of the other.
type side struct {
	from, to string
	view     *protocol.TraceView
	err      string
}

func sides(t api.Trace) []side {
	return []side{{t.From.Node, t.To.Node, t.Forward, t.ForwardError}, {t.To.Node, t.From.Node, t.Back, t.BackError}}
}

func endText(e api.DiagEnd) string {
	switch {
	case e.Pod != "":
		return fmt.Sprintf("pod %s (%s) on %s, site %s", e.Pod, e.Addr, e.Node, e.Site)
	case e.Text != e.Node:
		return fmt.Sprintf("%s on %s, site %s", e.Addr, e.Node, e.Site)
	}
	return fmt.Sprintf("%s (%s), site %s", e.Node, e.Addr, e.Site)
}

func pathPage(p *frame.Page, t api.Trace) {
	p.Line("%s", protocol.Printable(endText(t.From)+"  to  "+endText(t.To)))
	for _, s := range sides(t) {
		p.Gap()
		if s.view == nil {
			p.Line("%s", p.Paint(frame.Bad, protocol.Printable(s.from+" to "+s.to+": "+s.err)))
			continue
		}
		v := s.view.Peer
		what := string(v.Path)
		if v.Addr.IsValid() {
			what += " through " + v.Addr.String()
		}
		kv := []string{s.from + " to " + s.to, what, "why", first(s.err, v.Why), "round trip", frame.Millis(v.RTT), "loss", fmt.Sprintf("%.0f %%", 100*v.Loss),
			"mtu", mtuText(v), "since", frame.Age(v.Since)}
		p.Facts(kv...)
		if len(v.Candidates) == 0 {
			continue
		}
		rows := make([][]any, len(v.Candidates))
		for i, k := range v.Candidates {
			state := frame.Cell{Text: protocol.Printable(k.State)}
			if k.Chosen {
				state = frame.Cell{Text: "in use, " + protocol.Printable(k.State), Meaning: frame.Good}
			}
			answered, loss := "never", "-" // what never answered may not have been asked yet
			if !k.Answered.IsZero() {
				answered, loss = frame.Age(k.Answered)+" ago", fmt.Sprintf("%.0f %%", 100*k.Loss)
			}
			rows[i] = []any{"  " + protocol.Printable(string(k.Path)), addrText(k.Addr), frame.Millis(k.RTT), loss, number(k.Size), answered, state}
		}
		p.Table([]string{"  PATH", "ADDRESS", "RTT", "LOSS", "LARGEST", "ANSWERED", "STATE"}, rows)
	}
}

func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

// number is n, or a dash where it is not known.
func number(n int) string {
	if n <= 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func mtuText(v protocol.PathView) string {
	switch {
	case v.MTU == 0:
		return "not known yet"
	case v.Size == 0:
		return fmt.Sprintf("%d inside (a stream takes any)", v.MTU)
	}
	return fmt.Sprintf("%d inside, %d on the underlay", v.MTU, v.Size)
}

func hopName(h api.TraceHop) string {
	switch {
	case h.Name == "" && h.Addr.IsValid():
		return h.Addr.String()
	case h.Addr.IsValid():
		return h.Name + " (" + h.Addr.String() + ")"
	}
	return h.Name
}

func tracePage(p *frame.Page, t api.Trace) {
	p.Line("%s", protocol.Printable(endText(t.From)+"  to  "+endText(t.To)))
	p.Gap()
	rows := make([][]any, len(t.Hops))
	for i, h := range t.Hops {
		answers := frame.Cell{Text: "ok", Meaning: frame.Good}
		if !h.OK {
			answers = frame.Cell{Text: "no answer", Meaning: frame.Bad}
		}
		rows[i] = []any{i + 1, protocol.Printable(h.Kind), protocol.Printable(hopName(h)), frame.Millis(time.Duration(h.RTT)), frame.Millis(time.Duration(h.Total)), answers, protocol.Printable(h.Note)}
	}
	p.Table([]string{"", "HOP", "NAME", "TIME", "TOTAL", "", "NOTE"}, rows)
	if b := t.Back; b != nil && t.Forward != nil && b.Peer.Path != t.Forward.Peer.Path {
		p.Line("The way back is another one: %s, %s.", protocol.Printable(string(b.Peer.Path)), protocol.Printable(b.Peer.Why))
	}
	if t.BackError != "" {
		p.Line("%s", protocol.Printable(t.BackError))
	}
}
