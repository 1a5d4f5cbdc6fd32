package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

// switchPoll is how often it is looked how far a switch is.
const switchPoll = 250 * time.Millisecond

// forceDanger is said before a switch that waits for nobody.
const forceDanger = "DANGER: nodes of %s that have not blocked it go on writing there, and two sites take writes then"

func (c *cli) serviceSwitch() *cobra.Command {
	var yes, force bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "switch NAME SITE",
		Short: "Switch a single-writer service to another site",
		Long: `Switch a service of mode single-writer to another site. Nobody else ever does.

From now on nobody serves it, and nodes of the old site block what comes to its backends.
When all of them have said so, or their lease is over, the new site serves. Until then the
switch waits; 'causeway service show' says for whom, and a switch to the old site takes it
back. --force waits for nobody: use it only when the old site is down for certain.`,
		Example: `  causeway service switch db cloud-eu --wait
  causeway service switch db idc-sh`,
		Args: frame.Exactly("NAME", "SITE"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return c.Completer(1, c.serviceNames)(cmd, args, toComplete)
			}
			return c.Completer(1, siteNames)(cmd, args[1:], toComplete)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "switch at once, though the old site may go on")
	flagenv.DurationVar(cmd.Flags(), &wait, "wait", 0, "wait until the new site serves, at most so long (2m without a value)")
	cmd.Flags().Lookup("wait").NoOptDefVal = "2m"
	frame.YesFlag(cmd, &yes)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		name, to := args[0], args[1]
		if err := frame.CheckName("service", name); err != nil {
			return err
		}
		if err := frame.CheckName("site", to); err != nil {
			return err
		}
		if wait < 0 || wait > time.Hour {
			return frame.Usagef("--wait %s is not between 0 and 1h", wait)
		}
		s, err := hub.Service(ctx, name)
		if err != nil {
			return err
		}
		if s.Mode == protocol.ServiceSingleWriter && (s.Writer != to || s.To != "") {
			question := fmt.Sprintf("Switch service %s from %s to %s? Nobody serves it until %s is blocked, and its open connections end.", s.Name, s.Writer, to, s.Writer)
			switch {
			case force:
				fmt.Fprintf(c.Err, "causeway: "+forceDanger+"\n", s.Writer)
				question = fmt.Sprintf("Switch service %s from %s to %s by force?", s.Name, s.Writer, to)
			case s.Writer == to:
				question = fmt.Sprintf("Take the switch of service %s to %s back? %s serves again.", s.Name, s.To, to)
			case s.To == to:
				question = ""
			}
			if question != "" {
				if err := c.Confirm(yes, "%s", question); err != nil {
					return err
				}
			}
		}
		s, err = hub.PatchService(ctx, name, api.ServicePatch{Writer: to, Force: force}, api.IfMatch(s.ETag)) // what was asked about is what is switched
		if err != nil {
			return err
		}
		for end := time.Now().Add(wait); wait > 0 && s.To == to; {
			if time.Now().After(end) {
				return fmt.Errorf("service %s is not switched within %s, and nobody serves it: %s; it goes on by itself, 'causeway service switch %s %s' takes it back, and --force waits for nobody", s.Name, wait, waitText(s), s.Name, s.Writer)
			}
			c.Progress.Now("%s", waitText(s))
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(switchPoll):
			}
			if s, err = hub.Service(ctx, name); err != nil {
				return err
			}
		}
		if wait > 0 && s.Writer != to {
			return fmt.Errorf("somebody else switched service %s meanwhile: it is %s", s.Name, writerText(s))
		}
		return c.showService(s)
	})
}

// writerText is where a single-writer is, for a person.
func writerText(s api.Service) string {
	if s.To != "" {
		return fmt.Sprintf("single-writer, leaving %s for %s since transaction %d: nobody serves", s.Writer, s.To, s.Epoch)
	}
	return fmt.Sprintf("single-writer, at %s since transaction %d", s.Writer, s.Epoch)
}

// waitText is whom a switch waits for, in one line.
func waitText(s api.Service) string {
	var l []string
	for _, w := range s.Waits {
		l = append(l, w.Node+" ("+protocol.Printable(w.Why)+")")
	}
	if len(l) == 0 {
		return "it waits for the hub"
	}
	return "it waits for " + atMost(l, len(l))
}

func switchFacts(s api.Service) (out []string) {
	if s.Lease > 0 {
		out = append(out, "Lease", s.Lease.String())
	}
	if s.To == "" && len(s.Fenced) > 0 {
		text := strings.Join(s.Fenced, ", ")
		if len(s.Unaware) > 0 {
			text += ", until these have heard of the switch: " + atMost(s.Unaware, len(s.Unaware))
		}
		out = append(out, "Blocked", text)
	}
	return out
}

func waitRows(s api.Service) (rows [][]any) {
	for _, w := range s.Waits {
		until := any("never")
		if !w.Until.IsZero() {
			until = frame.Stamp(w.Until)
		}
		rows = append(rows, []any{w.Node, protocol.Printable(w.Why), until})
	}
	return rows
}
