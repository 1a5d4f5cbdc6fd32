package debug

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
)

// ReadFlows lists conntrack's entries in the namespace of the calling thread.
func ReadFlows(ctx context.Context, q FlowQuery) ([]Flow, error) {
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if q.A.Is6() {
		family = netlink.FAMILY_V6
	}
	all, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	if err != nil {
		return nil, fmt.Errorf("list conntrack: %w", err)
	}
	var out []Flow
	for _, c := range all {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		f := Flow{Proto: protoName(c.Forward.Protocol), Mark: c.Mark, Timeout: c.TimeOut,
			Packets: [2]uint64{c.Forward.Packets, c.Reverse.Packets}, Bytes: [2]uint64{c.Forward.Bytes, c.Reverse.Bytes},
			addrs: [4]netip.Addr{addrOf(c.Forward.SrcIP), addrOf(c.Forward.DstIP), addrOf(c.Reverse.SrcIP), addrOf(c.Reverse.DstIP)},
			ports: [4]uint16{c.Forward.SrcPort, c.Forward.DstPort, c.Reverse.SrcPort, c.Reverse.DstPort}}
		if !f.Matches(q) {
			continue
		}
		text := func(i int) string { return netip.AddrPortFrom(f.addrs[i], f.ports[i]).String() }
		f.Orig, f.Reply = [2]string{text(0), text(1)}, [2]string{text(2), text(3)}
		f.NAT = f.addrs[0] != f.addrs[3] || f.addrs[1] != f.addrs[2] || f.ports[0] != f.ports[3] || f.ports[1] != f.ports[2]
		out = append(out, f)
	}
	return out, nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func protoName(p uint8) string {
	switch p {
	case 1, 58:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	}
	return strconv.Itoa(int(p))
}
