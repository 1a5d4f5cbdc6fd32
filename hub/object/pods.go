package object

import (
	"maps"
	"slices"

	"causeway/hub/policy"
	"causeway/protocol"
)

// PodsOf are the pods of a node as rules see them, in one order: its running containers that have addresses.
func PodsOf(n protocol.NodeNumber, containers map[string]protocol.Container) (out []policy.Pod) {
	for _, id := range slices.Sorted(maps.Keys(containers)) {
		if c := containers[id]; c.State == protocol.ContainerRunning && len(c.Addresses) > 0 {
			out = append(out, policy.Pod{Node: n, Addrs: c.Addresses, Labels: c.Labels})
		}
	}
	return out
}
