package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

func (c *cli) node() *cobra.Command {
	return c.group("node", "Hosts that run an agent", "", c.nodeList(), c.nodeShow(), c.nodeLabel(), c.nodeRename(), c.nodeDrain(), c.nodeUndrain(), c.nodeRotateKey(), c.nodeUpgrade(), c.nodeRevoke(), c.nodeRelease())
}

func (c *cli) nodeList() *cobra.Command {
	var sel selector
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List nodes with their states", Args: exactly(),
		Example: "  causeway node list --selector rack=r12 -o wide\n  causeway node list --watch"}
	sel.flag(cmd)
	return c.watchable(api.WatchNodes, cmd,
		func(ctx context.Context, hub *api.Client, _ []string) error {
			nodes, err := listed(ctx, c, hub.Nodes)
			if err != nil {
				return err
			}
			nodes = pick(sel, nodes, func(n api.Node) map[string]string { return n.Labels })
			none := "No nodes yet: causeway token create --site SITE"
			if len(sel) > 0 {
				none = "No node has these labels: causeway node list -o wide shows them"
			}
			return list(c, nodes, func(n api.Node) string { return n.Name },
				none,
				[]string{"NODE", "SITE", "NUMBER", "OVERLAY", "STATE", "SINCE", "PATHS", "+ROUTES", "+AGENT", "+UNDERLAY", "+LABELS", "WHY"},
				func(_ *page, n api.Node) []any {
					addr := "-"
					if len(n.Overlay) > 0 {
						addr = n.Overlay[0].String()
					}
					why := ""
					if len(n.Reasons) > 0 {
						why = n.Reasons[0]
					}
					return []any{n.Name, n.Site, n.Number, addr, nodeState(n), aged(n.StateSince), pathSummary(n.Paths), len(n.Routes), agentText(n), join(n.Underlay), labelText(n.Labels), why}
				})
		})
}

// nodeState is a node's state in a list; a drained node says so.
func nodeState(n api.Node) cell {
	s := stateCell(n.State)
	if !n.Drained.IsZero() {
		s.text += ",drained"
		if s.meaning == good {
			s.meaning = warn
		}
	}
	return s
}

func drainedFor(n api.Node) string {
	if n.Drained.IsZero() {
		return ""
	}
	return "for " + age(n.Drained) + "; 'causeway node undrain " + n.Name + "' ends it"
}

func stateCell(s string) cell {
	switch s {
	case api.NodeReady:
		return cell{text: s, meaning: good}
	case api.NodeDegraded, api.NodeJoined:
		return cell{text: s, meaning: warn}
	case api.NodeUnreachable, api.NodeRevoked, api.NodeQuarantined:
		return cell{text: s, meaning: bad}
	}
	return cell{text: s, meaning: plain}
}

func (c *cli) nodeShow() *cobra.Command {
	return c.leaf(&cobra.Command{Use: "show NODE", Short: "Show one node: paths, routes, conditions", Args: exactly("NODE"), ValidArgsFunction: c.completer(1, nodeNames)},
		func(ctx context.Context, hub *api.Client, args []string) error {
			if err := checkName("node", args[0]); err != nil {
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
	return c.show(n, []string{n.Name}, func(p *page) {
		p.facts(
			"Node", n.Name,
			"Site", n.Site,
			"Number", fmt.Sprint(n.Number),
			"State", fmt.Sprintf("%s for %s", n.State, age(n.StateSince)),
			"Drained", drainedFor(n),
			"Why", optional(n.Reasons),
			"Session", connectedFor(n),
			"Overlay", join(n.Overlay),
			"Underlay", join(n.Underlay),
			"Labels", labelText(n.Labels),
			"Agent", agentText(n),
			"Upgrade", upgradeText(n.Upgrade),
			"Netmap", fmt.Sprintf("epoch %d, version %d", n.Netmap.Epoch, n.Netmap.Version),
			"Key", keyText(n),
			"Inventory", droppedText(n.Dropped),
			"Joined", age(n.Joined)+" ago",
		)
		if len(n.Paths) > 0 {
			p.gap()
			p.table([]string{"PEER", "PATH", "RTT", "LOSS", "MTU", "SINCE", "RECEIVED", "SENT", "ADDRESS"}, pathRows(n.Paths))
		}
		if len(n.Routes) > 0 {
			rows := make([][]any, len(n.Routes))
			for i, r := range n.Routes {
				rows[i] = []any{r.Prefix, routeCell(r.State), by(r), carried(r)}
			}
			p.gap()
			p.table([]string{"ROUTE", "STATE", "BY", "CARRIED"}, rows)
		}
		if len(n.Refused) > 0 {
			rows := make([][]any, len(n.Refused))
			for i, r := range n.Refused {
				rows[i] = []any{r.Part(), r.Reason}
			}
			p.gap()
			p.table([]string{"REFUSED", "REASON"}, rows)
		}
		p.conditions(n.Conditions)
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
	return "for " + age(n.Connected)
}

func pathRows(paths []protocol.PathStatus) [][]any {
	rows := make([][]any, len(paths))
	for i, t := range paths {
		peer := t.Name
		if peer == "" {
			peer = fmt.Sprintf("number %d", t.Peer)
		}
		addr, kind := "-", cell{text: string(t.Shown()), meaning: plain}
		if t.Addr.IsValid() {
			addr = t.Addr.String()
		}
		if t.Path == protocol.PathNone {
			kind.text = "-"
		}
		mtu := "-"
		if t.MTU > 0 {
			mtu = strconv.Itoa(t.MTU)
		}
		rows[i] = []any{peer, kind, millis(t.RTT), fmt.Sprintf("%.0f%%", 100*t.Loss), mtu, age(t.Since), size(t.RxBytes), size(t.TxBytes), addr}
	}
	return rows
}

// droppedText tells of facts that were dropped; empty: none.
func droppedText(d *api.DroppedInventory) string {
	if d == nil {
		return ""
	}
	return fmt.Sprintf("%d messages made no sense and were dropped, the last %s ago: %s", d.Count, age(d.Last), d.Why)
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

// optional is join, with nothing for nothing.
func optional(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return join(s)
}

func (c *cli) nodeLabel() *cobra.Command {
	return c.leaf(&cobra.Command{
		Use:               "label NODE KEY=VALUE… KEY-…",
		Short:             "Set and remove labels of a node",
		Example:           "  causeway node label sh-1 rack=r12 spare-",
		ValidArgsFunction: c.completer(1, nodeNames),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return exactly("NODE", "KEY=VALUE or KEY-")(cmd, args)
			}
			return nil
		},
	}, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := checkName("node", args[0]); err != nil {
			return err
		}
		l, err := parseLabelChanges(args[1:])
		if err != nil {
			return err
		}
		n, err := hub.PatchNode(ctx, args[0], api.NodePatch{Labels: l})
		if err != nil {
			return err
		}
		return c.show(n, []string{n.Name}, func(p *page) { p.facts("Node", n.Name, "Labels", labelText(n.Labels)) })
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
		Args:              exactly("NODE"),
		ValidArgsFunction: c.completer(1, nodeNames),
	}
	yesFlag(cmd, &yes)
	flagenv.DurationVar(cmd.Flags(), &wait, "wait", 0, "wait until all have dropped it, at most so long (10s without a value)")
	cmd.Flags().Lookup("wait").NoOptDefVal = "10s"
	return c.leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := checkName("node", args[0]); err != nil {
			return err
		}
		if wait < 0 || wait > time.Hour {
			return usagef("--wait %s is not between 0 and 1h", wait)
		}
		if err := c.confirm(yes, "Revoke node %s? Its traffic stops at once, and it cannot be taken back.", args[0]); err != nil {
			return err
		}
		if err := hub.RevokeNode(ctx, args[0]); err != nil {
			return err
		}
		if wait > 0 {
			return c.awaitRevoked(ctx, hub, args[0], wait)
		}
		return c.done(args[0], "revoked")
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
		c.progress.now("waiting for %d nodes to drop %s", len(r.Waiting), name)
		late := time.Now().After(end)
		if r.Done() || late {
			if err := c.showRevocation(r); err != nil || r.Done() {
				return err
			}
			var names []string
			for _, w := range r.Waiting {
				names = append(names, w.Node)
			}
			return fmt.Errorf("node %s is revoked, but after %s not confirmed by: %s", name, wait, join(names))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(revokedPoll):
		}
	}
}

func (c *cli) showRevocation(r api.Revocation) error {
	return c.show(r, []string{r.Node}, func(p *page) {
		cut := "not yet"
		if r.Cut {
			cut = "after " + millis(time.Duration(r.CutAfter))
		}
		p.facts("Node", r.Node, "Number", fmt.Sprint(r.Number), "Revoked", stamp(r.Revoked), "Relay, control, NATS ended", cut,
			"Confirmed by", fmt.Sprintf("%d of %d nodes", len(r.Confirmed), len(r.Confirmed)+len(r.Waiting)))
		var rows [][]any
		for _, n := range r.Confirmed {
			rows = append(rows, []any{n.Node, cell{text: "dropped it", meaning: good}, millis(time.Duration(n.After)), ""})
		}
		for _, n := range r.Waiting {
			rows = append(rows, []any{n.Node, cell{text: "not confirmed", meaning: bad}, "-", n.Why})
		}
		if len(rows) > 0 {
			p.gap()
			p.table([]string{"NODE", "STATE", "AFTER", "WHY"}, rows)
		}
	})
}

func (c *cli) nodeRelease() *cobra.Command {
	return c.leaf(&cobra.Command{
		Use:   "release NODE",
		Short: "End the quarantine of a node",
		Long: `End the quarantine of a node whose identity was used on two hosts at once. Stop
one of the two first: while both run, the node is quarantined again.`,
		Args:              exactly("NODE"),
		ValidArgsFunction: c.completer(1, nodeNames),
	}, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := checkName("node", args[0]); err != nil {
			return err
		}
		n, err := hub.ReleaseNode(ctx, args[0])
		if err != nil {
			return err
		}
		return c.done(n.Name, "released")
	})
}
