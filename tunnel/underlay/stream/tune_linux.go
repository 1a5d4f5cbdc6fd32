package stream

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout is how long TCP waits for an acknowledgement.
const userTimeout = 15 * time.Second

// tune sets up the socket beneath a stream. What the kernel does not have or
// allow is left as it is: the stream is slower or later to notice an end.
func tune(c *Raw) {
	var s syscall.Conn
	for n := c.Conn; s == nil; {
		if tcp, ok := n.(*net.TCPConn); ok {
			s = tcp
			break
		}
		u, ok := n.(interface{ NetConn() net.Conn })
		if !ok {
			return
		}
		n = u.NetConn()
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		f := int(fd)
		unix.SetsockoptInt(f, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		// The kernel's queue is one that nothing can overtake.
		unix.SetsockoptInt(f, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, notSentLow)
		unix.SetsockoptInt(f, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond))
		// A loss here is one for all connections inside at once: a congestion
		// control that does not halve its rate for each.
		unix.SetsockoptString(f, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "bbr")
	})
}
