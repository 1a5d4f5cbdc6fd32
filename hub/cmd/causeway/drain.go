package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
)

// drainPoll is how often the hub is asked how far a drain is.
const drainPoll = 100 * time.Millisecond

func (c *cli) nodeDrain() *cobra.Command {
	wait := 10 * time.Second
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Let other nodes of its site carry a node's routes, before its maintenance",
		Long: `Let other nodes of the site carry what this node announces, wherever another
connected node announces it too, approved. Nothing is lost meanwhile: the node goes
on forwarding what is under way. Routes that no other node announces stay, and
are named. The command waits until every connected node sends the other way, at
most --wait. 'causeway node undrain' ends it; so does nothing else, no restart.`,
		Example:           "  causeway node drain sh-1 && ssh sh-1 reboot\n  causeway node undrain sh-1",
		Args:              frame.Exactly("NODE"),
		ValidArgsFunction: c.Completer(1, nodeNames),
	}
	flagenv.DurationVar(cmd.Flags(), &wait, "wait", wait, "wait for other nodes at most so long, 0 to 1h")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("node", args[0]); err != nil {
			return err
		}
		if wait < 0 || wait > time.Hour {
			return frame.Usagef("--wait %s is not between 0 and 1h", wait)
		}
		d, err := hub.DrainNode(ctx, args[0])
		if err != nil {
			return err
		}
		return c.awaitDrain(ctx, hub, d, wait)
	})
}

func (c *cli) nodeUndrain() *cobra.Command {
	return c.Leaf(&cobra.Command{
		Use:   "undrain NODE",
		Short: "Let a drained node carry routes again",
		Long: `Let a drained node carry routes again. Those that moved stay where they are as long
as their nodes are connected: moving them back would gain nothing.`,
		Args:              frame.Exactly("NODE"),
		ValidArgsFunction: c.Completer(1, nodeNames),
	}, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("node", args[0]); err != nil {
			return err
		}
		d, err := hub.UndrainNode(ctx, args[0])
		if err != nil {
			return err
		}
		return c.showDrain(d)
	})
}

// awaitDrain waits until all connected nodes have followed, and shows how it stands.
func (c *cli) awaitDrain(ctx context.Context, hub *api.Client, d api.Drain, wait time.Duration) error {
	end := time.Now().Add(wait)
	for !d.Done() && time.Now().Before(end) {
		c.Progress.Now("waiting for %d nodes to send another way", len(d.Waiting))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(drainPoll):
		}
		var err error
		if d, err = hub.Drain(ctx, d.Node); err != nil {
			return err
		}
	}
	if err := c.showDrain(d); err != nil || d.Done() || wait == 0 {
		return err
	}
	return fmt.Errorf("node %s is drained, but after %s these still send to it: %s; look at 'causeway node list', then run the command again", d.Node, wait, frame.Join(d.Waiting))
}

func (c *cli) showDrain(d api.Drain) error {
	return c.Show(d, []string{d.Node}, func(p *frame.Page) {
		state := "not drained"
		if d.Drained {
			state = "drained for " + frame.Age(d.Since)
		}
		p.Facts("Node", d.Node, "State", state,
			"Followed", fmt.Sprintf("%d of %d connected nodes", len(d.Confirmed), len(d.Confirmed)+len(d.Waiting)),
			"Not connected", frame.Optional(d.Away))
		var rows [][]any
		for _, m := range d.Moved {
			rows = append(rows, []any{m.Prefix, frame.Cell{Text: m.To, Meaning: frame.Good}, ""})
		}
		for _, k := range d.Kept {
			m := frame.Plain
			if d.Drained {
				m = frame.Warn
			}
			rows = append(rows, []any{k.Prefix, frame.Cell{Text: d.Node, Meaning: m}, k.Why})
		}
		if len(rows) > 0 {
			p.Gap()
			p.Table([]string{"ROUTE", "CARRIED BY", "WHY"}, rows)
		}
	})
}

func (c *cli) nodeRename() *cobra.Command {
	return c.Leaf(&cobra.Command{
		Use:   "rename NODE NAME",
		Short: "Give a node another name",
		Long: `Give a node another name. Its number, keys, addresses and routes stay, and so do its
connections; its agent learns the name with the next netmap.`,
		Args:              frame.Exactly("NODE", "NAME"),
		ValidArgsFunction: c.Completer(1, nodeNames),
	}, func(ctx context.Context, hub *api.Client, args []string) error {
		for _, a := range args {
			if err := frame.CheckName("node", a); err != nil {
				return err
			}
		}
		n, err := hub.RenameNode(ctx, args[0], args[1])
		if err != nil {
			return err
		}
		return c.Done(args[0], "renamed "+n.Name)
	})
}
