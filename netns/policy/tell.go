package policy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
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
	x, err := newTeller(t)
	if err != nil {
		return 0, err
	}
	defer x.close()
	return x.tell(ctx, true)
}

// An end answers two prods a second (tcp_invalid_ratelimit), whatever they were for, and a prod or
// its answer may be lost: ends are told again until none is left.
const (
	tellFor   = 1500 * time.Millisecond
	tellEvery = 100 * time.Millisecond
	tellTwice = 600 * time.Millisecond // when those that conntrack has as closed are told once more
)

// teller speaks to local ends, in the network namespace that it was made in.
type teller struct {
	t     *Table
	list  *netlink.Handle
	socks [2]int // raw ones of IPv4 and IPv6
	err   error  // why there are none
}

func newTeller(t *Table) (*teller, error) {
	x := &teller{t: t, socks: [2]int{-1, -1}}
	var err error
	if x.list, err = netlink.NewHandle(unix.NETLINK_NETFILTER); err != nil {
		return nil, fmt.Errorf("list conntrack: %w", err)
	}
	for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
		x.socks[i], err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			x.err = fmt.Errorf("open a raw socket: %w", err)
		}
	}
	return x, nil
}

func (x *teller) close() {
	x.list.Close()
	for _, fd := range x.socks {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// again tells ends until none is left, or for as long as it is worth while. It returns the last error.
func (x *teller) again(ctx context.Context) (err error) {
	began, twice := time.Now(), false
	for wait := tellEvery; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		now := time.Now()
		all := !twice && now.Sub(began) >= tellTwice
		twice = twice || all
		var n int
		if n, err = x.tell(ctx, all); n == 0 && twice || now.Sub(began) >= tellFor {
			break
		}
		wait = max(tellEvery, 4*time.Since(now)) // a long list is not read all the time
	}
	if ctx.Err() == nil {
		x.t.forget()
	}
	return err
}

// tell is Tell, once. all: those too that conntrack has as closed. It has them so from a reset on, to whichever end that went.
func (x *teller) tell(ctx context.Context, all bool) (int, error) {
	x.t.mu.Lock()
	h, gone := x.t.have, x.t.gone
	x.t.mu.Unlock()
	if h == nil {
		return 0, nil
	}
	j := judge{h.content, gone}
	told := 0
	for i, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := x.list.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return told, fmt.Errorf("list conntrack: %w", err)
		}
		for _, f := range flows {
			if ctx.Err() != nil {
				break
			}
			from, to, ok := j.closed(f)
			if !ok || !all && ended(f) {
				continue
			}
			if x.err != nil {
				return told, x.err
			}
			// One of the two is out of any window.
			seq := rand.Uint32()
			if err := errors.Join(prod.Send(x.socks[i], from, to, seq), prod.Send(x.socks[i], from, to, seq+1<<31)); err == nil {
				told++
			}
		}
	}
	return told, ctx.Err()
}

// tried notes how it went to tell ends. Without CAP_NET_RAW nothing is noted, as 'causeway-agent doctor' says so.
func (t *Table) tried(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.untold = err; errors.Is(err, unix.EPERM) || errors.Is(err, context.Canceled) {
		t.untold = nil
	}
}

// ended reports whether conntrack has a connection as closed.
func ended(f *netlink.ConntrackFlow) bool {
	const timeWait = 7 // TCP_CONNTRACK_TIME_WAIT; TCP_CONNTRACK_CLOSE is 8
	p, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && p.State >= timeWait
}

// forget has ends of addresses that are at no peer any more told no longer.
func (t *Table) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone = nil
}

// goneTo adds to a set the remote addresses of was that want has not, or of another class.
func goneTo(set *netipx.IPSet, was, want content) *netipx.IPSet {
	var b netipx.IPSetBuilder
	n := 0
	for i := range 2 {
		for s := range without(was.spans[i], want.spans[i]) {
			b.AddRange(netipx.IPRangeFrom(s.from, s.to))
			n++
		}
	}
	if n == 0 {
		return set
	}
	if set != nil {
		b.AddSet(set)
	}
	out, err := b.IPSet()
	if err != nil { // of valid ranges there is none
		return set
	}
	return out
}

// judge finds classes by address.
type judge struct {
	content
	gone *netipx.IPSet // remote addresses of no class any more; nil: none
}

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
	if from, to := j.class(true, client.Addr()), j.class(false, server.Addr()); j.remote(from, client.Addr()) && to != 0 {
		return answered, answers, !j.open(j.arrives, from, to, server.Port()) && !j.open(j.begins, to, from, client.Port())
	}
	if from, to := j.class(false, answered.Addr()), j.class(true, answers.Addr()); from != 0 && j.remote(to, answers.Addr()) {
		return server, client, !j.open(j.begins, from, to, answers.Port()) && !j.open(j.arrives, to, from, answered.Port())
	}
	return remote, local, false
}

// remote reports whether an address of a class is at a peer, or was of late.
func (j judge) remote(c Class, a netip.Addr) bool {
	return c != 0 || j.gone != nil && j.gone.Contains(a)
}

// open reports whether a pair's list opens a port of TCP. Conntrack may have taken the
// connection up by its other end, so both are asked for.
func (j judge) open(pairs map[pair]string, from, to Class, port uint16) bool {
	_, ok := j.opening(pairs, from, to, TCP, port)
	return ok
}

// opening is what of a pair's list opens a port.
func (j judge) opening(pairs map[pair]string, from, to Class, proto Proto, port uint16) (item, bool) {
	l := j.lists[pairs[pair{from, to}]]
	i := slices.IndexFunc(l, func(x item) bool {
		return x.protoFirst <= proto && proto <= x.protoLast && x.first <= port && port <= x.last
	})
	if i < 0 {
		return item{}, false
	}
	return l[i], true
}
