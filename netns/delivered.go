package netns

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// deliverWait is how long the kernel may take to make the route of an IPv6 address, which it does later on.
const deliverWait = 300 * time.Millisecond

// delivered are those addresses of a link that the kernel has a route of type local to, without
// which packets to them are for somebody else, and no route may name them as its source: who
// flushes all tables takes them away and leaves the addresses. Of a link that is down it does
// not matter, and all are.
func delivered(link netlink.Link, addrs []addr) (map[netip.Addr]bool, error) {
	now, err := kernel.Retry(func() (netlink.Link, error) { return netlink.LinkByIndex(link.Attrs().Index) })
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", link.Attrs().Name, err)
	}
	out := map[netip.Addr]bool{}
	if now.Attrs().Flags&unix.IFF_UP == 0 {
		for _, x := range addrs {
			out[x.Addr()] = true
		}
		return out, nil
	}
	for end := time.Now().Add(deliverWait); ; time.Sleep(5 * time.Millisecond) {
		if err := addLocal(out, now); err != nil {
			return nil, err
		}
		missing := slices.ContainsFunc(addrs, func(x addr) bool { return x.Addr().Is6() && !out[x.Addr()] })
		if !missing || time.Now().After(end) {
			return out, nil
		}
	}
}

// addLocal adds the addresses that routes of type local lead to by a link.
func addLocal(out map[netip.Addr]bool, link netlink.Link) error {
	table := unix.RT_TABLE_LOCAL
	if vrf := kernel.VRFTable(link.Attrs().Name); vrf != 0 {
		table = vrf
	}
	for _, v6 := range kernel.Families() {
		rs, err := kernel.Retry(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(kernel.Family(v6), &netlink.Route{Table: table, Type: unix.RTN_LOCAL, LinkIndex: link.Attrs().Index},
				netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_OIF)
		})
		if err != nil {
			return fmt.Errorf("list routes of table %d: %w", table, err)
		}
		for _, r := range rs {
			if x, ok := kernel.PrefixOf(r.Dst); ok && x.IsSingleIP() {
				out[x.Addr()] = true
			}
		}
	}
	return nil
}
