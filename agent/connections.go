package agent

import (
	"context"
	"net/netip"
	"slices"

	"causeway/agent/debug"
	"causeway/protocol"
)

// connections tells what crosses the tunnel at this node now.
func (a *answers) connections(ctx context.Context, most int) (protocol.Connections, error) {
	at := map[netip.Prefix]bool{}
	lengths := map[bool][]int{} // by whether of IPv6
	for _, p := range a.host.Facts().Result.Peers {
		for _, x := range slices.Concat(p.Prefixes(), p.Sources) {
			at[x] = true
			if v6 := x.Addr().Is6(); !slices.Contains(lengths[v6], x.Bits()) {
				lengths[v6] = append(lengths[v6], x.Bits())
			}
		}
	}
	return debug.ReadCrossing(ctx, func(x netip.Addr) bool {
		for _, bits := range lengths[x.Is6()] {
			if p, err := x.Prefix(bits); err == nil && at[p] {
				return true
			}
		}
		return false
	}, most)
}
