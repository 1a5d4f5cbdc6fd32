package main

import (
	"net"
	"syscall"
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

// mmsg moves datagrams of a UDP socket by recvmmsg and sendmmsg. One goroutine
// uses it.
type mmsg struct {
	conn syscall.RawConn
	hdrs [mmsgBatch]mmsghdr
	iovs [mmsgBatch]unix.Iovec
	bufs [mmsgBatch][]byte
}

// newMmsg prepares a socket; buf gives the memory of each datagram, which may
// be the same for all when sending.
func newMmsg(c *net.UDPConn, buf func() []byte) (*mmsg, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	m := &mmsg{conn: rc}
	for i := range m.hdrs {
		m.bufs[i] = buf()
		m.iovs[i].Base = &m.bufs[i][0]
		m.iovs[i].SetLen(len(m.bufs[i]))
		m.hdrs[i].hdr.Iov = &m.iovs[i]
		m.hdrs[i].hdr.SetIovlen(1)
	}
	return m, nil
}

// call makes one of the two system calls for n datagrams, waiting while the
// socket is not ready.
func (m *mmsg) call(wait func(func(uintptr) bool) error, trap uintptr, n int) (int, error) {
	var done int
	var errno unix.Errno
	err := wait(func(fd uintptr) bool {
		r, _, e := unix.Syscall6(trap, fd, uintptr(unsafe.Pointer(&m.hdrs[0])), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		if e == unix.EAGAIN {
			return false
		}
		done, errno = int(r), e
		return true
	})
	if err == nil && errno != 0 {
		return 0, errno
	}
	return done, err
}

// receive fills up to a batch of datagrams; at gives each of them.
func (m *mmsg) receive() (int, error) { return m.call(m.conn.Read, unix.SYS_RECVMMSG, mmsgBatch) }

func (m *mmsg) at(i int) []byte { return m.bufs[i][:m.hdrs[i].len] }

// send sends up to n datagrams and says how many went.
func (m *mmsg) send(n int) (int, error) {
	return m.call(m.conn.Write, unix.SYS_SENDMMSG, min(n, mmsgBatch))
}
