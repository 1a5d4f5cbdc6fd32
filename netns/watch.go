package netns

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// watchGather is how long changes are gathered: a container's start is
	// a dozen of them.
	watchGather = 200 * time.Millisecond
	// watchPoll is how often the channel fires where the kernel cannot tell.
	watchPoll = 30 * time.Second
)

// Watch tells of changes to links, addresses, routes, rules and our nftables
// table that may concern the last applied plan, ours and others' alike: apply
// again, which changes nothing if all is as it should be. Signals are gathered
// and never queue up. The channel is closed when ctx ends.
func (h *Host) Watch(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	raw := make(chan struct{}, 1)
	// The sockets are opened here: on the caller's thread, in its namespace.
	ok := h.listen(ctx, raw, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE)
	ok = h.listen(ctx, raw, unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES) && ok
	go func() {
		defer close(out)
		var poll <-chan time.Time
		if !ok {
			t := time.NewTicker(watchPoll)
			defer t.Stop()
			poll = t.C
		}
		for {
			select {
			case <-ctx.Done():
				return
			case <-raw:
			case <-poll:
			}
			t := time.NewTimer(watchGather)
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
			select {
			case <-raw:
			default:
			}
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out
}

// listen subscribes to groups of one netlink protocol and signals raw for
// messages that matter, until ctx ends.
func (h *Host) listen(ctx context.Context, raw chan<- struct{}, proto int, groups ...uint) bool {
	s, err := nl.Subscribe(proto, groups...)
	if err != nil {
		h.log.Warn().Err(err).Msg("cannot watch the host's network, looking at it now and then")
		return false
	}
	// The reader must notice the end of ctx: closing the socket alone would
	// not wake it.
	s.SetReceiveTimeout(&unix.Timeval{Sec: 1})
	go func() {
		defer s.Close()
		for ctx.Err() == nil {
			msgs, from, err := s.Receive()
			hit := false
			switch {
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.ENOBUFS):
				hit = true // some were lost
			case err != nil:
				h.log.Warn().Err(err).Msg("watching the host's network ended")
				return
			case from.Pid != 0:
				continue // not the kernel
			}
			for _, m := range msgs {
				hit = hit || h.matters(proto, m.Header.Type, m.Data)
			}
			if hit {
				select {
				case raw <- struct{}{}:
				default:
				}
			}
		}
	}()
	return true
}

// Message types of nf_tables (linux/netfilter/nf_tables.h) that take something
// away or change a chain.
const (
	nfSubsysNftables = 10
	nftMsgDelTable   = 2
	nftMsgNewChain   = 3
	nftMsgDelChain   = 5
	nftMsgNewRule    = 6
	nftMsgDelRule    = 8
)

// matters reports whether a notification may concern us. Links and addresses
// of others come and go with every container; they matter by the routes that
// they bring.
func (h *Host) matters(proto int, typ uint16, data []byte) bool {
	if proto == unix.NETLINK_NETFILTER {
		if typ>>8 != nfSubsysNftables {
			return false
		}
		switch typ & 0xff {
		case nftMsgDelTable, nftMsgDelChain, nftMsgDelRule, nftMsgNewRule, nftMsgNewChain:
			return bytes.Contains(data, []byte(NftTable+"\x00")) || bytes.Contains(data, []byte(dockerUser+"\x00"))
		}
		return false
	}
	switch typ {
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return true
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		// struct rtmsg: family, dst_len, src_len, tos, table
		return len(data) > 4 && data[4] != unix.RT_TABLE_LOCAL
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		h.mu.Lock()
		dev := h.last.Interface
		h.mu.Unlock()
		return dev != "" && bytes.Contains(data, []byte(dev+"\x00"))
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		h.mu.Lock()
		c := h.last
		h.mu.Unlock()
		if c.Interface == "" {
			return false
		}
		for _, a := range c.Overlay {
			if bytes.Contains(data, a.AsSlice()) {
				return true
			}
		}
	}
	return false
}
