// Package service gives services that run at several sites one address: an nftables table of its own that translates
// the address and port of a service to those of a backend, by a map of slots. No process is in between: who has which
// slot is all that changes when backends come and go, and the table stands when the agent does not.
//
// Config says what shall hold, pure and without a kernel. Table writes it by netlink, what is new against what was written
// last, and does for the flows that are open what rules cannot: Release and Prod.
package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"causeway/netns"
	"causeway/protocol"
)

// TableName is the nftables table, of family inet.
const TableName = netns.PartPrefix + "service"

// Bounds of a Config.
const (
	// MaxSlots is how many slots all services have together: about 90 MB of the kernel.
	MaxSlots = 1 << 20
	// MaxServices is how many services there may be, those without slots too.
	MaxServices = 1 << 16
	// MaxDead is how many backends may be dead.
	MaxDead = 1 << 16
	// MaxPrefixes is how many prefixes or addresses each list of a host has.
	MaxPrefixes = 4096
)

// Backend is where a service runs.
type Backend struct {
	Proto uint8 // 6 or 17
	Addr  netip.AddrPort
}

// Service is one port of a service in one family.
type Service struct {
	VIP    netip.Addr
	Proto  uint8 // 6 or 17
	Port   uint16
	Sticky bool // a client's address has the same slot at every node; else each connection takes one at random
	// Slots are 64 or 256, each a backend of the VIP's family. Without any, connections are refused at once. Whoever
	// hands them over leaves them as they are.
	Slots []netip.AddrPort
	// Expose are addresses of the host's own, of the VIP's family, by which it is met from elsewhere than the tunnel; a program that
	// listens there hears nothing of it while there are slots.
	Expose []netip.AddrPort
}

// Config is what shall hold on a host: what it is, and what is there of services at the moment.
type Config struct {
	Interface string         // of the tunnel
	Range     []netip.Prefix // of all addresses of services. The host's routes lead them into the tunnel, where nobody has them
	Own       []netip.Addr   // the node's own overlay addresses; the first of each family is what a source becomes that peers know nothing of
	Local     []netip.Prefix // pods and LANs at this node
	Inside    []string       // interfaces behind which there are this host's own containers alone: they see who comes by Service.Expose
	Self      []netip.Addr   // of those, who may come to be his own backend

	Services []Service
	// Dead are backends whose flows are at an end: what comes of a connection to one through a service is reset, and what
	// comes back from one is dropped. A connection that is only begun is not reset, so that Release can move it.
	Dead []Backend
	// Fenced are backends at this host to which nothing comes out of the tunnel.
	Fenced []Backend
	// Left are flows of services that are at an end as those of dead backends are, of one service alone.
	Left []Left
}

// key is what a service is found by.
type key struct {
	vip   netip.Addr
	proto uint8
	port  uint16
}

func (s Service) key() key { return key{s.VIP, s.Proto, s.Port} }

func (k key) String() string {
	return fmt.Sprintf("%s, protocol %d", netip.AddrPortFrom(k.vip, k.port), k.proto)
}

func (k key) compare(o key) int {
	return cmp.Or(k.vip.Compare(o.vip), cmp.Compare(k.proto, o.proto), cmp.Compare(k.port, o.port))
}

// host is what a Config says of the host, in a form that compares.
type host struct {
	device string
	ranges []netip.Prefix
	own    []netip.Addr
	local  []netip.Prefix
	inside []string
}

// host checks what a Config says of the host.
func (c Config) host() (h host, err error) {
	if c.Interface == "" || len(c.Interface) > 15 {
		return h, fmt.Errorf("service: interface name %q: want 1 to 15 characters", c.Interface)
	}
	h.device = c.Interface
	if len(c.Inside) > netns.MaxInside {
		return h, fmt.Errorf("service: more than %d interfaces", netns.MaxInside)
	}
	for _, dev := range c.Inside {
		if dev == "" || len(dev) > 15 {
			return h, fmt.Errorf("service: interface name %q: want 1 to 15 characters", dev)
		}
	}
	h.inside = slices.Clone(c.Inside)
	if len(c.Range) > MaxPrefixes || len(c.Own) > MaxPrefixes || len(c.Local) > MaxPrefixes || len(c.Self) > MaxPrefixes {
		return h, fmt.Errorf("service: more than %d prefixes or addresses of one kind", MaxPrefixes)
	}
	if h.ranges, err = prefixes("range of services", c.Range); err != nil {
		return h, err
	}
	if h.local, err = prefixes("local prefix", c.Local); err != nil {
		return h, err
	}
	for _, a := range c.Own {
		if err := plain(a); err != nil {
			return h, fmt.Errorf("service: own address %s %w", a, err)
		}
		if !slices.Contains(h.own, a) {
			h.own = append(h.own, a)
		}
	}
	return h, nil
}

// inRange reports whether an address is one of services'.
func (h host) inRange(a netip.Addr) bool {
	return slices.ContainsFunc(h.ranges, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (h host) equal(o host) bool {
	return h.device == o.device && slices.Equal(h.ranges, o.ranges) && slices.Equal(h.own, o.own) && slices.Equal(h.local, o.local) && slices.Equal(h.inside, o.inside)
}

// prefixes are masked and in order; of those within another only the other is left.
func prefixes(what string, in []netip.Prefix) (out []netip.Prefix, err error) {
	l := make([]netip.Prefix, len(in))
	for i, p := range in {
		l[i] = p.Masked()
		if err := protocol.CheckPrefix(l[i]); err != nil {
			return nil, fmt.Errorf("service: %s %s %w", what, p, err)
		}
	}
	slices.SortFunc(l, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range l {
		if n := len(out); n == 0 || !out[n-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out, nil
}

// plain is an error if an address is none that a packet goes to.
func plain(a netip.Addr) error {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return fmt.Errorf("is no plain address of a host")
	}
	return nil
}

// check looks at a service by itself.
func (s Service) check() error {
	if err := plain(s.VIP); err != nil {
		return err
	}
	switch {
	case s.Proto != unix.IPPROTO_TCP && s.Proto != unix.IPPROTO_UDP:
		return fmt.Errorf("is neither TCP (6) nor UDP (17)")
	case s.Port == 0:
		return fmt.Errorf("has no port")
	case len(s.Slots) != 0 && len(s.Slots) != 64 && len(s.Slots) != 256:
		return fmt.Errorf("has %d slots: want none, 64 or 256", len(s.Slots))
	}
	for i, b := range s.Slots {
		if i > 0 && b == s.Slots[i-1] {
			continue
		}
		if err := plain(b.Addr()); err != nil {
			return fmt.Errorf("slot %d: %s %w", i, b.Addr(), err)
		}
		if b.Addr().Is4() != s.VIP.Is4() || b.Port() == 0 {
			return fmt.Errorf("slot %d: %s is of another family, or without a port", i, b)
		}
	}
	return nil
}

func (b Backend) check() error {
	if err := plain(b.Addr.Addr()); err != nil {
		return fmt.Errorf("service: backend %s %w", b.Addr, err)
	}
	if b.Proto != unix.IPPROTO_TCP && b.Proto != unix.IPPROTO_UDP || b.Addr.Port() == 0 {
		return fmt.Errorf("service: backend %s is neither of TCP (6) nor UDP (17), or without a port", b.Addr)
	}
	return nil
}

// checkRange looks whether services lie in the host's range, and their backends do not. Those of known do.
func (h host) checkRange(l, known live) error {
	for k, e := range l.services {
		if known.services[k] == e {
			continue
		}
		if _, by := l.exposed[k]; !by && !h.inRange(k.vip) {
			return fmt.Errorf("service: %s is in no range of services", k)
		}
		for b := range e.backends(k) {
			if h.inRange(b.Addr()) {
				return fmt.Errorf("service: %s: backend %s is the address of a service itself", k, b)
			}
		}
	}
	return nil
}
