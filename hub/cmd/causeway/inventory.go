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
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

func (c *cli) inventory() *cobra.Command {
	return c.Group("inventory", "Facts that nodes report of their hosts and containers", "", c.inventoryList(), c.inventoryShow(), c.inventoryWatch())
}

func (c *cli) inventoryList() *cobra.Command {
	var sel frame.Selector
	var containers bool
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List all hosts' facts, or all containers", Args: frame.Exactly(),
		Example: "  causeway inventory list --containers"}
	cmd.Flags().BoolVar(&containers, "containers", false, "list the containers of all nodes")
	sel.Flag(cmd)
	return c.Watchable(api.WatchInventory, cmd, func(ctx context.Context, hub *api.Client, _ []string) error {
		all, err := frame.Listed(ctx, c.CLI, hub.Inventories)
		if err != nil {
			return err
		}
		all = frame.Pick(sel, all, func(i api.Inventory) map[string]string { return i.Labels })
		if containers {
			return c.listContainers(all)
		}
		return frame.List(c.CLI, all, func(i api.Inventory) string { return i.Node },
			"No facts yet: nodes report them once they run",
			[]string{"NODE", "SITE", "CPUS", "LOAD", "MEMORY", "PODS", "RUNTIMES", "RECEIVED", "+KERNEL", "+ARCH", "+UP", "+POD CIDRS", "OS"},
			func(_ *frame.Page, i api.Inventory) []any {
				load := "-"
				if i.Load != nil {
					load = strconv.FormatFloat(i.Load.One, 'f', 1, 64)
				}
				return []any{i.Node, i.Site, i.CPUs, load, frame.Size(i.MemoryUsed) + " of " + frame.Size(i.MemoryTotal), pods(i), runtimeNames(i), frame.AgedAgo(i.Received), i.Kernel, i.Arch, frame.Aged(i.HostBootTime), frame.Join(i.PodCIDRs), i.OS}
			})
	})
}

// runtimeNames are a node's runtimes; one that does not answer is marked.
func runtimeNames(i api.Inventory) frame.Cell {
	names, style := []string{}, frame.Plain
	for _, k := range slices.Sorted(maps.Keys(i.Runtimes)) {
		if i.Runtimes[k].Error != "" {
			k, style = k+"!", frame.Warn
		}
		names = append(names, k)
	}
	if len(names) == 0 {
		return frame.Cell{Text: "none", Meaning: frame.Plain}
	}
	return frame.Cell{Text: strings.Join(names, ","), Meaning: style}
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
	return frame.List(c.CLI, out, func(x placed) string { return x.Name }, "No containers: no node has told of one",
		[]string{"CONTAINER", "NODE", "SITE", "STATE", "ADDRESSES", "CPU", "MEMORY", "IMAGE"},
		func(_ *frame.Page, x placed) []any {
			return []any{x.Name, x.Node, x.Site, containerState(x.State), addrs(x.Container), cpuUse(x.CPUUsed, x.CPURequested), memoryUse(x.MemoryUsed, x.MemoryRequested), x.Image}
		})
}

func containerState(s protocol.ContainerState) frame.Cell {
	switch s {
	case protocol.ContainerRunning:
		return frame.Cell{Text: string(s), Meaning: frame.Good}
	case "dead", "restarting", "unknown":
		return frame.Cell{Text: string(s), Meaning: frame.Bad}
	}
	return frame.Cell{Text: string(s), Meaning: frame.Plain}
}

func addrs(x protocol.Container) string {
	if len(x.Addresses) == 0 {
		return "-"
	}
	return frame.Join(x.Addresses)
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

func memoryUse(used, of uint64) string {
	return use(frame.Size(used), frame.Size(of), used > 0, of > 0)
}

func (c *cli) inventoryShow() *cobra.Command {
	return c.Leaf(&cobra.Command{Use: "show NODE", Short: "Show one host's facts and containers", Args: frame.Exactly("NODE"), ValidArgsFunction: c.Completer(1, nodeNames)},
		func(ctx context.Context, hub *api.Client, args []string) error {
			if err := frame.CheckName("node", args[0]); err != nil {
				return err
			}
			i, err := hub.Inventory(ctx, args[0])
			if err != nil {
				return err
			}
			return c.Show(i, []string{i.Node}, func(p *frame.Page) { inventoryPage(p, i) })
		})
}

func inventoryPage(p *frame.Page, i api.Inventory) {
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
		capacity = fmt.Sprintf("%.1f CPUs, %s memory, %s pods used", float64(a.CPU.Free)/1000, frame.Size(a.Memory.Free), pods(i))
	}
	p.Facts(
		"Node", fmt.Sprintf("%s, number %d", i.Node, i.Number),
		"Site", i.Site,
		"Hostname", i.Hostname,
		"OS", i.OS,
		"Kernel", i.Kernel+" "+i.Arch,
		"Virtualisation", i.Virtual,
		"CPUs", cpu,
		"Load", load,
		"Memory", fmt.Sprintf("%s of %s used", frame.Size(i.MemoryUsed), frame.Size(i.MemoryTotal)),
		"Free", capacity,
		"Host up", frame.Age(i.HostBootTime),
		"Agent", i.AgentVersion+", engine "+i.Engine,
		"Pod CIDRs", frame.Join(i.PodCIDRs),
		"Labels", frame.LabelText(i.Labels),
		"Runtimes", runtimeText(i),
		"Left out", frame.Optional(i.LeftOut),
		"Received", fmt.Sprintf("%s ago, message %d since the agent's start", frame.Age(i.Received), i.Sequence),
	)
	section := func(header []string, rows [][]any) {
		if len(rows) > 0 {
			p.Gap()
			p.Table(header, rows)
		}
	}
	section([]string{"INTERFACE", "STATE", "SPEED", "MTU", "MAC", "ADDRESSES"}, interfaceRows(i.Interfaces))
	var rows [][]any
	for _, k := range slices.Sorted(maps.Keys(i.Disks)) {
		d := i.Disks[k]
		rows = append(rows, []any{k, d.Type, frame.Size(d.Used) + " of " + frame.Size(d.Total), d.Device})
	}
	section([]string{"DISK", "TYPE", "USED", "DEVICE"}, rows)
	rows = nil
	for _, k := range slices.Sorted(maps.Keys(i.Paths)) {
		t := i.Paths[k]
		kind := protocol.PathStatus{Path: t.Path, Idle: t.Idle}.Shown()
		rows = append(rows, []any{t.Peer, kind, fmt.Sprintf("%.1f ms", t.RTT), fmt.Sprintf("%.0f%%", 100*t.Loss), frame.Size(t.RxRate) + "/s", frame.Size(t.TxRate) + "/s"})
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
		state := frame.Cell{Text: "down", Meaning: frame.Warn}
		if f.Up {
			state = frame.Cell{Text: "up", Meaning: frame.Good}
		}
		speed := "-"
		if f.SpeedMbit > 0 {
			speed = fmt.Sprintf("%d Mbit/s", f.SpeedMbit)
		}
		rows[n] = []any{f.Name, state, speed, f.MTU, cmp.Or(f.MAC, "-"), frame.Join(f.Addresses)}
	}
	return rows
}

func (c *cli) inventoryWatch() *cobra.Command {
	return c.Leaf(&cobra.Command{
		Use:   "watch [NODE]",
		Short: "Follow what changes on hosts: containers, interfaces, paths",
		Long: `Follow what changes on hosts, a line for each change, until interrupted. With
-o json each message of a node is one JSON document on a line, with all that
changed as a JSON merge patch, load and the like included.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return frame.Exactly("NODE")(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: c.Completer(1, nodeNames),
	}, func(ctx context.Context, hub *api.Client, args []string) error {
		node := ""
		if len(args) > 0 {
			if err := frame.CheckName("node", args[0]); err != nil {
				return err
			}
			node = args[0]
		}
		print := func(ch api.InventoryChange) error {
			for _, l := range ch.Lines {
				if _, err := fmt.Fprintf(c.Out, "%s  %s  %s  %s\n", frame.Stamp(ch.Time), protocol.Printable(ch.Site), protocol.Printable(ch.Node), protocol.Printable(l)); err != nil {
					return err
				}
			}
			return nil
		}
		switch c.Format {
		case frame.FormatJSON, frame.FormatYAML:
			e := json.NewEncoder(c.Out)
			e.SetEscapeHTML(false)
			print = func(ch api.InventoryChange) error {
				if c.Format == frame.FormatJSON {
					return e.Encode(ch)
				}
				if _, err := fmt.Fprintln(c.Out, "---"); err != nil {
					return err
				}
				return c.Show(ch, nil, nil)
			}
		case frame.FormatName:
			print = func(ch api.InventoryChange) error {
				if len(ch.Lines) == 0 {
					return nil
				}
				_, err := fmt.Fprintln(c.Out, protocol.Printable(ch.Node))
				return err
			}
		}
		err := hub.FollowFacts(ctx, node, func() error {
			_, err := fmt.Fprintln(c.Err, "watching; interrupt to end")
			return err
		}, print)
		if ctx.Err() != nil {
			return nil // interrupted, as it is meant to be ended
		}
		return err
	})
}
