package agent

import (
	"context"
	"net/netip"
	"strconv"
	"time"

	"causeway/agent/config"
	"causeway/agent/desired"
	"causeway/agent/flows"
	"causeway/agent/inventory"
	"causeway/agent/onhost"
	"causeway/protocol"
)

// gatherer puts the node's facts together. gather is called by one at a time.
type gatherer struct {
	version string
	live    *config.Live
	want    *desired.Desired
	host    *onhost.Keeper
	tunnel  Tunnel
	facts   *inventory.Collector
	flows   *flows.Watcher
	told    func(map[string]protocol.Container) // hears of each look at the host's containers

	carried map[protocol.NodeNumber]carried // what paths had carried
	rates   map[protocol.NodeNumber][2]uint64
}

// gather is the node's facts: the host's, and the agent's own.
func (g *gatherer) gather(ctx context.Context) protocol.Inventory {
	inv := g.facts.Facts(ctx)
	g.told(inv.Containers)
	inv.AgentVersion, inv.Engine = g.version, g.tunnel.EngineName()
	inv.PodCIDRs, inv.Labels = notNil(g.want.Announced()), g.live.Now().Labels
	inv.Paths, inv.Refused = g.pathFacts(inv.Time), g.flows.Repeated()
	used := inv.Capacity.Pods.Used
	inv.Capacity.Pods = protocol.Amount{Used: used}
	if n := podAddresses(inv.PodCIDRs); n > 0 {
		inv.Capacity.Pods = protocol.AmountOf(n, used)
	}
	return inv
}

// maxPodAddresses keeps ranges that nobody fills from looking like room.
const maxPodAddresses = 1 << 16

// podAddresses is how many pods the IPv4 ranges of a node have addresses for: all but those of
// network, gateway and broadcast. IPv6 ranges are no bound.
func podAddresses(ranges []netip.Prefix) (n uint64) {
	for _, p := range ranges {
		if free := uint64(1)<<(32-min(p.Bits(), 32)) - 3; p.Addr().Is4() && p.Bits() <= 29 {
			n += free
		}
	}
	return min(n, maxPodAddresses)
}

// carried is what a path had carried at a time.
type carried struct {
	at     time.Time
	rx, tx uint64
}

// pathFacts are the paths in use, with rates since they were last asked for. Only
// gather calls it.
func (g *gatherer) pathFacts(now time.Time) map[string]protocol.Path {
	names := map[protocol.NodeNumber]string{}
	for _, p := range g.host.Facts().Result.Peers {
		names[p.Number()] = p.Name
	}
	for _, h := range g.want.Now().Hubs.Hubs {
		names[h.Number] = "hub"
	}
	out, seen := map[string]protocol.Path{}, map[protocol.NodeNumber]carried{}
	for _, p := range g.tunnel.Paths() {
		if p.Path == protocol.PathNone {
			continue
		}
		f := protocol.Path{Peer: names[p.Peer], Path: p.Path, Idle: p.Idle, RTT: float64(p.RTT.Microseconds()) / 1000, Loss: p.Loss, MTU: p.MTU}
		c := carried{now, p.RxBytes, p.TxBytes}
		if was, ok := g.carried[p.Peer]; ok && c.rx >= was.rx && c.tx >= was.tx {
			d := now.Sub(was.at).Seconds()
			if d >= minRate.Seconds() {
				f.RxRate, f.TxRate = uint64(float64(c.rx-was.rx)/d), uint64(float64(c.tx-was.tx)/d)
				g.rates[p.Peer] = [2]uint64{f.RxRate, f.TxRate}
			} else {
				c, f.RxRate, f.TxRate = was, g.rates[p.Peer][0], g.rates[p.Peer][1]
			}
		}
		seen[p.Peer] = c
		out[strconv.FormatUint(uint64(p.Peer), 10)] = f
	}
	g.carried = seen
	for n := range g.rates {
		if _, ok := seen[n]; !ok {
			delete(g.rates, n)
		}
	}
	return out
}

// minRate is over how long a rate is an average at least.
const minRate = 5 * time.Second
