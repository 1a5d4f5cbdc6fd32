package agent

import (
	"context"
	"fmt"

	"causeway/agent/health"
	"causeway/netns"
)

// deviceName is what the tunnel's device is called, which somebody may have renamed.
func (a *Agent) deviceName() string {
	if d := a.tunnel.Device(); d.Name != "" {
		return d.Name
	}
	return a.cfg.Settings.Tunnel.Interface
}

// setDevice gives the plan the tunnel's device as it is, and as it was made. Once there was
// one, a link of its name is somebody else's while there is none.
func (a *Agent) setDevice(c *netns.Config) {
	c.Interface = a.cfg.Settings.Tunnel.Interface
	d := a.tunnel.Device()
	switch {
	case d.Name != "":
		c.Interface, c.Index, c.LinkMTU, c.Queue = d.Name, d.Index, d.MTU, d.Queue
		a.hadDevice.Store(true)
	case a.hadDevice.Load():
		c.Index = netns.NoDevice
	}
}

// noteName says so where another link has our device's name.
func (a *Agent) noteName() {
	now, want := a.deviceName(), a.cfg.Settings.Tunnel.Interface
	if now == want {
		a.board.Set(health.Tunnel, "")
		return
	}
	a.board.SetNote(health.Tunnel, fmt.Sprintf("the tunnel's device was renamed to %s, and another link is called %s by now; it works under that name, and takes its own again when that is free", now, want))
}

// takeNameBack gives a renamed device its name back once that is free.
func (a *Agent) takeNameBack(ctx context.Context) {
	want := a.cfg.Settings.Tunnel.Interface
	if a.deviceName() == want {
		return
	}
	if _, err := a.tunnel.Reattach(); err != nil {
		a.log.Debug().Err(err).Msg("the tunnel's device keeps the name that it was given")
	}
	if a.deviceName() == want {
		a.reapply(ctx)
	}
}
