package agent

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"causeway/agent/clock"
	"causeway/agent/config"
	"causeway/agent/identity"
	"causeway/agent/items"
	"causeway/agent/onhost"
	"causeway/agent/service"
	"causeway/protocol"
)

// serviceView is what is in force that services depend on: the same pointer until the next apply.
func serviceView(host *onhost.Keeper, own *identity.Own, live *config.Live, t Tunnel, addresses func() []netip.Addr) func() *service.View {
	var last *service.View
	var serial uint64
	var looked time.Time // at the host's addresses
	return func() *service.View {
		f := host.Facts()
		fresh := last == nil || f.Serial != serial
		exposes := slices.ContainsFunc(f.Services, func(s items.Service) bool { return len(s.Expose) > 0 })
		if !fresh && (!exposes || time.Since(looked) < addressesEvery) {
			return last
		}
		next := service.View{Services: f.Services, Site: f.Site, Own: own.Now().Overlay, Local: f.Plan.Local, Peers: f.Result.Peers}
		if exposes {
			looked, next.Outside = time.Now(), outside(own.Now(), live.Now(), t, addresses())
			if !fresh && slices.Equal(last.Outside.Addrs, next.Outside.Addrs) && last.Outside.Still == next.Outside.Still {
				return last
			}
		}
		serial, last = f.Serial, &next
		return last
	}
}

// addressesEvery is how often the host's addresses are looked at while a service is exposed.
const addressesEvery = 5 * time.Second

// outside is how the host may be met from elsewhere than the tunnel.
func outside(id identity.Identity, c config.Config, t Tunnel, addrs []netip.Addr) service.Outside {
	still := func(path string) string { // the agent itself has only what the tunnel needs forwarded
		key := strings.ReplaceAll(path, "/", ".")
		if b, err := os.ReadFile("/proc/sys/" + path); err != nil || strings.TrimSpace(string(b)) != "1" {
			return key + "=1"
		}
		return ""
	}
	return service.Outside{Node: id.Name, Still: [2]string{still("net/ipv4/ip_forward"), still("net/ipv6/conf/all/forwarding")},
		Addrs: slices.DeleteFunc(addrs, func(a netip.Addr) bool { return slices.Contains(id.Overlay, a) }),
		Allows: func(at netip.AddrPort) bool {
			return slices.ContainsFunc(c.Expose, func(e config.Exposure) bool { return e.Allows(at) })
		},
		Taken: func(proto string, port uint16) bool {
			m, err := netip.ParseAddrPort(c.Debug.Metrics)
			return proto == protocol.FlowUDP && port == t.Port() || proto == protocol.FlowTCP && err == nil && port == m.Port()
		}}
}

// ownAddresses are those of the host by which others may reach it, in order.
func ownAddresses() (out []netip.Addr) {
	l, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, x := range l {
		if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr().IsGlobalUnicast() && !slices.Contains(out, p.Addr()) {
			out = append(out, p.Addr())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
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
