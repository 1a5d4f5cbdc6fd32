package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

// upgradeFollow is how often the hub is asked how an upgrade stands.
const upgradeFollow = 500 * time.Millisecond

func (c *cli) nodeUpgrade() *cobra.Command {
	var sel frame.Selector
	var spec api.UpgradeSpec
	var all, status, stop, yes, detach bool
	cmd := &cobra.Command{
		Use:   "upgrade NODE…",
		Short: "Upgrade agents to a release that the hub has, wave by wave",
		Long: `Upgrade the agents of nodes, by names, --selector or --all, to a signed release that
lies in the hub's directory of packages: the newest, or --version. Hosts decide whether
they let the hub do that, and which keys sign releases ('upgrade:' in agent.yaml).

A wave begins when all nodes of the one before are ready at the new version. A node
whose new version does not find the hub goes back to the old one by itself; the
upgrade stops there, and the waves behind are left alone. The command follows it to
its end; interrupted, the upgrade goes on, and --status follows it again.`,
		Example: "  causeway node upgrade sh-1\n  causeway node upgrade --selector rack=r12 --version 1.3.0 --waves 1,25%,rest\n" +
			"  causeway node upgrade --status",
		ValidArgsFunction: c.Completer(1, nodeNames),
		Args: func(_ *cobra.Command, args []string) error {
			ways := 0
			for _, w := range []bool{len(args) > 0, len(sel) > 0, all, status, stop} {
				if w {
					ways++
				}
			}
			switch {
			case ways == 0:
				return errors.New("NODE, --selector or --all is missing")
			case ways > 1:
				return errors.New("give one of NODE…, --selector, --all, --status and --stop")
			}
			return nil
		},
	}
	sel.Flag(cmd)
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "all nodes that are connected")
	f.StringVar(&spec.Version, "version", "", "`VERSION` of the release (default: the newest that the hub has)")
	f.StringSliceVar(&spec.Waves, "waves", api.DefaultWaves, "sizes of the waves: numbers of nodes, shares such as 10%, or rest")
	f.BoolVar(&status, "status", false, "show how the last upgrade stands, and follow it if it is under way")
	f.BoolVar(&stop, "stop", false, "end the upgrade under way; nodes of waves that have begun finish")
	f.BoolVar(&detach, "no-wait", false, "do not follow it")
	frame.YesFlag(cmd, &yes)
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		for _, a := range args {
			if err := frame.CheckName("node", a); err != nil {
				return err
			}
		}
		if spec.Version != "" && !protocol.ValidVersion(spec.Version) {
			return frame.Usagef("--version %q is no version such as 1.3.0", spec.Version)
		}
		u, err := api.Upgrade{}, error(nil)
		switch {
		case status:
			u, err = hub.Upgrade(ctx)
		case stop:
			detach = true
			u, err = hub.StopUpgrade(ctx)
		default:
			if spec.Nodes = args; len(args) == 0 {
				if spec.Nodes, err = c.upgradeTargets(ctx, hub, sel); err != nil {
					return err
				}
				if err := c.Confirm(yes, "Upgrade %d nodes (%s)?", len(spec.Nodes), shortList(spec.Nodes)); err != nil {
					return err
				}
			}
			u, err = hub.StartUpgrade(ctx, spec)
		}
		if err != nil {
			return err
		}
		return c.followUpgrade(ctx, hub, u, detach)
	})
}

// upgradeTargets are the nodes that labels pick, those that are connected if there are
// none.
func (c *cli) upgradeTargets(ctx context.Context, hub *api.Client, sel frame.Selector) (names []string, err error) {
	nodes, err := hub.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range frame.Pick(sel, nodes, func(n api.Node) map[string]string { return n.Labels }) {
		if n.State == api.NodeLeft || n.State == api.NodeRevoked || len(sel) == 0 && (n.State == api.NodeUnreachable || n.State == api.NodeJoined) {
			continue
		}
		names = append(names, n.Name)
	}
	if len(names) == 0 {
		return nil, errors.New("there is no such node: causeway node list")
	}
	return names, nil
}

func shortList(names []string) string {
	const most = 5
	if len(names) > most {
		return strings.Join(names[:most], ", ") + " and others"
	}
	return strings.Join(names, ", ")
}

// followUpgrade waits for an upgrade's end and shows it. It is an error if it failed
// meanwhile.
func (c *cli) followUpgrade(ctx context.Context, hub *api.Client, u api.Upgrade, detach bool) error {
	follow := u.State == api.UpgradeRunning && !detach
	for follow && u.State == api.UpgradeRunning {
		done, at := 0, []string{}
		for _, n := range u.Nodes {
			switch n.State {
			case api.UpgradeNodeDone, api.UpgradeNodeGone:
				done++
			case api.UpgradeNodeWorking:
				at = append(at, n.Node)
			}
		}
		c.Progress.Now("upgrade to %s, wave %d of %d: %d of %d nodes done, at work: %s", u.Version, u.Wave, u.Waves, done, len(u.Nodes), shortList(at))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(upgradeFollow):
		}
		now, err := hub.Upgrade(ctx)
		if err != nil {
			return err
		}
		if now.ID != u.ID {
			return fmt.Errorf("the upgrade to %s has ended, and another to %s begun; causeway node upgrade --status", u.Version, now.Version)
		}
		u = now
	}
	if err := c.showUpgrade(u); err != nil {
		return err
	}
	if follow && u.State == api.UpgradeFailed {
		return fmt.Errorf("the upgrade to %s stopped: %s", u.Version, u.Why)
	}
	return nil
}

func (c *cli) showUpgrade(u api.Upgrade) error {
	return c.Show(u, []string{u.Version}, func(p *frame.Page) {
		p.Facts("Version", u.Version, "State", u.State, "Why", u.Why, "Wave", fmt.Sprintf("%d of %d", u.Wave, u.Waves), "Started", frame.Age(u.Started)+" ago")
		rows := make([][]any, len(u.Nodes))
		for i, n := range u.Nodes {
			m := frame.Plain
			switch n.State {
			case api.UpgradeNodeDone:
				m = frame.Good
			case api.UpgradeNodeFailed:
				m = frame.Bad
			case api.UpgradeNodeWorking:
				m = frame.Warn
			}
			rows[i] = []any{n.Node, n.Wave, frame.Cell{Text: n.State, Meaning: m}, n.Version, n.Text}
		}
		p.Gap()
		p.Table([]string{"NODE", "WAVE", "STATE", "RUNS", "WHY"}, rows)
	})
}

// upgradeText is a node's last upgrade; empty: there was none.
func upgradeText(u *api.NodeUpgrade) string {
	if u == nil {
		return ""
	}
	s := string(u.State) + ", " + u.Version
	if u.Error != "" {
		s += ": " + u.Error
	}
	return s
}
