// Package conntrack goes through the kernel's flows of TCP and UDP, one at a time, and deletes some.
package conntrack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// Flow is one flow.
type Flow struct {
	Proto             uint8
	From, To          netip.AddrPort // who began it, and to what
	Answers, Answered netip.AddrPort // who answers, and to whom: what NAT made of the two
	Replied           bool           // something came back
	State             uint8          // of TCP
	Bytes             uint64         // of both directions
	Counted           bool           // the kernel counts them
	status            uint32

	tuple, id, zone []byte // as the kernel has them, until Each goes on: see Keep
}

// States of TCP (linux/netfilter/nf_conntrack_tcp.h).
const (
	SynSent     = 1
	SynRecv     = 2
	Established = 3
	FinWait     = 4
	CloseWait   = 5
)

// Attributes of an entry (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaOrig, ctaReply, ctaStatus, ctaProtoInfo = 1, 2, 3, 4
	ctaID, ctaZone, ctaStatusMask              = 12, 18, 26
	ctaCountersOrig, ctaCountersReply          = 9, 10
	ctaCountersBytes                           = 2
	ctaIP, ctaProto                            = 1, 2
	ctaProtoNum, ctaFrom, ctaTo                = 1, 2, 3
	ctaTCP, ctaTCPState                        = 1, 1

	statusReplied = 1 << 1 // IPS_SEEN_REPLY

	statusDstNAT = 1 << 5 // IPS_DST_NAT

	getEntry, delEntry = 1, 2 // IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_DELETE
)

// room is how much of a list is read at once.
const room = 1 << 16

// Which says which flows a list has, by their status.
type Which struct{ mask, status uint32 }

// Which flows there are.
var (
	All        = Which{}
	Translated = Which{statusDstNAT, statusDstNAT} // in their destination
	Unreplied  = Which{statusReplied, 0}
)

// Each goes through those flows of both families while the kernel lists them, so that their
// number costs no memory. What begins or ends meanwhile may be left out, and what the kernel moves may come twice. It ends with the first
// error of f, which may take its time.
//
// The kernel goes through all of its table for it, of all namespaces: 10 ms for the 262,144 buckets of a usual host. A kernel before 5.18
// knows no status here, and lists all flows.
func Each(ctx context.Context, which Which, f func(Flow) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := dial()
	if err != nil {
		return err
	}
	defer s.close()
	var want []byte
	if which != All {
		for typ, v := range map[uint16]uint32{ctaStatus: which.status, ctaStatusMask: which.mask} {
			want = binary.NativeEndian.AppendUint16(want, 8)
			want = binary.BigEndian.AppendUint32(binary.NativeEndian.AppendUint16(want, typ), v)
		}
	}
	if err := s.send(getEntry, unix.NLM_F_DUMP, unix.AF_UNSPEC, want); err != nil {
		return err
	}
	for b := make([]byte, room); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		done, err := s.receive(b, func(m []byte) error {
			if x, ok := read(m); ok && x.status&which.mask == which.status {
				return f(x)
			}
			return nil
		})
		if done || err != nil {
			return err
		}
	}
}

// Deleter deletes entries.
type Deleter struct {
	s *socket
	b []byte
}

// NewDeleter opens one, for the network namespace of the calling thread.
func NewDeleter() (*Deleter, error) {
	s, err := dial()
	if err != nil {
		return nil, err
	}
	return &Deleter{s, make([]byte, room)}, nil
}

// Close closes it.
func (d *Deleter) Close() { d.s.close() }

// Delete deletes an entry. false: it is gone already, or there is another one in its place.
func (d *Deleter) Delete(f Flow) (bool, error) {
	return d.of(delEntry, f, func([]byte) error { return nil })
}

// Now is an entry as it is by now; false: it is gone, or there is another one in its place.
func (d *Deleter) Now(f Flow) (now Flow, there bool, err error) {
	there, err = d.of(getEntry, f, func(m []byte) error {
		if x, ok := read(m); ok {
			now = x.Keep()
		}
		return nil
	})
	return now, there && bytes.Equal(now.id, f.id), err
}

// of asks something of an entry; false: it is not there.
func (d *Deleter) of(typ uint16, f Flow, got func(m []byte) error) (bool, error) {
	var l []byte
	for _, a := range []struct {
		typ uint16
		v   []byte
	}{{ctaOrig | unix.NLA_F_NESTED, f.tuple}, {ctaID, f.id}, {ctaZone, f.zone}} {
		if a.v != nil {
			l = binary.NativeEndian.AppendUint16(l, uint16(4+len(a.v)))
			l = append(binary.NativeEndian.AppendUint16(l, a.typ), a.v...)
			for len(l)%4 != 0 {
				l = append(l, 0)
			}
		}
	}
	family := byte(unix.AF_INET)
	if f.From.Addr().Is6() {
		family = unix.AF_INET6
	}
	if err := d.s.send(typ, unix.NLM_F_ACK, family, l); err != nil {
		return false, err
	}
	for {
		done, err := d.s.receive(d.b, got)
		if errors.Is(err, unix.ENOENT) {
			return false, nil
		}
		if done || err != nil {
			return err == nil, err
		}
	}
}

// Keep is the flow to be had after Each went on.
func (f Flow) Keep() Flow {
	f.tuple, f.id, f.zone = bytes.Clone(f.tuple), bytes.Clone(f.id), bytes.Clone(f.zone)
	return f
}

var hashSeed = maphash.MakeSeed()

// Hash is of what an entry is told apart by, for as long as the process runs.
func (f Flow) Hash() uint64 {
	var h maphash.Hash
	h.SetSeed(hashSeed)
	for _, b := range [][]byte{f.tuple, f.id, f.zone} {
		h.Write(b)
	}
	return h.Sum64()
}

// socket speaks netlink with conntrack.
type socket struct {
	fd  int
	seq uint32
}

func dial() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("ask conntrack: %w", err)
	}
	return &socket{fd: fd}, nil
}

func (s *socket) close() { kernel.CloseLater(func() error { return unix.Close(s.fd) }) }

func (s *socket) send(typ, flags uint16, family byte, attrs []byte) error {
	s.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+kernel.NfgenmsgSize+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_CTNETLINK<<8|typ)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, s.seq)
	b = append(b, 0, 0, 0, 0, family, unix.NFNETLINK_V0, 0, 0)
	if err := unix.Sendto(s.fd, append(b, attrs...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask conntrack: %w", err)
	}
	return nil
}

// receive reads some of the answer; done: that was all.
func (s *socket) receive(b []byte, f func(m []byte) error) (done bool, err error) {
	n, from, err := unix.Recvfrom(s.fd, b, 0)
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask conntrack: %w", err)
	}
	if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
		return false, nil // not the kernel
	}
	for m := b[:n]; len(m) >= unix.NLMSG_HDRLEN; {
		size, typ := int(binary.NativeEndian.Uint32(m)), binary.NativeEndian.Uint16(m[4:])
		if size < unix.NLMSG_HDRLEN || size > len(m) {
			return false, errors.New("ask conntrack: an answer that is cut off")
		}
		body, seq := m[unix.NLMSG_HDRLEN:size], binary.NativeEndian.Uint32(m[8:])
		m = m[min(len(m), (size+3)&^3):]
		switch {
		case seq != s.seq: // of a question before
		case typ == unix.NLMSG_DONE || typ == unix.NLMSG_ERROR:
			if len(body) >= 4 {
				if e := int32(binary.NativeEndian.Uint32(body)); e < 0 {
					return true, fmt.Errorf("ask conntrack: %w", os.NewSyscallError("netlink", unix.Errno(-e)))
				}
			}
			return true, nil
		case len(body) >= kernel.NfgenmsgSize:
			if err := f(body[kernel.NfgenmsgSize:]); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// read reads an entry; false: it is of no such flow.
func read(b []byte) (f Flow, ok bool) {
	for typ, v := range kernel.Attributes(b) {
		switch {
		case typ == ctaOrig:
			f.Proto, f.From, f.To = readTuple(v)
			f.tuple = v
		case typ == ctaReply:
			_, f.Answers, f.Answered = readTuple(v)
		case typ == ctaStatus && len(v) == 4:
			f.status = binary.BigEndian.Uint32(v)
			f.Replied = f.status&statusReplied != 0
		case typ == ctaCountersOrig || typ == ctaCountersReply:
			for inner, v := range kernel.Attributes(v) {
				if inner == ctaCountersBytes && len(v) == 8 {
					f.Bytes, f.Counted = f.Bytes+binary.BigEndian.Uint64(v), true
				}
			}
		case typ == ctaID:
			f.id = v
		case typ == ctaZone:
			f.zone = v
		case typ == ctaProtoInfo:
			for typ, v := range kernel.Attributes(v) {
				for inner, v := range kernel.Attributes(v) {
					if typ == ctaTCP && inner == ctaTCPState && len(v) == 1 {
						f.State = v[0]
					}
				}
			}
		}
	}
	return f, (f.Proto == unix.IPPROTO_TCP || f.Proto == unix.IPPROTO_UDP) && f.From.IsValid() && f.To.IsValid() && f.Answers.IsValid() && f.Answered.IsValid()
}

// readTuple reads a direction.
func readTuple(b []byte) (proto uint8, from, to netip.AddrPort) {
	var ends [2]netip.Addr
	var ports [2]uint16
	for typ, v := range kernel.Attributes(b) {
		for inner, v := range kernel.Attributes(v) {
			switch {
			case typ == ctaIP && (len(v) == 4 || len(v) == 16) && inner >= 1 && inner <= 4: // source and destination, of each family
				ends[(inner-1)%2], _ = netip.AddrFromSlice(v)
			case typ == ctaProto && inner == ctaProtoNum && len(v) == 1:
				proto = v[0]
			case typ == ctaProto && (inner == ctaFrom || inner == ctaTo) && len(v) == 2:
				ports[inner-ctaFrom] = binary.BigEndian.Uint16(v)
			}
		}
	}
	return proto, netip.AddrPortFrom(ends[0], ports[0]), netip.AddrPortFrom(ends[1], ports[1])
}
