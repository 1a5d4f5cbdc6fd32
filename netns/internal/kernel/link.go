package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LinkByName returns nil without an error if there is no such link.
func LinkByName(name string) (netlink.Link, error) {
	l, err := Retry(func() (netlink.Link, error) { return netlink.LinkByName(name) })
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return l, nil
}

// LinkName is the name of a link by its index, which is name for own, and ? for one that has gone.
func LinkName(i, own int, name string) string {
	if i == own {
		return name
	}
	if l, err := netlink.LinkByIndex(i); err == nil {
		return l.Attrs().Name
	}
	return "?"
}

// VRFTable is the table of the VRF that an interface is in, or is; 0 for none.
func VRFTable(dev string) int {
	l, err := LinkByName(dev)
	if err != nil || l == nil {
		return 0
	}
	if m := l.Attrs().MasterIndex; m > 0 {
		if l, err = netlink.LinkByIndex(m); err != nil {
			return 0
		}
	}
	if v, ok := l.(*netlink.Vrf); ok {
		return int(v.Table)
	}
	return 0
}

// AddClsact gives a device the qdisc that trials hang their filters on. It comes before the device
// is up, and stays until that goes: the kernel shuts the queues for a moment when one comes
// or goes, and drops what is sent meanwhile.
func AddClsact(link netlink.Link) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add qdisc clsact to %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// Families are the address families of the host.
func Families() []bool {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		return []bool{false}
	}
	return []bool{false, true}
}

// Family is an address family as netlink has it.
func Family(v6 bool) int {
	if v6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// Retry repeats a netlink dump that the kernel interrupted because its table
// changed meanwhile.
func Retry[T any](f func() (T, error)) (v T, err error) {
	for range 10 {
		if v, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return v, err
}

// PrefixOf converts without masking: addresses keep their host part.
func PrefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); bits == 0 || ones > a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), true
}
