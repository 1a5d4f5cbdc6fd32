package inventory

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"causeway/protocol"
)

// maxFacts is the size of facts that fits one message with room for its header.
const maxFacts = protocol.MaxInventory - 16<<10

// bound keeps facts within the protocol's bounds and says what it left out.
func bound(inv *protocol.Inventory) {
	if n := len(inv.Interfaces) - protocol.MaxInterfaces; n > 0 {
		inv.Interfaces = inv.Interfaces[:protocol.MaxInterfaces]
		inv.LeftOut = append(inv.LeftOut, fmt.Sprintf("%d interfaces", n))
	}
	for i := range inv.Interfaces {
		inv.Interfaces[i].Addresses = cut(inv.Interfaces[i].Addresses, protocol.MaxAddresses)
	}
	inv.Refused = cut(inv.Refused, protocol.MaxRefused)
	keep(inv, inv.Disks, protocol.MaxDisks, "disks")
	keep(inv, inv.Paths, protocol.MaxPaths, "paths")
	keep(inv, inv.Runtimes, protocol.MaxRuntimes, "runtimes")
	keep(inv, inv.Containers, protocol.MaxContainers, "containers")
	for k, c := range inv.Containers {
		c.Name, c.Image = protocol.OneLine(c.Name, protocol.MaxFactText), protocol.OneLine(c.Image, protocol.MaxFactText)
		c.State = protocol.ContainerState(protocol.OneLine(string(c.State), 32))
		c.Addresses = cut(c.Addresses, protocol.MaxAddresses)
		c.Labels = boundLabels(c.Labels)
		inv.Containers[k] = c
	}
}

func boundLabels(l map[string]string) map[string]string {
	out := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(l)) {
		if len(out) == protocol.MaxNodeLabels {
			break
		}
		out[protocol.OneLine(k, protocol.MaxLabelLength)] = protocol.OneLine(l[k], protocol.MaxLabelLength)
	}
	return out
}

func cut[T any](l []T, most int) []T { return l[:min(len(l), most)] }

// keep leaves the first most entries of m, by key, so that the choice stays the same.
func keep[T any](inv *protocol.Inventory, m map[string]T, most int, what string) {
	if len(m) <= most {
		return
	}
	inv.LeftOut = append(inv.LeftOut, fmt.Sprintf("%d %s", len(m)-most, what))
	for _, k := range slices.Sorted(maps.Keys(m))[most:] {
		delete(m, k)
	}
}

// fit returns the JSON of facts. Where it is too long, first the labels of containers
// go, then containers.
func fit(inv *protocol.Inventory) ([]byte, error) {
	b, err := json.Marshal(inv)
	if err != nil || len(b) <= maxFacts {
		return b, err
	}
	inv.LeftOut = append(inv.LeftOut, "labels of containers")
	inv.Containers = maps.Clone(inv.Containers)
	for k, c := range inv.Containers {
		c.Labels = nil
		inv.Containers[k] = c
	}
	for {
		if b, err = json.Marshal(inv); err != nil || len(b) <= maxFacts {
			return b, err
		}
		if len(inv.Containers) == 0 {
			return nil, fmt.Errorf("facts of %d bytes do not fit a message", len(b))
		}
		keep(inv, inv.Containers, len(inv.Containers)/2, "containers")
	}
}

// settle keeps the values of last in inv where they moved too little to be told of
// between snapshots: load, memory, disks, rates and round trips never stand still.
func settle(last protocol.Inventory, inv *protocol.Inventory) {
	if l, n := last.Load, inv.Load; l != nil && n != nil && near(l.One, n.One, 0.25, 0.5) && near(l.Five, n.Five, 0.25, 0.5) && near(l.Fifteen, n.Fifteen, 0.25, 0.5) {
		inv.Load = l
	}
	settleTo(last.MemoryUsed, &inv.MemoryUsed, inv.MemoryTotal/50)
	for k, d := range inv.Disks {
		if l, ok := last.Disks[k]; ok {
			settleTo(l.Used, &d.Used, d.Total/100)
			inv.Disks[k] = d
		}
	}
	for k, n := range inv.Paths {
		l, ok := last.Paths[k]
		if !ok {
			continue
		}
		if near(l.RTT, n.RTT, 0.25, 1) {
			n.RTT = l.RTT
		}
		if near(l.Loss, n.Loss, 0, 0.02) {
			n.Loss = l.Loss
		}
		settleTo(l.RxRate, &n.RxRate, max(10_000, l.RxRate/4))
		settleTo(l.TxRate, &n.TxRate, max(10_000, l.TxRate/4))
		inv.Paths[k] = n
	}
	for k, n := range inv.Containers {
		l, ok := last.Containers[k]
		if !ok {
			continue
		}
		if near(float64(l.CPUUsed), float64(n.CPUUsed), 0.25, 50) {
			n.CPUUsed = l.CPUUsed
		}
		settleTo(l.MemoryUsed, &n.MemoryUsed, max(1<<20, l.MemoryUsed/10))
		inv.Containers[k] = n
	}
	if l, n := last.Capacity, inv.Capacity; l != nil && n != nil {
		c := *n
		for _, a := range []struct {
			from protocol.Amount
			to   *protocol.Amount
			by   uint64
		}{{l.CPU, &c.CPU, max(100, n.CPU.Total/20)}, {l.Memory, &c.Memory, n.Memory.Total / 50}} {
			if a.from.Total == a.to.Total {
				settleTo(a.from.Used, &a.to.Used, a.by)
				*a.to = protocol.AmountOf(a.to.Total, a.to.Used)
			}
		}
		inv.Capacity = &c
	}
}

// near reports whether b differs from a by no more than a share of it or a fixed amount.
func near(a, b, share, fixed float64) bool { return math.Abs(a-b) <= max(math.Abs(a)*share, fixed) }

func settleTo(last uint64, now *uint64, by uint64) {
	if last > *now && last-*now <= by || last <= *now && *now-last <= by {
		*now = last
	}
}
