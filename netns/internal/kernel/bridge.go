package kernel

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// HairpinPorts are the ports of all bridges by the index of their link, and whether each is in hairpin mode.
func HairpinPorts() (map[int]bool, error) {
	msgs, err := Retry(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("list ports of bridges: %w", err)
	}
	out := map[int]bool{}
	for _, m := range msgs {
		if len(m) < unix.SizeofIfInfomsg {
			continue
		}
		index := int(nl.DeserializeIfInfomsg(m).Index)
		for typ, v := range Attributes(m[unix.SizeofIfInfomsg:]) {
			if typ != unix.IFLA_PROTINFO {
				continue
			}
			for typ, v := range Attributes(v) {
				if typ == nl.IFLA_BRPORT_MODE && len(v) == 1 {
					out[index] = v[0] == 1
				}
			}
		}
	}
	return out, nil
}

// Station is the hardware address of a neighbor on a link, as the kernel has it; nil: it knows none. It asks for the one entry: what
// changes amid a list of all may leave one out.
func Station(link int, a netip.Addr) net.HardwareAddr {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	_, mac := neighbor(family, link, nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()))
	return mac
}

// PortOf is the port of a bridge, by the index of its link, behind which it has learnt an address; 0: it has not.
func PortOf(bridge int, mac net.HardwareAddr) int {
	port, _ := neighbor(unix.AF_BRIDGE, 0, nl.NewRtAttr(netlink.NDA_LLADDR, mac), nl.NewRtAttr(netlink.NDA_MASTER, nl.Uint32Attr(uint32(bridge))))
	return port
}

// neighbor gets one entry (Linux 5.0).
func neighbor(family, link int, attrs ...*nl.RtAttr) (index int, mac net.HardwareAddr) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, 0)
	req.AddData(&netlink.Ndmsg{Family: uint8(family), Index: uint32(link)})
	for _, a := range attrs {
		req.AddData(a)
	}
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil || len(msgs) == 0 {
		return 0, nil
	}
	n, err := netlink.NeighDeserialize(msgs[0])
	if err != nil {
		return 0, nil
	}
	return n.LinkIndex, n.HardwareAddr
}
