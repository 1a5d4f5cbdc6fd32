package onhost

import (
	"context"
	"fmt"

	"causeway/agent/health"
	"causeway/netns"
)

// DeviceName is what the tunnel's device is called, which somebody may have renamed.
func (k *Keeper) DeviceName() string {
	if d := k.tunnel.Device(); d.Name != "" {
		return d.Name
	}
	return k.live.Now().Tunnel.Interface
}

// setDevice gives the plan the tunnel's device as it is, and as it was made. Once there was
// one, a link of its name is somebody else's while there is none.
func (k *Keeper) setDevice(c *netns.Config) {
	c.Interface = k.live.Now().Tunnel.Interface
	d := k.tunnel.Device()
	switch {
	case d.Name != "":
		c.Interface, c.Index, c.LinkMTU, c.Queue = d.Name, d.Index, d.MTU, d.Queue
		k.hadDevice.Store(true)
	case k.hadDevice.Load():
		c.Index = netns.NoDevice
	}
}

// noteName says so where another link has our device's name.
func (k *Keeper) noteName() {
	now, want := k.DeviceName(), k.live.Now().Tunnel.Interface
	if now == want {
		k.board.Set(health.Tunnel, "")
		return
	}
	k.board.SetNote(health.Tunnel, fmt.Sprintf("the tunnel's device was renamed to %s, and another link is called %s by now; it works under that name, and takes its own again when that is free", now, want))
}

// takeNameBack gives a renamed device its name back once that is free.
func (k *Keeper) takeNameBack(ctx context.Context) {
	want := k.live.Now().Tunnel.Interface
	if k.DeviceName() == want {
		return
	}
	if _, err := k.tunnel.Reattach(); err != nil {
		k.log.Debug().Err(err).Msg("the tunnel's device keeps the name that it was given")
	}
	if k.DeviceName() == want {
		k.Reapply(ctx)
	}
}
