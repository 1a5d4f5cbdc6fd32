package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

func (c *cli) node() *cobra.Command {
	return c.Group("node", "Hosts that run an agent", "", c.nodeList(), c.nodeShow(), c.nodeLabel(), c.nodeRename(), c.nodeDrain(), c.nodeUndrain(), c.nodeRotateKey(), c.nodeUpgrade(), c.nodeRevoke(), c.nodeRelease())
}

func (c *cli) nodeList() *cobra.Command {
	var sel frame.Selector
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List nodes with their states", Args: frame.Exactly(),
		Example: "  causeway node list --selector rack=r12 -o wide\n  causeway node list --watch"}
	sel.Flag(cmd)
	return c.Watchable(api.WatchNodes, cmd,
		func(ctx context.Context, hub *api.Client, _ []string) error {
			nodes, err := frame.Listed(ctx, c.CLI, hub.Nodes)
			if err != nil {
				return err
			}
			nodes = frame.Pick(sel, nodes, func(n api.Node) map[string]string { return n.Labels })
			none := "No nodes yet: causeway token create --site SITE"
			if len(sel) > 0 {
				none = "No node has these labels: causeway node list -o wide shows them"
			}
			return frame.List(c.CLI, nodes, func(n api.Node) string { return n.Name },
				none,
				[]string{"NODE", "SITE", "NUMBER", "OVERLAY", "STATE", "SINCE", "PATHS", "+ROUTES", "+AGENT", "+UNDERLAY", "+LABELS", "WHY"},
				func(_ *frame.Page, n api.Node) []any {
					addr := "-"
					if len(n.Overlay) > 0 {
						addr = n.Overlay[0].String()
					}
					why := ""
					if len(n.Reasons) > 0 {
						why = n.Reasons[0]
					}
					return []any{n.Name, n.Site, n.Number, addr, nodeState(n), frame.Aged(n.StateSince), pathSummary(n.Paths), len(n.Routes), agentText(n), frame.Join(n.Underlay), frame.LabelText(n.Labels), why}
				})
		})
}

// nodeState is a node's state in a list; a drained node says so.
func nodeState(n api.Node) frame.Cell {
	s := stateCell(n.State)
	if !n.Drained.IsZero() {
		s.Text += ",drained"
		if s.Meaning == frame.Good {
			s.Meaning = frame.Warn
		}
	}
	return s
}

func drainedFor(n api.Node) string {
	if n.Drained.IsZero() {
		return ""
	}
	return "for " + frame.Age(n.Drained) + "; 'causeway node undrain " + n.Name + "' ends it"
}

func stateCell(s string) frame.Cell {
	switch s {
	case api.NodeReady:
		return frame.Cell{Text: s, Meaning: frame.Good}
	case api.NodeDegraded, api.NodeJoined:
		return frame.Cell{Text: s, Meaning: frame.Warn}
	case api.NodeUnreachable, api.NodeRevoked, api.NodeQuarantined:
		return frame.Cell{Text: s, Meaning: frame.Bad}
	}
	return frame.Cell{Text: s, Meaning: frame.Plain}
}

func (c *cli) nodeShow() *cobra.Command {
	return c.Leaf(&cobra.Command{Use: "show NODE", Short: "Show one node: paths, routes, conditions", Args: frame.Exactly("NODE"), ValidArgsFunction: c.Completer(1, nodeNames)},
		func(ctx context.Context, hub *api.Client, args []string) error {
			if err := frame.CheckName("node", args[0]); err != nil {
				return err
			}
			n, err := hub.Node(ctx, args[0])
			if err != nil {
				return err
			}
			return c.showNode(n)
		})
}

func (c *cli) showNode(n api.Node) error {
	return c.Show(n, []string{n.Name}, func(p *frame.Page) {
		p.Facts(
			"Node", n.Name,
			"Site", n.Site,
			"Number", fmt.Sprint(n.Number),
			"State", fmt.Sprintf("%s for %s", n.State, frame.Age(n.StateSince)),
			"Drained", drainedFor(n),
			"Why", frame.Optional(n.Reasons),
			"Session", connectedFor(n),
			"Overlay", frame.Join(n.Overlay),
			"Underlay", frame.Join(n.Underlay),
			"Labels", frame.LabelText(n.Labels),
			"Agent", agentText(n),
			"Upgrade", upgradeText(n.Upgrade),
			"Netmap", fmt.Sprintf("epoch %d, version %d", n.Netmap.Epoch, n.Netmap.Version),
			"Key", keyText(n),
			"Inventory", droppedText(n.Dropped),
			"Joined", frame.Age(n.Joined)+" ago",
		)
		if len(n.Paths) > 0 {
			p.Gap()
			p.Table([]string{"PEER", "PATH", "RTT", "LOSS", "MTU", "SINCE", "RECEIVED", "SENT", "ADDRESS"}, pathRows(n.Paths))
		}
		if len(n.Routes) > 0 {
			rows := make([][]any, len(n.Routes))
			for i, r := range n.Routes {
				rows[i] = []any{r.Prefix, routeCell(r.State), by(r), carried(r)}
			}
			p.Gap()
			p.Table([]string{"ROUTE", "STATE", "BY", "CARRIED"}, rows)
		}
		if len(n.Refused) > 0 {
			rows := make([][]any, len(n.Refused))
			for i, r := range n.Refused {
				rows[i] = []any{r.Part(), r.Reason}
			}
			p.Gap()
			p.Table([]string{"REFUSED", "REASON"}, rows)
		}
		conditions(p, n.Conditions)
	})
}

// connectedFor is how long a node has its control session; empty for one that is gone.
func connectedFor(n api.Node) string {
	switch {
	case n.State == api.NodeLeft || n.State == api.NodeRevoked:
		return ""
	case n.Connected.IsZero():
		return "none"
	}
	return "for " + frame.Age(n.Connected)
}

func pathRows(paths []protocol.PathStatus) [][]any {
	rows := make([][]any, len(paths))
	for i, t := range paths {
		peer := t.Name
		if peer == "" {
			peer = fmt.Sprintf("number %d", t.Peer)
		}
		addr, kind := "-", frame.Cell{Text: string(t.Shown()), Meaning: frame.Plain}
		if t.Addr.IsValid() {
			addr = t.Addr.String()
		}
		if t.Path == protocol.PathNone {
			kind.Text = "-"
		}
		mtu := "-"
		if t.MTU > 0 {
			mtu = strconv.Itoa(t.MTU)
		}
		rows[i] = []any{peer, kind, frame.Millis(t.RTT), fmt.Sprintf("%.0f%%", 100*t.Loss), mtu, frame.Age(t.Since), frame.Size(t.RxBytes), frame.Size(t.TxBytes), addr}
	}
	return rows
}

// droppedText tells of facts that were dropped; empty: none.
func droppedText(d *api.DroppedInventory) string {
	if d == nil {
		return ""
	}
	return fmt.Sprintf("%d messages made no sense and were dropped, the last %s ago: %s", d.Count, frame.Age(d.Last), d.Why)
}

func agentText(n api.Node) string {
	switch {
	case n.AgentVersion == "":
		return "never seen"
	case n.Engine == "":
		return n.AgentVersion
	}
	return n.AgentVersion + ", engine " + n.Engine
}

func (c *cli) nodeLabel() *cobra.Command {
	return c.Leaf(&cobra.Command{
		Use:               "label NODE KEY=VALUE… KEY-…",
		Short:             "Set and remove labels of a node",
		Example:           "  causeway node label sh-1 rack=r12 spare-",
		ValidArgsFunction: c.Completer(1, nodeNames),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return frame.Exactly("NODE", "KEY=VALUE or KEY-")(cmd, args)
			}
			return nil
		},
	}, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("node", args[0]); err != nil {
			return err
		}
		l, err := frame.ParseLabelChanges(args[1:])
		if err != nil {
			return err
		}
		n, err := hub.PatchNode(ctx, args[0], api.NodePatch{Labels: l})
		if err != nil {
			return err
		}
		return c.Show(n, []string{n.Name}, func(p *frame.Page) { p.Facts("Node", n.Name, "Labels", frame.LabelText(n.Labels)) })
	})
}

func (c *cli) nodeRevoke() *cobra.Command {
	var yes bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "revoke NODE",
		Short: "Take a node out, at once and for good",
		Long: `Take a node out: every other node drops its sessions, routes and addresses at
once. Its number and keys are never accepted again; the host comes back only as
a new node, with a new token. With --wait, tell when the hub and every other
node had dropped it, or which have not said so.`,
		Args:              frame.Exactly("NODE"),
		ValidArgsFunction: c.Completer(1, nodeNames),
	}
	frame.YesFlag(cmd, &yes)
	flagenv.DurationVar(cmd.Flags(), &wait, "wait", 0, "wait until all have dropped it, at most so long (10s without a value)")
	cmd.Flags().Lookup("wait").NoOptDefVal = "10s"
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("node", args[0]); err != nil {
			return err
		}
		if wait < 0 || wait > time.Hour {
			return frame.Usagef("--wait %s is not between 0 and 1h", wait)
		}
		if err := c.Confirm(yes, "Revoke node %s? Its traffic stops at once, and it cannot be taken back.", args[0]); err != nil {
			return err
		}
		if err := hub.RevokeNode(ctx, args[0]); err != nil {
			return err
		}
		if wait > 0 {
			return c.awaitRevoked(ctx, hub, args[0], wait)
		}
		return c.Done(args[0], "revoked")
	})
}

// revokedPoll is how often the hub is asked who dropped a revoked node.
const revokedPoll = 50 * time.Millisecond

// awaitRevoked waits until all have dropped the node, and shows it. It is an error
// if some have not in that time.
func (c *cli) awaitRevoked(ctx context.Context, hub *api.Client, name string, wait time.Duration) error {
	end := time.Now().Add(wait)
	for {
		r, err := hub.Revocation(ctx, name)
		if err != nil {
			return err
		}
		c.Progress.Now("waiting for %d nodes to drop %s", len(r.Waiting), name)
		late := time.Now().After(end)
		if r.Done() || late {
			if err := c.showRevocation(r); err != nil || r.Done() {
				return err
			}
			var names []string
			for _, w := range r.Waiting {
				names = append(names, w.Node)
			}
			return fmt.Errorf("node %s is revoked, but after %s not confirmed by: %s", name, wait, frame.Join(names))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(revokedPoll):
		}
	}
}

func (c *cli) showRevocation(r api.Revocation) error {
	return c.Show(r, []string{r.Node}, func(p *frame.Page) {
		cut := "not yet"
		if r.Cut {
			cut = "after " + frame.Millis(time.Duration(r.CutAfter))
		}
		p.Facts("Node", r.Node, "Number", fmt.Sprint(r.Number), "Revoked", frame.Stamp(r.Revoked), "Relay, control, NATS ended", cut,
			"Confirmed by", fmt.Sprintf("%d of %d nodes", len(r.Confirmed), len(r.Confirmed)+len(r.Waiting)))
		var rows [][]any
		for _, n := range r.Confirmed {
			rows = append(rows, []any{n.Node, frame.Cell{Text: "dropped it", Meaning: frame.Good}, frame.Millis(time.Duration(n.After)), ""})
		}
		for _, n := range r.Waiting {
			rows = append(rows, []any{n.Node, frame.Cell{Text: "not confirmed", Meaning: frame.Bad}, "-", n.Why})
		}
		if len(rows) > 0 {
			p.Gap()
			p.Table([]string{"NODE", "STATE", "AFTER", "WHY"}, rows)
		}
	})
}

func (c *cli) nodeRelease() *cobra.Command {
	return c.Leaf(&cobra.Command{
		Use:   "release NODE",
		Short: "End the quarantine of a node",
		Long: `End the quarantine of a node whose identity was used on two hosts at once. Stop
one of the two first: while both run, the node is quarantined again.`,
		Args:              frame.Exactly("NODE"),
		ValidArgsFunction: c.Completer(1, nodeNames),
	}, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("node", args[0]); err != nil {
			return err
		}
		n, err := hub.ReleaseNode(ctx, args[0])
		if err != nil {
			return err
		}
		return c.Done(n.Name, "released")
	})
}
