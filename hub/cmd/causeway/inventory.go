package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"causeway/hub/api"
)

func (c *cli) inventory() *cobra.Command {
	return c.group("inventory", "Facts that nodes report of their hosts", "", c.inventoryList(), c.inventoryShow())
}

func (c *cli) inventoryList() *cobra.Command {
	var sel selector
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List all hosts' facts", Args: exactly()}
	sel.flag(cmd)
	return c.watchable(cmd,
		func(ctx context.Context, hub *api.Client, _ []string) error {
			all, err := hub.Inventories(ctx)
			if err != nil {
				return err
			}
			all = pick(sel, all, func(i api.Inventory) map[string]string { return i.Labels })
			return list(c, all, func(i api.Inventory) string { return i.Node },
				"No facts yet: nodes report them once they run",
				[]string{"NODE", "SITE", "CPUS", "MEMORY", "KERNEL", "RECEIVED", "+ARCH", "+UP", "+PODS", "OS"},
				func(_ *page, i api.Inventory) []any {
					return []any{i.Node, i.Site, i.CPUs, size(i.MemoryTotal), i.Kernel, agedAgo(i.Received), i.Arch, aged(i.HostBootTime), join(i.PodCIDRs), i.OS}
				})
		})
}

func (c *cli) inventoryShow() *cobra.Command {
	return c.leaf(&cobra.Command{Use: "show NODE", Short: "Show one host's facts", Args: exactly("NODE"), ValidArgsFunction: c.completer(1, nodeNames)},
		func(ctx context.Context, hub *api.Client, args []string) error {
			if err := checkName("node", args[0]); err != nil {
				return err
			}
			i, err := hub.Inventory(ctx, args[0])
			if err != nil {
				return err
			}
			return c.show(i, []string{i.Node}, func(p *page) { inventoryPage(p, i) })
		})
}

func inventoryPage(p *page, i api.Inventory) {
	cpu := fmt.Sprint(i.CPUs)
	if i.CPUModel != "" {
		cpu += " x " + i.CPUModel
	}
	p.facts(
		"Node", fmt.Sprintf("%s, number %d", i.Node, i.Number),
		"Site", i.Site,
		"Hostname", i.Hostname,
		"OS", i.OS,
		"Kernel", i.Kernel+" "+i.Arch,
		"CPUs", cpu,
		"Memory", fmt.Sprintf("%s of %s used", size(i.MemoryUsed), size(i.MemoryTotal)),
		"Host up", age(i.HostBootTime),
		"Agent", i.AgentVersion+", engine "+i.Engine,
		"Pod CIDRs", join(i.PodCIDRs),
		"Labels", labelText(i.Labels),
		"Received", fmt.Sprintf("%s ago, message %d since the agent's start", age(i.Received), i.Sequence),
	)
	if len(i.Interfaces) == 0 {
		return
	}
	rows := make([][]any, len(i.Interfaces))
	for n, f := range i.Interfaces {
		state := cell{text: "down", meaning: warn}
		if f.Up {
			state = cell{text: "up", meaning: good}
		}
		mac := f.MAC
		if mac == "" {
			mac = "-"
		}
		rows[n] = []any{f.Name, state, f.MTU, mac, join(f.Addresses)}
	}
	p.gap()
	p.table([]string{"INTERFACE", "STATE", "MTU", "MAC", "ADDRESSES"}, rows)
}
