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

// Write sends the datagrams that lie behind each other in b, each segment
// bytes long, the last one possibly shorter. It keeps nothing of b. An error is
// that of the first part that could not be sent; the rest is tried.
func (c *Conn) Write(to netip.AddrPort, b []byte, segment int) error {
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
		return c.send(to, b, 0)
	}
	if !c.gso || c.anyNoGSO.Load() && c.refused(to) {
		return c.writeSingly(to, b, segment)
	}
	var first error
	most := min(maxSegments, max(maxGroup/segment, 1)) * segment
	for len(b) > 0 {
		n := min(most, len(b))
		var err error
		if n > segment {
			err = c.send(to, b[:n], segment)
		} else {
			err = c.send(to, b[:n], 0)
		}
		// EIO: the interface cannot checksum. EINVAL, EMSGSIZE: a segment does not
		// fit the interface, or something on the way out cannot segment.
		if n > segment && (errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)) {
			if err = c.writeSingly(to, b[:n], segment); err == nil {
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

func (c *Conn) refuse(to netip.AddrPort) {
	c.noGSO.Store(to, time.Now().Add(retryGSO))
	c.anyNoGSO.Store(true)
}

func (c *Conn) refused(to netip.AddrPort) bool {
	until, ok := c.noGSO.Load(to)
	if ok && time.Now().After(until.(time.Time)) {
		c.noGSO.Delete(to)
		return false
	}
	return ok
}

func (c *Conn) writeSingly(to netip.AddrPort, b []byte, segment int) error {
	var first error
	for len(b) > 0 {
		n := min(segment, len(b))
		if err := c.send(to, b[:n], 0); err != nil && first == nil {
			first = err
		}
		b = b[n:]
	}
	return first
}

type segmentControl struct {
	hdr  unix.Cmsghdr
	size uint16
	_    [6]byte
}

// send is one sendmsg; segment 0 is without UDP_SEGMENT.
func (c *Conn) send(to netip.AddrPort, b []byte, segment int) error {
	var iov [1]unix.Iovec
	iov[0].Base = &b[0]
	iov[0].SetLen(len(b))
	err := c.sendv(to, iov[:], segment)
	runtime.KeepAlive(b)
	return err
}

func (c *Conn) sendv(to netip.AddrPort, iovs []unix.Iovec, segment int) error {
	var (
		sa  unix.RawSockaddrInet6
		h   unix.Msghdr
		ctl segmentControl
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
		ctl.hdr.Level, ctl.hdr.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		ctl.hdr.SetLen(unix.CmsgLen(2))
		ctl.size = uint16(segment)
		h.Control = (*byte)(unsafe.Pointer(&ctl))
		h.SetControllen(unix.CmsgSpace(2))
	}
	waited := false
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
			if !waited {
				waited = true
				p := [1]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}
				unix.Poll(p[:], sendWait)
				continue
			}
		}
		return sendError(to, e)
	}
}

func sendError(to netip.AddrPort, e unix.Errno) error {
	return fmt.Errorf("send to %s: %w", to, e)
}
