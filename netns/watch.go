package netns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
	"causeway/protocol"
)

// Kind is a kind of things of the plan, by which changes are told, found and
// mended. Its words are those of incidents.
type Kind string

// Kinds. Parts are tables of appliers of declared objects, by name. Other is what is not ours but may concern the plan: the host's own
// routes and Docker's chain.
const (
	Link      Kind = "link"
	Addresses Kind = "addresses"
	Routes    Kind = "routes"
	Rules     Kind = "rules"
	Sysctls   Kind = "sysctls"
	Nftables  Kind = "nftables"
	Parts     Kind = "parts"
	Other     Kind = "other"
)

// Kinds are those of the plan's own things, in the order in which they are mended.
var Kinds = []Kind{Link, Sysctls, Nftables, Parts, Addresses, Routes, Rules}

// Change says that things of a kind may have changed.
type Change struct {
	Kind Kind
	At   time.Time // of the first event since the last Change of this kind
	By   string    // the program that made the last one, as far as the kernel tells; empty: not known
}

// Watch tells of changes to what the last applied plan has, and to what
// concerns it, ours and others' alike: see what Drift finds. Changes of one kind are
// gathered while nobody receives. The channel is closed when ctx ends. Which of
// our sysctls an event tells of depends on the kernel; none tells of
// src_valid_mark. Where the kernel cannot be listened to, the error says so and
// nothing is told.
func (h *Host) Watch(ctx context.Context) (<-chan []Change, error) {
	w := &watch{host: h, wake: make(chan struct{}, 1)}
	out := make(chan []Change)
	// The sockets are opened here: on the caller's thread, in its namespace.
	err := w.listen(ctx, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	err = errors.Join(err, w.listen(ctx, unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES))
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case <-w.wake:
			}
			l := w.take()
			if len(l) == 0 {
				continue
			}
			select {
			case <-ctx.Done():
				return
			case out <- l:
			}
		}
	}()
	return out, err
}

// watch gathers what events tell.
type watch struct {
	host *Host
	wake chan struct{}

	mu      sync.Mutex
	pending []Change
	nft     []Kind // touched since the last transaction of nftables was named
}

func (w *watch) take() []Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.pending
	w.pending = nil
	return l
}

func (w *watch) note(k Kind, by string) {
	w.mu.Lock()
	i := slices.IndexFunc(w.pending, func(c Change) bool { return c.Kind == k })
	if i < 0 {
		w.pending = append(w.pending, Change{Kind: k, At: time.Now()})
		i = len(w.pending) - 1
	}
	if by != "" {
		w.pending[i].By = by
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// listen subscribes to groups of one netlink protocol until ctx ends.
func (w *watch) listen(ctx context.Context, proto int, groups ...uint) error {
	s, err := nl.Subscribe(proto, groups...)
	if err != nil {
		return fmt.Errorf("watch the host's network: %w", err)
	}
	// The reader must notice the end of ctx: closing the socket alone would
	// not wake it.
	s.SetReceiveTimeout(&unix.Timeval{Sec: 1})
	go func() {
		defer s.Close()
		for ctx.Err() == nil {
			msgs, from, err := s.Receive()
			switch {
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.ENOBUFS): // some were lost
				for _, k := range append([]Kind{Other}, Kinds...) {
					w.note(k, "")
				}
				continue
			case err != nil:
				w.host.log.Error().Err(err).Msg("watching the host's network ended")
				return
			case from.Pid != 0:
				continue // not the kernel
			}
			for _, m := range msgs {
				if proto == unix.NETLINK_NETFILTER {
					w.nftables(m.Header.Type, m.Data)
				} else if k := w.host.concerns(m.Header.Type, m.Data); k != "" {
					w.note(k, program(m.Header.Pid))
				}
			}
		}
	}()
	return nil
}

// Message types of nf_tables (linux/netfilter/nf_tables.h) that take something
// away or change a chain, and the one that ends a transaction.
const (
	nfSubsysNftables = 10
	nftMsgDelTable   = 2
	nftMsgNewChain   = 3
	nftMsgDelChain   = 5
	nftMsgNewRule    = 6
	nftMsgDelRule    = 8
	nftMsgDelSet     = 11
	nftMsgNewElement = 12
	nftMsgDelElement = 14
	nftMsgNewGen     = 15
	nftaGenProcPID   = 2 // be32
	nftaGenProcName  = 3
)

// nftables takes a notification. The program behind a transaction is named
// after its changes.
func (w *watch) nftables(typ uint16, data []byte) {
	if typ>>8 != nfSubsysNftables {
		return
	}
	k := Kind("")
	switch typ & 0xff {
	case nftMsgDelTable, nftMsgDelChain, nftMsgDelRule, nftMsgNewRule, nftMsgNewChain, nftMsgDelSet, nftMsgNewElement, nftMsgDelElement:
		switch {
		case bytes.Contains(data, []byte(NftTable+"\x00")):
			k = Nftables
		case w.host.watched.Load().ofPart(data):
			k = Parts
		case bytes.Contains(data, []byte(dockerUser+"\x00")), bytes.Contains(data, []byte(protocol.DockerTable+"\x00")),
			bytes.Contains(data, []byte("raw\x00")) && bytes.Contains(data, []byte(kernel.RawChain+"\x00")):
			k = Other
		default:
			return
		}
	case nftMsgNewGen:
		touched := w.nft
		w.nft = nil
		by := genProgram(data)
		for _, k := range touched {
			if by != "" {
				w.note(k, by)
			}
		}
		return
	default:
		return
	}
	if !slices.Contains(w.nft, k) {
		w.nft = append(w.nft, k)
	}
	w.note(k, "")
}

// genProgram is the program behind a transaction, empty if it is our own or not told.
func genProgram(data []byte) string {
	if len(data) < kernel.NfgenmsgSize {
		return ""
	}
	attrs, err := nl.ParseRouteAttr(data[kernel.NfgenmsgSize:])
	if err != nil {
		return ""
	}
	var pid uint32
	name := ""
	for _, a := range attrs {
		switch a.Attr.Type {
		case nftaGenProcPID:
			if len(a.Value) == 4 {
				pid = binary.BigEndian.Uint32(a.Value)
			}
		case nftaGenProcName:
			name, _, _ = strings.Cut(string(a.Value), "\x00")
		}
	}
	if pid == 0 || kernel.Ran(pid) {
		return ""
	}
	return described(pid, name)
}

// program names the process behind a netlink port, which is its id for a
// program's first socket; empty: not known, or ourselves.
func program(port uint32) string {
	if port == 0 || port > 1<<22 || int(port) == os.Getpid() {
		return ""
	}
	return described(port, "")
}

// described is 'ip (process 4711, started by sh)', as far as it can be read: a
// short command may have ended.
func described(pid uint32, name string) string {
	read, parent := status(pid)
	if name == "" {
		name = read
	}
	if name == "" {
		name = "a program that has ended"
	}
	s := fmt.Sprintf("%s (process %d", name, pid)
	if up, _ := status(parent); up != "" {
		s += ", started by " + up
	}
	return s + ")"
}

// status reads a process's name and its parent's id; empty and 0 if it is gone.
func status(pid uint32) (name string, parent uint32) {
	if pid == 0 {
		return "", 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "", 0
	}
	for _, l := range strings.Split(string(b), "\n") {
		k, v, _ := strings.Cut(l, ":")
		switch v = strings.TrimSpace(v); k {
		case "Name":
			name = v
		case "PPid":
			n, _ := strconv.ParseUint(v, 10, 32)
			return name, uint32(n)
		}
	}
	return name, 0
}

// concerns says what kind of thing a notification of rtnetlink is about; empty:
// none that matters. Links and addresses of others come and go with every
// container; they matter by the routes that they bring.
func (h *Host) concerns(typ uint16, data []byte) Kind {
	c := h.watched.Load()
	if c == nil { // nothing is applied, and so nothing is ours
		c = &Config{}
	}
	switch typ {
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return Rules
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		switch t := routeTable(data); t {
		case unix.RT_TABLE_LOCAL, unix.RT_TABLE_UNSPEC:
			if typ == unix.RTM_DELROUTE && c.hasAddress(data) { // without it the address is there in name alone
				return Addresses
			}
			return ""
		case c.Table:
			return Routes
		}
		return Other
	case unix.RTM_NEWNETCONF, unix.RTM_DELNETCONF:
		return Sysctls
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		// By its index too: it may have another name from now on.
		index := len(data) >= unix.SizeofIfInfomsg && c.Index > 0 && binary.NativeEndian.Uint32(data[4:]) == uint32(c.Index)
		if index || c.Interface != "" && bytes.Contains(data, []byte(c.Interface+"\x00")) {
			return Link
		}
		if h.routesEnd(typ, data) {
			return Other
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if c.Interface == "" {
			return ""
		}
		if c.hasAddress(data) {
			return Addresses
		}
	}
	return ""
}

// ofPart reports whether a message names the table of a part.
func (c *Config) ofPart(data []byte) bool {
	return c != nil && slices.ContainsFunc(c.Parts, func(x Part) bool { return bytes.Contains(data, []byte(x.Table()+"\x00")) })
}

// hasAddress reports whether a message has one of the device's addresses in it.
func (c *Config) hasAddress(data []byte) bool {
	return c.Names.IsValid() && bytes.Contains(data, c.Names.AsSlice()) || slices.ContainsFunc(c.Overlay, func(a netip.Addr) bool { return bytes.Contains(data, a.AsSlice()) })
}

// routesEnd reports whether a link goes that routes of the host's own lead to: IPv4
// tells of none of them.
func (h *Host) routesEnd(typ uint16, data []byte) bool {
	// struct ifinfomsg: family, pad, type, index, flags, …
	links := h.links.Load()
	if links == nil || len(data) < unix.SizeofIfInfomsg || !(*links)[int(binary.NativeEndian.Uint32(data[4:]))] {
		return false
	}
	return typ == unix.RTM_DELLINK || binary.NativeEndian.Uint32(data[8:])&unix.IFF_UP == 0
}

// routeTable is the table of a route message, 0 if it is none.
func routeTable(data []byte) int {
	// struct rtmsg: family, dst_len, src_len, tos, table, …
	if len(data) < unix.SizeofRtMsg {
		return unix.RT_TABLE_UNSPEC
	}
	if t := data[4]; t != unix.RT_TABLE_COMPAT {
		return int(t)
	}
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofRtMsg:])
	if err != nil {
		return unix.RT_TABLE_UNSPEC
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_TABLE && len(a.Value) == 4 {
			return int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	return unix.RT_TABLE_UNSPEC
}
