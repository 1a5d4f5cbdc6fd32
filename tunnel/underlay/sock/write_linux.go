package sock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bounds of one UDP_SEGMENT group: UDP_MAX_SEGMENTS (64 before Linux 6.9), and
// what fits an IP packet.
const (
	maxSegments = 64
	maxGroup    = 65000
)

// sendWait is how long Write waits for room in the socket's own buffer, in
// milliseconds: only this host's interface can be that slow, never a path.
const sendWait = 5

// ErrFamily says that the socket cannot send to an address of this family.
var ErrFamily = errors.New("address family does not fit the socket")

// ErrFull says that the socket's own buffer has no room.
var ErrFull = errors.New("the socket's send buffer is full")

// Write sends the datagrams that lie behind each other in b, each segment
// bytes long, the last one possibly shorter. It keeps nothing of b. An error is
// that of the first part that could not be sent; the rest is tried.
func (c *Conn) Write(to netip.AddrPort, b []byte, segment int) error {
	return c.WriteFrom(netip.Addr{}, to, b, segment)
}

// WriteFrom is Write from one of the host's addresses, where that is valid.
func (c *Conn) WriteFrom(from netip.Addr, to netip.AddrPort, b []byte, segment int) error {
	if segment <= 0 || segment > len(b) {
		segment = len(b)
	}
	if len(b) == 0 {
		return nil
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return net.ErrClosed
	}
	if !c.six && !to.Addr().Unmap().Is4() || !to.IsValid() {
		return ErrFamily
	}
	if segment == len(b) || segment == 0 {
		return c.send(from, to, b, 0, sendWait)
	}
	if !c.gso || c.refused(to) {
		return c.writeSingly(from, to, b, segment, sendWait)
	}
	var first error
	most := min(maxSegments, max(maxGroup/segment, 1)) * segment
	for len(b) > 0 {
		n := min(most, len(b))
		var err error
		if n > segment {
			err = c.send(from, to, b[:n], segment, sendWait)
		} else {
			err = c.send(from, to, b[:n], 0, sendWait)
		}
		// EIO: the interface cannot checksum. EINVAL, EMSGSIZE: a segment does not
		// fit the interface, or something on the way out cannot segment.
		if n > segment && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)) {
			if err = c.writeSingly(from, to, b[:n], segment, sendWait); err == nil {
				c.refuse(to)
			}
		}
		if err != nil && first == nil {
			first = err
		}
		b = b[n:]
	}
	return first
}

// retryGSO is how long UDP_SEGMENT is not used for a destination where it did
// not work: routes and interfaces change.
const retryGSO = time.Minute

// maxRefused bounds how many destinations are remembered.
const maxRefused = 1024

func (c *Conn) refuse(to netip.AddrPort) {
	c.noGSOMu.Lock()
	defer c.noGSOMu.Unlock()
	now := time.Now()
	m := map[netip.AddrPort]time.Time{to: now.Add(retryGSO)}
	if old := c.noGSO.Load(); old != nil {
		for a, until := range *old {
			if a != to && until.After(now) && len(m) < maxRefused {
				m[a] = until
			}
		}
	}
	c.noGSO.Store(&m)
}

func (c *Conn) refused(to netip.AddrPort) bool {
	m := c.noGSO.Load()
	if m == nil {
		return false
	}
	until, ok := (*m)[to]
	return ok && time.Now().Before(until)
}

func (c *Conn) writeSingly(from netip.Addr, to netip.AddrPort, b []byte, segment, wait int) error {
	var first error
	for len(b) > 0 {
		n := min(segment, len(b))
		if err := c.send(from, to, b[:n], 0, wait); err != nil && first == nil {
			first = err
		}
		b = b[n:]
	}
	return first
}

// control holds the control messages of one sendmsg.
type control struct {
	_ [0]unix.Cmsghdr // alignment
	b [96]byte
	n int
}

// add makes room for a message with n bytes of data.
func (c *control) add(level, kind int32, n int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&c.b[c.n]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(n))
	d := c.b[c.n+unix.CmsgLen(0):][:n]
	c.n += unix.CmsgSpace(n)
	return d
}

// source names the address to send from.
func (c *control) source(a netip.Addr, six bool) {
	if six {
		b := a.As16()
		copy(c.add(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo), b[:])
	} else if a = a.Unmap(); a.Is4() {
		b := a.As4()
		copy(c.add(unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)[4:], b[:]) // ipi_spec_dst
	}
}

// send is one sendmsg; segment 0 is without UDP_SEGMENT.
func (c *Conn) send(from netip.Addr, to netip.AddrPort, b []byte, segment, wait int) error {
	var iov [1]unix.Iovec
	iov[0].Base = &b[0]
	iov[0].SetLen(len(b))
	err := c.sendv(from, to, iov[:], segment, wait)
	runtime.KeepAlive(b)
	return err
}

// sendv waits up to the given number of milliseconds for room.
func (c *Conn) sendv(from netip.Addr, to netip.AddrPort, iovs []unix.Iovec, segment, wait int) error {
	var (
		sa  unix.RawSockaddrInet6
		h   unix.Msghdr
		ctl control
	)
	if c.six {
		sa.Family, sa.Addr = unix.AF_INET6, to.Addr().As16()
		h.Namelen = unix.SizeofSockaddrInet6
	} else {
		s := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa))
		s.Family, s.Addr = unix.AF_INET, to.Addr().Unmap().As4()
		h.Namelen = unix.SizeofSockaddrInet4
	}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], to.Port())
	h.Name, h.Iov = (*byte)(unsafe.Pointer(&sa)), &iovs[0]
	h.SetIovlen(len(iovs))
	if segment > 0 {
		binary.NativeEndian.PutUint16(ctl.add(unix.SOL_UDP, unix.UDP_SEGMENT, 2), uint16(segment))
	}
	if from.IsValid() {
		ctl.source(from, c.six)
	}
	if ctl.n > 0 {
		h.Control = &ctl.b[0]
		h.SetControllen(ctl.n)
	}
	for {
		_, _, e := unix.Syscall(unix.SYS_SENDMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT)
		runtime.KeepAlive(&sa)
		runtime.KeepAlive(iovs)
		runtime.KeepAlive(&ctl)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if wait == 0 {
				return ErrFull
			}
			p := [1]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}
			unix.Poll(p[:], wait)
			wait = 0
			continue
		}
		return sendError(to, e)
	}
}

func sendError(to netip.AddrPort, e unix.Errno) error {
	return fmt.Errorf("send to %s: %w", to, e)
}
