package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/protocol"
)

func (c *cli) inventory() *cobra.Command {
	return c.group("inventory", "Facts that nodes report of their hosts and containers", "", c.inventoryList(), c.inventoryShow(), c.inventoryWatch())
}

func (c *cli) inventoryList() *cobra.Command {
	var sel selector
	var containers bool
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List all hosts' facts, or all containers", Args: exactly(),
		Example: "  causeway inventory list --containers"}
	cmd.Flags().BoolVar(&containers, "containers", false, "list the containers of all nodes")
	sel.flag(cmd)
	return c.watchable(api.WatchInventory, cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		all, err := listed(ctx, c, hub.Inventories)
		if err != nil {
			return err
		}
		all = pick(sel, all, func(i api.Inventory) map[string]string { return i.Labels })
		if containers {
			return c.listContainers(all)
		}
		return list(c, all, func(i api.Inventory) string { return i.Node },
			"No facts yet: nodes report them once they run",
			[]string{"NODE", "SITE", "CPUS", "LOAD", "MEMORY", "PODS", "RUNTIMES", "RECEIVED", "+KERNEL", "+ARCH", "+UP", "+POD CIDRS", "OS"},
			func(_ *page, i api.Inventory) []any {
				load := "-"
				if i.Load != nil {
					load = strconv.FormatFloat(i.Load.One, 'f', 1, 64)
				}
				return []any{i.Node, i.Site, i.CPUs, load, size(i.MemoryUsed) + " of " + size(i.MemoryTotal), pods(i), runtimeNames(i), agedAgo(i.Received), i.Kernel, i.Arch, aged(i.HostBootTime), join(i.PodCIDRs), i.OS}
			})
	})
}

// runtimeNames are a node's runtimes; one that does not answer is marked.
func runtimeNames(i api.Inventory) cell {
	names, style := []string{}, plain
	for _, k := range slices.Sorted(maps.Keys(i.Runtimes)) {
		if i.Runtimes[k].Error != "" {
			k, style = k+"!", warn
		}
		names = append(names, k)
	}
	if len(names) == 0 {
		return cell{text: "none", meaning: plain}
	}
	return cell{text: strings.Join(names, ","), meaning: style}
}

func pods(i api.Inventory) string {
	if i.Capacity == nil {
		return "-"
	}
	if p := i.Capacity.Pods; p.Total > 0 {
		return fmt.Sprintf("%d of %d", p.Used, p.Total)
	}
	return fmt.Sprint(i.Capacity.Pods.Used)
}

// placed is a container with where it is.
type placed struct {
	Node string `json:"node"`
	Site string `json:"site"`
	protocol.Container
}

func placedOf(i api.Inventory) []placed {
	out := make([]placed, 0, len(i.Containers))
	for _, k := range slices.Sorted(maps.Keys(i.Containers)) {
		out = append(out, placed{i.Node, i.Site, i.Containers[k]})
	}
	slices.SortStableFunc(out, func(a, b placed) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (c *cli) listContainers(all []api.Inventory) error {
	var out []placed
	for _, i := range all {
		out = append(out, placedOf(i)...)
	}
	return list(c, out, func(x placed) string { return x.Name }, "No containers: no node has told of one",
		[]string{"CONTAINER", "NODE", "SITE", "STATE", "ADDRESSES", "CPU", "MEMORY", "IMAGE"},
		func(_ *page, x placed) []any {
			return []any{x.Name, x.Node, x.Site, containerState(x.State), addrs(x.Container), cpuUse(x.CPUUsed, x.CPURequested), memoryUse(x.MemoryUsed, x.MemoryRequested), x.Image}
		})
}

func containerState(s protocol.ContainerState) cell {
	switch s {
	case protocol.ContainerRunning:
		return cell{text: string(s), meaning: good}
	case "dead", "restarting", "unknown":
		return cell{text: string(s), meaning: bad}
	}
	return cell{text: string(s), meaning: plain}
}

func addrs(x protocol.Container) string {
	if len(x.Addresses) == 0 {
		return "-"
	}
	return join(x.Addresses)
}

// use is what is used, and of how much where that was asked for.
func use(used, of string, hasUsed, hasOf bool) string {
	switch {
	case !hasUsed && !hasOf:
		return "-"
	case !hasUsed:
		used = "?"
	}
	if !hasOf {
		return used
	}
	return used + " of " + of
}

func cpuUse(used, of int) string {
	text := func(m int) string { return strconv.FormatFloat(float64(m)/1000, 'f', 2, 64) }
	return use(text(used), text(of), used > 0, of > 0)
}

func memoryUse(used, of uint64) string { return use(size(used), size(of), used > 0, of > 0) }

func (c *cli) inventoryShow() *cobra.Command {
	return c.leaf(&cobra.Command{Use: "show NODE", Short: "Show one host's facts and containers", Args: exactly("NODE"), ValidArgsFunction: c.completer(1, nodeNames)},
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
	if i.Cores > 0 && i.Cores != i.CPUs {
		cpu += fmt.Sprintf(", %d cores", i.Cores)
	}
	load, capacity := "", ""
	if l := i.Load; l != nil {
		load = fmt.Sprintf("%.2f, %.2f, %.2f", l.One, l.Five, l.Fifteen)
	}
	if a := i.Capacity; a != nil {
		capacity = fmt.Sprintf("%.1f CPUs, %s memory, %s pods used", float64(a.CPU.Free)/1000, size(a.Memory.Free), pods(i))
	}
	p.facts(
		"Node", fmt.Sprintf("%s, number %d", i.Node, i.Number),
		"Site", i.Site,
		"Hostname", i.Hostname,
		"OS", i.OS,
		"Kernel", i.Kernel+" "+i.Arch,
		"Virtualisation", i.Virtual,
		"CPUs", cpu,
		"Load", load,
		"Memory", fmt.Sprintf("%s of %s used", size(i.MemoryUsed), size(i.MemoryTotal)),
		"Free", capacity,
		"Host up", age(i.HostBootTime),
		"Agent", i.AgentVersion+", engine "+i.Engine,
		"Pod CIDRs", join(i.PodCIDRs),
		"Labels", labelText(i.Labels),
		"Runtimes", runtimeText(i),
		"Left out", optional(i.LeftOut),
		"Received", fmt.Sprintf("%s ago, message %d since the agent's start", age(i.Received), i.Sequence),
	)
	section := func(header []string, rows [][]any) {
		if len(rows) > 0 {
			p.gap()
			p.table(header, rows)
		}
	}
	section([]string{"INTERFACE", "STATE", "SPEED", "MTU", "MAC", "ADDRESSES"}, interfaceRows(i.Interfaces))
	var rows [][]any
	for _, k := range slices.Sorted(maps.Keys(i.Disks)) {
		d := i.Disks[k]
		rows = append(rows, []any{k, d.Type, size(d.Used) + " of " + size(d.Total), d.Device})
	}
	section([]string{"DISK", "TYPE", "USED", "DEVICE"}, rows)
	rows = nil
	for _, k := range slices.Sorted(maps.Keys(i.Paths)) {
		t := i.Paths[k]
		kind := protocol.PathStatus{Path: t.Path, Idle: t.Idle}.Shown()
		rows = append(rows, []any{t.Peer, kind, fmt.Sprintf("%.1f ms", t.RTT), fmt.Sprintf("%.0f%%", 100*t.Loss), size(t.RxRate) + "/s", size(t.TxRate) + "/s"})
	}
	section([]string{"PATH TO", "KIND", "RTT", "LOSS", "RECEIVING", "SENDING"}, rows)
	rows = nil
	for _, x := range placedOf(i) {
		rows = append(rows, []any{x.Name, containerState(x.State), addrs(x.Container), cpuUse(x.CPUUsed, x.CPURequested), memoryUse(x.MemoryUsed, x.MemoryRequested), x.Runtime, x.Image})
	}
	section([]string{"CONTAINER", "STATE", "ADDRESSES", "CPU", "MEMORY", "RUNTIME", "IMAGE"}, rows)
}

func runtimeText(i api.Inventory) string {
	if len(i.Runtimes) == 0 {
		return "none found on this host"
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(i.Runtimes)) {
		r := i.Runtimes[k]
		s := strings.TrimSpace(k+" "+r.Version) + " at " + r.From
		if r.Error != "" {
			s += " (" + r.Error + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func interfaceRows(l []protocol.Interface) [][]any {
	rows := make([][]any, len(l))
	for n, f := range l {
		state := cell{text: "down", meaning: warn}
		if f.Up {
			state = cell{text: "up", meaning: good}
		}
		speed := "-"
		if f.SpeedMbit > 0 {
			speed = fmt.Sprintf("%d Mbit/s", f.SpeedMbit)
		}
		rows[n] = []any{f.Name, state, speed, f.MTU, cmp.Or(f.MAC, "-"), join(f.Addresses)}
	}
	return rows
}

func (c *cli) inventoryWatch() *cobra.Command {
	return c.leaf(&cobra.Command{
		Use:   "watch [NODE]",
		Short: "Follow what changes on hosts: containers, interfaces, paths",
		Long: `Follow what changes on hosts, a line for each change, until interrupted. With
-o json each message of a node is one JSON document on a line, with all that
changed as a JSON merge patch, load and the like included.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return exactly("NODE")(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: c.completer(1, nodeNames),
	}, func(ctx context.Context, hub *api.Client, args []string) error {
		node := ""
		if len(args) > 0 {
			if err := checkName("node", args[0]); err != nil {
				return err
			}
			node = args[0]
		}
		print := func(ch api.InventoryChange) error {
			for _, l := range ch.Lines {
				if _, err := fmt.Fprintf(c.out, "%s  %s  %s  %s\n", stamp(ch.Time), protocol.Printable(ch.Site), protocol.Printable(ch.Node), protocol.Printable(l)); err != nil {
					return err
				}
			}
			return nil
		}
		switch c.format {
		case formatJSON, formatYAML:
			e := json.NewEncoder(c.out)
			e.SetEscapeHTML(false)
			print = func(ch api.InventoryChange) error {
				if c.format == formatJSON {
					return e.Encode(ch)
				}
				if _, err := fmt.Fprintln(c.out, "---"); err != nil {
					return err
				}
				return c.show(ch, nil, nil)
			}
		case formatName:
			print = func(ch api.InventoryChange) error {
				if len(ch.Lines) == 0 {
					return nil
				}
				_, err := fmt.Fprintln(c.out, protocol.Printable(ch.Node))
				return err
			}
		}
		err := hub.FollowFacts(ctx, node, func() error {
			_, err := fmt.Fprintln(c.err, "watching; interrupt to end")
			return err
		}, print)
		if ctx.Err() != nil {
			return nil // interrupted, as it is meant to be ended
		}
		return err
	})
}
