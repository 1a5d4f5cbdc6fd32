package look

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/policy"
)

// Heard is a flow that the kernel tells of.
type Heard struct {
	Orig, Reply Ends // by the addresses of its two directions, which differ where NAT is at work
	Answers     bool // the packet that it is told by goes the way of Reply
	Inwards     bool // of a refused packet: it came out of the tunnel
	Midway      bool // conntrack took it up in its middle: who began it is not sure
}

// Ends are where packets of one direction come from and go to. Without ports they have port 0.
type Ends struct {
	From, To netip.AddrPort
	Proto    uint8
}

func (e Ends) inverse() Ends { return Ends{e.To, e.From, e.Proto} }

// Listener hears of flows from the kernel, in the network namespace of the thread that opened it. It
// needs CAP_NET_ADMIN.
type Listener struct {
	conn *netlink.Conn
	read func(netlink.Message) (Heard, bool)
	lost atomic.Uint64
}

// heardBuffer holds some 4000 flows that wait for a processor.
const heardBuffer = 4 << 20

// HearBegun opens a listener to the flows that conntrack takes up: those that pass, of the whole host.
func HearBegun() (*Listener, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("listen to conntrack: %w", err)
	}
	if err := errors.Join(c.SetReadBuffer(heardBuffer), c.JoinGroup(unix.NFNLGRP_CONNTRACK_NEW)); err != nil {
		c.Close()
		return nil, fmt.Errorf("listen to conntrack: %w", err)
	}
	return &Listener{conn: c, read: readBegun}, nil
}

// Of nfnetlink_log (linux/netfilter/nfnetlink_log.h).
const (
	logConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG
	logPacket = unix.NFNL_SUBSYS_ULOG << 8   // NFULNL_MSG_PACKET

	logCommand, logMode, logTimeout, logThreshold, logFlags = 1, 2, 4, 5, 6 // NFULA_CFG_…
	logBind, logCopy, logConntrack                          = 1, 2, 4
	logInDevice, logPayload, logPrefix, logCT               = 4, 9, 10, 18 // NFULA_…
)

// HearRefused opens a listener to the packets that the wall of netns/policy refuses, as far as it tells of them.
func HearRefused() (*Listener, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("listen to refused packets: %w", err)
	}
	config := func(typ uint16, data []byte) error {
		b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: typ, Data: data}})
		if err != nil {
			return err
		}
		head := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, policy.ToldGroup)
		_, err = c.Execute(netlink.Message{Header: netlink.Header{Type: logConfig, Flags: netlink.Request | netlink.Acknowledge}, Data: append(head, b...)})
		return err
	}
	be := binary.BigEndian
	for _, step := range []struct {
		typ  uint16
		data []byte
	}{
		{logCommand, []byte{logBind}},
		{logMode, append(be.AppendUint32(nil, policy.ToldBytes), logCopy, 0)},
		{logTimeout, be.AppendUint32(nil, 20)},   // hundredths of a second that packets are gathered for
		{logThreshold, be.AppendUint32(nil, 32)}, // or so many
	} {
		if err = config(step.typ, step.data); err != nil {
			break
		}
	}
	if err == nil {
		// A kernel that cannot has headers say it alone: what NAT changes later has the addresses from before.
		_ = config(logFlags, be.AppendUint16(nil, logConntrack))
		err = c.SetReadBuffer(heardBuffer)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("listen to refused packets on NFLOG group %d: %w", policy.ToldGroup, err)
	}
	return &Listener{conn: c, read: readRefused}, nil
}

// Run calls each for every flow until ctx ends, and closes the listener.
func (l *Listener) Run(ctx context.Context, each func(Heard)) error {
	defer context.AfterFunc(ctx, func() { l.conn.Close() })()
	defer l.conn.Close()
	for {
		msgs, err := l.conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			l.lost.Add(1)
			continue
		case err != nil:
			return fmt.Errorf("hear of flows: %w", err)
		}
		for _, m := range msgs {
			if h, ok := l.read(m); ok {
				each(h)
			}
		}
	}
}

// Lost is how often the kernel had no room for what it had to tell.
func (l *Listener) Lost() uint64 { return l.lost.Load() }

// attributes goes through netlink attributes, until one is cut off.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.NLA_HDRLEN {
			n, typ := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
			if n < unix.NLA_HDRLEN || n > len(b) || !yield(typ&^(netlink.Nested|netlink.NetByteOrder), b[unix.NLA_HDRLEN:n]) {
				return
			}
			b = b[min(len(b), (n+3)&^3):]
		}
	}
}

// readBegun reads a message of conntrack's.
func readBegun(m netlink.Message) (Heard, bool) {
	if m.Header.Type != unix.NFNL_SUBSYS_CTNETLINK<<8 || len(m.Data) < 4 { // IPCTNL_MSG_CT_NEW
		return Heard{}, false
	}
	return readConntrack(m.Data[4:])
}

// Attributes of an entry of conntrack (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaOrig, ctaReply, ctaProtoInfo = 1, 2, 4
	ctaIP, ctaProto                 = 1, 2
	ctaProtoNum, ctaFrom, ctaTo     = 1, 2, 3
	ctaTCP, ctaTCPState             = 1, 1

	stateSynSent = 1 // TCP_CONNTRACK_SYN_SENT
	statesBegin  = 2 // up to SYN_RECV
)

func readConntrack(b []byte) (h Heard, ok bool) {
	state := -1
	for typ, v := range attributes(b) {
		switch typ {
		case ctaOrig:
			h.Orig = readEnds(v)
		case ctaReply:
			h.Reply = readEnds(v)
		case ctaProtoInfo:
			for typ, v := range attributes(v) {
				for inner, v := range attributes(v) {
					if typ == ctaTCP && inner == ctaTCPState && len(v) == 1 {
						state = int(v[0])
					}
				}
			}
		}
	}
	// TCP begins with a SYN. What looks like the answer of a service of UDP to a client's port may be one.
	if h.Orig.Proto == unix.IPPROTO_TCP {
		h.Midway = state >= 0 && (state < stateSynSent || state > statesBegin)
	} else if h.Orig.Proto == unix.IPPROTO_UDP {
		h.Midway = h.Orig.From.Port() < clientPorts && h.Orig.To.Port() >= clientPorts
	}
	return h, h.Orig.From.IsValid() && h.Orig.To.IsValid() && h.Reply.From.IsValid() && h.Reply.To.IsValid()
}

// clientPorts are from which Linux takes ports of clients (net.ipv4.ip_local_port_range).
const clientPorts = 32768

func readEnds(b []byte) (e Ends) {
	var from, to netip.Addr
	var ports [2]uint16
	for typ, v := range attributes(b) {
		for inner, v := range attributes(v) {
			switch a, is := netip.AddrFromSlice(v); {
			case typ == ctaIP && is && (inner == 1 || inner == 3):
				from = a
			case typ == ctaIP && is && (inner == 2 || inner == 4):
				to = a
			case typ == ctaProto && inner == ctaProtoNum && len(v) == 1:
				e.Proto = v[0]
			case typ == ctaProto && (inner == ctaFrom || inner == ctaTo) && len(v) == 2:
				ports[inner-ctaFrom] = binary.BigEndian.Uint16(v)
			}
		}
	}
	if !from.IsValid() || !to.IsValid() {
		return Ends{}
	}
	e.From, e.To = netip.AddrPortFrom(from, ports[0]), netip.AddrPortFrom(to, ports[1])
	return e
}

// readRefused reads a message of nfnetlink_log: a packet, and what conntrack knows of it.
func readRefused(m netlink.Message) (Heard, bool) {
	if m.Header.Type != logPacket || len(m.Data) < 4 {
		return Heard{}, false
	}
	var packet, ct []byte
	in, answer := false, false
	for typ, v := range attributes(m.Data[4:]) {
		switch {
		case typ == logInDevice:
			in = true
		case typ == logPayload:
			packet = v
		case typ == logCT:
			ct = v
		case typ == logPrefix:
			answer = strings.TrimRight(string(v), "\x00") == policy.ToldAnswer
		}
	}
	h, ok := readConntrack(ct)
	if !ok {
		var e Ends
		if e, ok = readHeaders(packet); !ok {
			return Heard{}, false
		}
		h = Heard{Orig: e, Reply: e.inverse()}
		if answer {
			h.Orig, h.Reply = h.Reply, h.Orig
		}
	}
	h.Inwards, h.Answers = in, answer
	return h, true
}

// readHeaders reads the headers of an IP packet.
func readHeaders(b []byte) (e Ends, ok bool) {
	var from, to netip.Addr
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		from, _ = netip.AddrFromSlice(b[12:16])
		to, _ = netip.AddrFromSlice(b[16:20])
		e.Proto = b[9]
		if n := int(b[0]&0xf) * 4; n >= 20 && n <= len(b) && binary.BigEndian.Uint16(b[6:])&0x1fff == 0 {
			rest = b[n:]
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		from, _ = netip.AddrFromSlice(b[8:24])
		to, _ = netip.AddrFromSlice(b[24:40])
		e.Proto, rest = b[6], b[40:]
	default:
		return e, false
	}
	var ports [2]uint16
	if (e.Proto == unix.IPPROTO_TCP || e.Proto == unix.IPPROTO_UDP) && len(rest) >= 4 {
		ports = [2]uint16{binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])}
	}
	e.From, e.To = netip.AddrPortFrom(from, ports[0]), netip.AddrPortFrom(to, ports[1])
	return e, true
}
