package sock

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// heldWait is how long a read of a held socket waits at a time.
const heldWait = 200 * time.Millisecond

// adopt makes connections of the inherited sockets that fit, and closes all
// files.
func adopt(o Options) (cs []*Conn) {
	for _, f := range o.Inherited {
		if c := adoptOne(o, f); c != nil {
			cs = append(cs, c)
		}
		f.Close()
	}
	return cs
}

func adoptOne(o Options, f *os.File) *Conn {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	c := &Conn{fd: fd, six: o.Addr.Addr().Is6() && !o.Addr.Addr().Is4In6()}
	typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err == nil {
		c.addr, err = localAddr(fd)
	}
	if err != nil || typ != unix.SOCK_DGRAM || c.addr != o.Addr || unix.SetNonblock(fd, false) != nil || c.options(o) != nil {
		unix.Close(fd)
		return nil
	}
	return c
}

// File returns another descriptor of the socket, for a process that shall
// hold it.
func (c *Conn) File() (*os.File, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	fd, err := unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copy udp socket: %w", err)
	}
	return os.NewFile(uintptr(fd), c.addr.String()), nil
}

// Held says that another process has the socket too: Close leaves it working
// there, and takes up to 200 ms for that. Before the first Read.
func (c *Conn) Held() error {
	tv := unix.NsecToTimeval(int64(heldWait))
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("hold udp socket: %w", err)
	}
	c.mu.Lock()
	c.held = true
	c.mu.Unlock()
	return nil
}
