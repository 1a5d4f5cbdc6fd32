package debug

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"

	"causeway/protocol"
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

// Conntrack's states of TCP in which both ends have a connection.
const (
	tcpSynReceived = 2
	tcpCloseWait   = 5
)

// ReadCrossing gathers what of conntrack crosses the tunnel in the namespace of the calling thread: one end is remote.
// What is a connection's client and server is as the tunnel sees it, whatever NAT the host does. At most so many
// flows are told, those of many connections first.
func ReadCrossing(ctx context.Context, remote func(netip.Addr) bool, most int) (out protocol.Connections, err error) {
	type flow struct {
		proto    protocol.Proto
		from, to netip.Addr
		port     uint16
	}
	found := map[flow]*protocol.Connection{}
	for _, family := range []netlink.InetFamily{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, fmt.Errorf("list conntrack: %w", err)
		}
		for _, c := range all {
			if ctx.Err() != nil {
				return out, ctx.Err()
			}
			if tcp, ok := c.ProtoInfo.(*netlink.ProtoInfoTCP); ok && (tcp.State < tcpSynReceived || tcp.State > tcpCloseWait) {
				continue
			}
			// One that came out of the tunnel is as the tunnel sees it before, one that goes into it after what the host
			// translates: as its answers are.
			from, to := netip.AddrPortFrom(addrOf(c.Forward.SrcIP), c.Forward.SrcPort), netip.AddrPortFrom(addrOf(c.Forward.DstIP), c.Forward.DstPort)
			if !remote(from.Addr()) {
				from, to = netip.AddrPortFrom(addrOf(c.Reverse.DstIP), c.Reverse.DstPort), netip.AddrPortFrom(addrOf(c.Reverse.SrcIP), c.Reverse.SrcPort)
				if !remote(to.Addr()) {
					continue
				}
			}
			proto := protocol.Proto(c.Forward.Protocol)
			if proto != protocol.ProtoTCP && proto != protocol.ProtoUDP { // ICMP has an identifier there
				from, to = netip.AddrPortFrom(from.Addr(), 0), netip.AddrPortFrom(to.Addr(), 0)
			}
			if proto == protoICMPv6 {
				proto = protocol.ProtoICMP
			}
			k := flow{proto, from.Addr(), to.Addr(), to.Port()}
			if found[k] == nil {
				found[k] = &protocol.Connection{Proto: proto, From: from, To: to}
			}
			found[k].Count++
		}
	}
	out.Flows = make([]protocol.Connection, 0, len(found))
	for _, c := range found {
		out.Flows = append(out.Flows, *c)
	}
	slices.SortFunc(out.Flows, func(a, b protocol.Connection) int {
		return cmp.Or(b.Count-a.Count, a.From.Addr().Compare(b.From.Addr()), a.To.Compare(b.To), int(a.Proto)-int(b.Proto))
	})
	if most < len(out.Flows) {
		for _, c := range out.Flows[most:] {
			out.More += c.Count
		}
		out.Flows = out.Flows[:most]
	}
	return out, nil
}

// protoICMPv6 is the protocol number of ICMP for IPv6.
const protoICMPv6 protocol.Proto = 58

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
