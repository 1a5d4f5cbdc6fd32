package policy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/prod"
)

// Tell has the local ends of TCP connections learn that they are closed, those that send
// nothing by themselves too; it returns to how many it spoke. Each gets a packet that
// belongs to no window (RFC 9293, section 3.10.7.4), in the name of the other end, and what
// it answers meets the table, which knows from it the one number that resets the connection.
// Other hosts' ends are told by their own tables.
//
// It costs a list of conntrack, 1 s of processor for 100,000 connections, and needs CAP_NET_RAW:
// for after a change that closes something.
func (t *Table) Tell(ctx context.Context) (int, error) {
	t.mu.Lock()
	h := t.have
	t.mu.Unlock()
	if h == nil {
		return 0, nil
	}
	j := judge{h.content}
	told := 0
	for _, v6 := range []bool{false, true} {
		family := netlink.InetFamily(unix.AF_INET)
		if v6 {
			family = unix.AF_INET6
		}
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return told, fmt.Errorf("list conntrack: %w", err)
		}
		var fd int
		for _, f := range flows {
			if ctx.Err() != nil {
				break
			}
			from, to, ok := j.closed(f)
			if !ok {
				continue
			}
			if fd == 0 {
				if fd, err = unix.Socket(int(family), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
					return told, fmt.Errorf("open a raw socket: %w", err)
				}
				defer unix.Close(fd)
			}
			// One of the two is out of any window.
			seq := rand.Uint32()
			if err := errors.Join(prod.Send(fd, from, to, seq), prod.Send(fd, from, to, seq+1<<31)); err == nil {
				told++
			}
		}
	}
	return told, ctx.Err()
}

// judge finds classes by address.
type judge struct{ content }

// class of an address: in spans 0 and 1 for remote ones, 2 and 3 for local ones.
func (j judge) class(remote bool, a netip.Addr) Class {
	i := 2
	if remote {
		i = 0
	}
	if a.Is6() {
		i++
	}
	l := j.spans[i]
	k, found := slices.BinarySearchFunc(l, a, func(s span, a netip.Addr) int { return s.from.Compare(a) })
	if !found {
		k--
	}
	if k < 0 || l[k].to.Less(a) {
		return 0
	}
	return l[k].class
}

// closed reports whether a TCP connection has one end in the tunnel and is closed, and the two
// ends as the local one sees them.
func (j judge) closed(f *netlink.ConntrackFlow) (remote, local netip.AddrPort, ok bool) {
	if f.Forward.Protocol != uint8(TCP) {
		return remote, local, false
	}
	at := func(ip net.IP, port uint16) netip.AddrPort {
		a, _ := netip.AddrFromSlice(ip)
		return netip.AddrPortFrom(a.Unmap(), port)
	}
	client, server := at(f.Forward.SrcIP, f.Forward.SrcPort), at(f.Forward.DstIP, f.Forward.DstPort)
	answers, answered := at(f.Reverse.SrcIP, f.Reverse.SrcPort), at(f.Reverse.DstIP, f.Reverse.DstPort)
	if from, to := j.class(true, client.Addr()), j.class(false, server.Addr()); from != 0 && to != 0 {
		return answered, answers, !j.open(j.arrives, from, to, server.Port()) && !j.open(j.begins, to, from, client.Port())
	}
	if from, to := j.class(false, answered.Addr()), j.class(true, answers.Addr()); from != 0 && to != 0 {
		return server, client, !j.open(j.begins, from, to, answers.Port()) && !j.open(j.arrives, to, from, answered.Port())
	}
	return remote, local, false
}

// open reports whether a pair's list opens a port of TCP. Conntrack may have taken the
// connection up by its other end, so both are asked for.
func (j judge) open(pairs map[pair]string, from, to Class, port uint16) bool {
	return slices.ContainsFunc(j.lists[pairs[pair{from, to}]], func(x item) bool {
		return x.protoFirst <= TCP && TCP <= x.protoLast && x.first <= port && port <= x.last
	})
}
