// Package sock is a UDP socket that reads and writes groups of datagrams:
// recvmmsg with UDP_GRO, sendmsg with UDP_SEGMENT, each used where the kernel
// has it. Agents and hubs share it. Nothing is allocated per datagram.
package sock

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options says how to open a socket.
type Options struct {
	// Addr is the local address. An unspecified IPv6 address takes IPv4 too,
	// unless Only6.
	Addr      netip.AddrPort
	Only6     bool
	Mark      uint32 // SO_MARK; needs CAP_NET_ADMIN
	NoOffload bool   // neither UDP_GRO nor UDP_SEGMENT
	Buffer    int    // bytes, each way; 0: 7 MiB
	// Sticky makes Read say which of the host's addresses a message came to, so
	// that it can be answered from there. For an unspecified Addr.
	Sticky bool

	// Inherited are sockets that an earlier process opened by OpenShared and
	// left with a service manager. OpenShared closes the files.
	Inherited []*os.File

	shared bool // SO_REUSEPORT
}

// Socket buffers, for bursts of whole groups. The kernel gives an ordinary
// user no more than net.core.rmem_max and wmem_max.
const bufferSize = 7 << 20

// Conn is an open socket. Write may be called concurrently; Read by one
// goroutine at a time, whose thread waits in the system call. The socket is no
// part of the runtime's poller, which the kernel would wake for every group
// that has left, because the poller asks for room to write as well.
type Conn struct {
	addr netip.AddrPort
	six  bool // the socket's family
	gso  bool

	mu      sync.RWMutex // keeps fd open while it is written to
	reading sync.Mutex   // and while it is read from
	fd      int
	closed  bool
	lost    uint32 // what Overrun saw last
	held    bool   // another process has it too

	// noGSO holds until when UDP_SEGMENT is not used for a destination; nil: it
	// works everywhere. The map is never changed.
	noGSO   atomic.Pointer[map[netip.AddrPort]time.Time]
	noGSOMu sync.Mutex // orders changes
}

// Open opens a socket. Errors say what to do where an operator can help.
func Open(o Options) (*Conn, error) {
	six := o.Addr.Addr().Is6() && !o.Addr.Addr().Is4In6()
	family := unix.AF_INET
	if six {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open udp socket: %w", err)
	}
	c := &Conn{fd: fd, six: six}
	if err := c.setup(o); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

// OpenShared opens n sockets on one address and port. The kernel gives all
// datagrams of one sender to one of them. A port that another program has, of
// the same user or not, is an error. All inherited sockets of that address are
// among them, be they more than n: what comes to one has to be read.
func OpenShared(o Options, n int) ([]*Conn, error) {
	cs := adopt(o)
	if len(cs) > 0 {
		o.Addr, o.shared = cs[0].addr, true
	}
	fail := func(err error) ([]*Conn, error) {
		for _, c := range cs {
			c.Close()
		}
		return nil, err
	}
	for len(cs) < n {
		c, err := Open(o)
		if err != nil {
			return fail(err)
		}
		cs = append(cs, c)
		if len(cs) == 1 && n > 1 {
			// Not before it is bound: with it, the port of another program that
			// shares too would be taken as free.
			if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
				return fail(fmt.Errorf("share udp port: %w", err))
			}
			o.Addr, o.shared = c.addr, true
		}
	}
	return cs, nil
}

func (c *Conn) setup(o Options) error {
	if err := c.options(o); err != nil {
		return err
	}
	return c.bind(o)
}

func (c *Conn) options(o Options) error {
	size := o.Buffer
	if size == 0 {
		size = bufferSize
	}
	for _, b := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, b[0], size) != nil {
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, b[1], size) // as much as allowed
		}
	}
	if o.Mark != 0 {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_MARK, int(o.Mark)); err != nil {
			return fmt.Errorf("mark udp socket (needs root or CAP_NET_ADMIN): %w", err)
		}
	}
	// Never fragment, and never believe the kernel's idea of a path's MTU: the
	// probes find it.
	if c.six {
		if err := unix.SetsockoptInt(c.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err != nil {
			return fmt.Errorf("set up udp socket: %w", err)
		}
	}
	if !c.six || !o.Only6 {
		if err := unix.SetsockoptInt(c.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil && !c.six {
			return fmt.Errorf("set up udp socket: %w", err)
		}
	}
	if o.shared {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return fmt.Errorf("share udp port: %w", err)
		}
	}
	if o.Sticky {
		level, opt := unix.IPPROTO_IP, unix.IP_PKTINFO
		if c.six { // it tells of IPv4 too
			level, opt = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
		}
		if err := unix.SetsockoptInt(c.fd, level, opt, 1); err != nil {
			return fmt.Errorf("set up udp socket: %w", err)
		}
	}
	if !o.NoOffload {
		unix.SetsockoptInt(c.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) // before Linux 5.0: datagrams come one by one
		_, err := unix.GetsockoptInt(c.fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
		c.gso = err == nil
	}
	return nil
}

func (c *Conn) bind(o Options) error {
	if c.six {
		only := 0
		if o.Only6 {
			only = 1
		}
		if err := unix.SetsockoptInt(c.fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return fmt.Errorf("set up udp socket: %w", err)
		}
	}
	var sa unix.Sockaddr
	if c.six {
		sa = &unix.SockaddrInet6{Addr: o.Addr.Addr().As16(), Port: int(o.Addr.Port())}
	} else {
		s := &unix.SockaddrInet4{Port: int(o.Addr.Port())}
		if o.Addr.Addr().IsValid() {
			s.Addr = o.Addr.Addr().Unmap().As4()
		}
		sa = s
	}
	if err := unix.Bind(c.fd, sa); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("listen on udp %s: the port is in use by another program: %w", o.Addr, err)
		}
		return fmt.Errorf("listen on udp %s: %w", o.Addr, err)
	}
	var err error
	if c.addr, err = localAddr(c.fd); err != nil {
		return fmt.Errorf("listen on udp %s: %w", o.Addr, err)
	}
	return nil
}

func localAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch s := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port)), nil
	}
	return netip.AddrPort{}, errors.New("it is no IP socket")
}

// LocalAddr is the address that the socket is bound to.
func (c *Conn) LocalAddr() netip.AddrPort { return c.addr }

// Close closes the socket. A Read that waits returns net.ErrClosed.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	held := c.held
	c.mu.Unlock()
	// Wakes the reader. ENOTCONN, as of every socket without a peer, comes
	// after that.
	// A held socket would be shut down for good: there the reader looks by itself.
	if !held {
		unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	if err := unix.Close(c.fd); err != nil {
		return fmt.Errorf("close udp socket: %w", err)
	}
	return nil
}

// skMeminfoDrops is where the kernel's SO_MEMINFO counts what a socket did not take (SK_MEMINFO_DROPS).
const skMeminfoDrops = 8

// Overrun reports whether the socket had no room for something that came, since it was
// called last. It is called by one goroutine at a time. Kernels before 4.12 never say so.
func (c *Conn) Overrun() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return false
	}
	var info [16]uint32
	n := uint32(unsafe.Sizeof(info))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(c.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&n)), 0); errno != 0 || n <= 4*skMeminfoDrops {
		return false
	}
	before := c.lost
	c.lost = info[skMeminfoDrops]
	return c.lost != before
}

func (c *Conn) isClosed() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.closed
}
