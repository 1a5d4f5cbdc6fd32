package onhost

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"causeway/netns"
	"causeway/protocol"
)

const (
	// mtuPoll is how often the paths' MTUs are looked at.
	mtuPoll = 250 * time.Millisecond
	// mtuSettled is how long a larger MTU has to hold before routes get it; a
	// smaller one is taken at once.
	mtuSettled = time.Second
	// mtuGather is the least time between two applies for larger MTUs.
	mtuGather = 2 * time.Second
)

// defaultMTU is of routes where the path's is not known.
func (k *Keeper) defaultMTU() int {
	if m := k.live.Now().Tunnel.MTU; m > 0 {
		return min(m, netns.DefaultMTU)
	}
	return netns.DefaultMTU
}

// setMTUs gives the routes to each peer the MTU of its path. A peer's overlay
// address, which lies in the overlay's range, gets a route of its own if it
// differs from that.
func (k *Keeper) setMTUs(c *netns.Config, peers []protocol.Peer) {
	mtus := k.Facts().MTUs
	c.Routes = slices.Clone(c.Routes)
	for _, p := range peers {
		m := mtus[p.Number()]
		if k.live.Now().Tunnel.MTU > 0 {
			m = min(m, k.live.Now().Tunnel.MTU)
		}
		if m == 0 || m == c.MTU {
			continue
		}
		if c.MTUs == nil {
			c.MTUs = map[netip.Prefix]int{}
		}
		for _, o := range p.Overlay {
			c.Routes = append(c.Routes, netip.PrefixFrom(o, o.BitLen()))
		}
		for _, x := range p.Prefixes() {
			c.MTUs[x.Masked()] = m
		}
	}
}

// recallMTUs takes over what an earlier run found: while routes were narrower
// for a moment, hosts behind them would learn that, and keep to it for minutes.
func (k *Keeper) recallMTUs(ctx context.Context) {
	found, err := k.host.RouteMTUs(ctx, k.hostConfig(nil, nil, nil))
	if err != nil {
		k.log.Debug().Err(err).Msg("routes of an earlier run were not read")
		return
	}
	mtus := map[protocol.NodeNumber]int{}
	for _, p := range k.want.Now().Netmap().Peers {
		for _, o := range p.Overlay {
			if m := found[netip.PrefixFrom(o, o.BitLen())]; m > 0 && (o.Is4() || mtus[p.Number()] == 0) {
				mtus[p.Number()] = m
			}
		}
	}
	k.setMTUsOfPaths(mtus)
}

// FollowMTUs keeps the routes' MTUs true to the paths'.
func (k *Keeper) FollowMTUs(ctx context.Context) error {
	t := time.NewTicker(mtuPoll)
	defer t.Stop()
	f := mtuFollower{normal: k.defaultMTU(), most: k.live.Now().Tunnel.MTU}
	f.used = maps.Clone(k.Facts().MTUs)
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			if !f.step(now, k.tunnel.Paths()) {
				continue
			}
			k.setMTUsOfPaths(f.used)
			k.Reapply(ctx)
		}
	}
}

// mtuFollower decides when routes follow their paths: down at once, up when
// it is sure to last, so that the host's network is not set up again and again.
type mtuFollower struct {
	normal int // where nothing is known
	most   int // 0: any

	used   map[protocol.NodeNumber]int       // of every peer that ever had one
	higher map[protocol.NodeNumber]time.Time // since when it could be raised
	raised time.Time
}

// step takes the paths as they are now and reports whether used has changed.
func (f *mtuFollower) step(now time.Time, paths []protocol.PathStatus) (changed bool) {
	if f.used == nil {
		f.used = map[protocol.NodeNumber]int{}
	}
	if f.higher == nil {
		f.higher = map[protocol.NodeNumber]time.Time{}
	}
	found := map[protocol.NodeNumber]int{}
	for _, p := range paths {
		if m := p.MTU; m > 0 {
			if f.most > 0 {
				m = min(m, f.most)
			}
			found[p.Peer] = max(m, netns.MinMTU)
		}
	}
	var raise []protocol.NodeNumber
	for n, m := range found {
		use, ok := f.used[n]
		if !ok {
			use = f.normal
		}
		switch {
		case m < use:
			f.used[n], changed = m, true
			delete(f.higher, n)
		case m == use:
			delete(f.higher, n)
		case f.higher[n].IsZero():
			f.higher[n] = now
		case now.Sub(f.higher[n]) >= mtuSettled:
			raise = append(raise, n)
		}
	}
	maps.DeleteFunc(f.higher, func(n protocol.NodeNumber, _ time.Time) bool { return found[n] == 0 })
	if len(raise) == 0 || now.Sub(f.raised) < mtuGather {
		return changed
	}
	for _, n := range raise {
		f.used[n] = found[n]
		delete(f.higher, n)
	}
	f.raised = now
	return true
}
