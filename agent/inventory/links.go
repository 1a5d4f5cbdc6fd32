package inventory

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/mdlayher/ethtool"
	"github.com/vishvananda/netlink"
	"go4.org/netipx"

	"causeway/protocol"
)

// Interfaces lists the host's network interfaces, by name. Neither loopback is among
// them nor the host's ends of pods' interfaces, which have no address: they come
// and go with pods, and pods are told of themselves.
func Interfaces() []protocol.Interface {
	links, err := netlink.LinkList()
	if err != nil && len(links) == 0 {
		return nil
	}
	speeds := linkSpeeds()
	out := []protocol.Interface{}
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 {
			continue
		}
		x := protocol.Interface{Name: protocol.OneLine(a.Name, protocol.MaxFactText), Kind: l.Type(), MAC: a.HardwareAddr.String(), MTU: a.MTU,
			SpeedMbit: speeds[a.Index], Up: a.Flags&net.FlagUp != 0, Addresses: []netip.Prefix{}}
		if as, err := netlink.AddrList(l, netlink.FAMILY_ALL); err == nil {
			for _, n := range as {
				ip, ok := netipx.FromStdIP(n.IP) // with its host part
				bits, _ := n.Mask.Size()
				if ok {
					x.Addresses = append(x.Addresses, netip.PrefixFrom(ip, bits))
				}
			}
		}
		slices.SortFunc(x.Addresses, netipx.ComparePrefix)
		if x.Kind == "veth" && !slices.ContainsFunc(x.Addresses, func(p netip.Prefix) bool { return !p.Addr().IsLinkLocalUnicast() }) {
			continue
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b protocol.Interface) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// linkSpeeds are the speeds in Mbit/s of what has one, by index. Links that are down, and
// kernels without ethtool's netlink, tell none.
func linkSpeeds() map[int]int {
	c, err := ethtool.New()
	if err != nil {
		return nil
	}
	defer c.Close()
	modes, err := c.LinkModes()
	if err != nil {
		return nil
	}
	out := map[int]int{}
	for _, m := range modes {
		if m.SpeedMegabits > 0 && m.SpeedMegabits < 1<<31 { // all ones: not known
			out[m.Interface.Index] = m.SpeedMegabits
		}
	}
	return out
}

// watchLinks signals changes of links and addresses until ctx ends. The sockets are
// opened here: on the caller's thread, in its namespace. It reports whether the
// kernel tells.
func watchLinks(ctx context.Context, changed chan struct{}) bool {
	links, addrs := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64)
	done := make(chan struct{})
	if err := netlink.LinkSubscribe(links, done); err != nil {
		close(done)
		return false
	}
	if err := netlink.AddrSubscribe(addrs, done); err != nil {
		close(done)
		return false
	}
	go func() {
		<-ctx.Done()
		close(done)
	}()
	go func() {
		// Both are closed when their sockets end; the last poll of links is then
		// what finds changes.
		for links != nil || addrs != nil {
			select {
			case _, ok := <-links:
				if !ok {
					links = nil
				}
			case _, ok := <-addrs:
				if !ok {
					addrs = nil
				}
			}
			if ctx.Err() == nil {
				signal(changed)
			}
		}
	}()
	return true
}
