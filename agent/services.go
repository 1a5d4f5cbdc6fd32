package agent

import (
	"sync/atomic"
	"time"

	"causeway/agent/clock"
	"causeway/agent/identity"
	"causeway/agent/onhost"
	"causeway/agent/service"
	"causeway/protocol"
)

// serviceView is what is in force that services depend on: the same pointer until the next apply.
func serviceView(host *onhost.Keeper, own *identity.Own) func() *service.View {
	var last *service.View
	var serial uint64
	return func() *service.View {
		if f := host.Facts(); last == nil || f.Serial != serial {
			serial = f.Serial
			last = &service.View{Services: f.Services, Site: f.Site, Own: own.Now().Overlay, Local: f.Plan.Local, Peers: f.Result.Peers}
		}
		return last
	}
}

// received are the bytes that came from each node, whatever they were.
func received(t Tunnel) func() map[protocol.NodeNumber]uint64 {
	return func() map[protocol.NodeNumber]uint64 {
		out := map[protocol.NodeNumber]uint64{}
		for _, p := range t.Paths() {
			out[p.Peer] = p.RxBytes
		}
		return out
	}
}

// reached reports whether the tunnel has a way to a node.
func reached(t Tunnel) func(protocol.NodeNumber) bool {
	return func(n protocol.NodeNumber) bool {
		v, ok := t.View(n)
		return ok && v.Path != protocol.PathNone
	}
}

// contact is when this agent said something last that a hub has heard since, by a clock that goes on while the host sleeps. Its methods
// may be called concurrently.
type contact struct {
	boot func() clock.Boot
	last atomic.Int64 // 0: never
}

func newContact(boot func() clock.Boot) *contact { return &contact{boot: boot} }

func (c *contact) now() time.Duration { return c.boot().Since }

func (c *contact) note(at time.Duration) {
	for was := c.last.Load(); int64(at) > was && !c.last.CompareAndSwap(was, int64(at)); was = c.last.Load() {
	}
}

func (c *contact) ago() (time.Duration, bool) {
	last := c.last.Load()
	return c.now() - time.Duration(last), last != 0
}
