package main

import (
	"fmt"
	"net"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsgBatch is how many datagrams one system call moves: enough that the tool
// is not what a measurement finds.
const mmsgBatch = 64

// mmsghdr is struct mmsghdr of 64-bit systems (recvmmsg(2)).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// mmsg moves datagrams of a UDP socket by recvmmsg and sendmmsg. The socket is
// no part of the runtime's poller: that would have the kernel wake a thread for
// each datagram, at more cost than the datagram's. One goroutine uses it.
type mmsg struct {
	fd   int
	hdrs [mmsgBatch]mmsghdr
	iovs [mmsgBatch]unix.Iovec
	bufs [mmsgBatch][]byte
}

// newMmsg opens a socket; buf gives the memory of each datagram, which may be
// the same for all when sending.
func newMmsg(buf func() []byte) (*mmsg, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	m := &mmsg{fd: fd}
	for i := range m.hdrs {
		m.bufs[i] = buf()
		m.iovs[i].Base = &m.bufs[i][0]
		m.iovs[i].SetLen(len(m.bufs[i]))
		m.hdrs[i].hdr.Iov = &m.iovs[i]
		m.hdrs[i].hdr.SetIovlen(1)
	}
	return m, nil
}

func (m *mmsg) close() { unix.Close(m.fd) }

// listen binds to a port of every address, with a large buffer.
func (m *mmsg) listen(port int) error {
	const buffer = 4 << 20
	if unix.SetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		unix.SetsockoptInt(m.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	if err := unix.Bind(m.fd, &unix.SockaddrInet6{Port: port}); err != nil {
		return fmt.Errorf("listen on udp port %d: %w", port, err)
	}
	return nil
}

// dial connects to addr, host and port.
func (m *mmsg) dial(addr string) error {
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return err
	}
	to := a.AddrPort()
	sa := &unix.SockaddrInet6{Port: int(to.Port()), Addr: netip.AddrFrom16(to.Addr().As16()).As16()}
	if err := unix.Connect(m.fd, sa); err != nil {
		return fmt.Errorf("connect to udp %s: %w", addr, err)
	}
	return nil
}

// receive takes up to a batch of datagrams, none if there are none; at gives
// each of them.
func (m *mmsg) receive() (int, error) { return m.call(unix.SYS_RECVMMSG, mmsgBatch) }

func (m *mmsg) at(i int) []byte { return m.bufs[i][:m.hdrs[i].len] }

// send sends up to n datagrams and says how many went, none if the socket is
// full.
func (m *mmsg) send(n int) (int, error) { return m.call(unix.SYS_SENDMMSG, min(n, mmsgBatch)) }

func (m *mmsg) call(trap uintptr, n int) (int, error) {
	for {
		r, _, e := unix.Syscall6(trap, uintptr(m.fd), uintptr(unsafe.Pointer(&m.hdrs[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			return int(r), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, e
		}
	}
}

// wait waits until there is something to receive or the time is over.
func (m *mmsg) wait(d time.Duration) {
	unix.Poll([]unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}}, int(d.Milliseconds()))
}

// nap sleeps. Go's timers are too coarse for even spacing.
func nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.Nanosleep(&ts, nil)
}
