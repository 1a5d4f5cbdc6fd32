package sock

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// MarkControl is for net.Dialer.Control: it sets SO_MARK before a socket is
// used, so that it never takes tunnel routes. Nil for mark 0.
func MarkControl(mark uint32) func(network, address string, c syscall.RawConn) error {
	if mark == 0 {
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)) }); e != nil {
			return e
		}
		if err != nil {
			return fmt.Errorf("mark socket (needs root or CAP_NET_ADMIN): %w", err)
		}
		return nil
	}
}

// Resolver looks names up over sockets with a mark: a DNS server may lie
// inside an approved route.
func Resolver(mark uint32) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := net.Dialer{Control: MarkControl(mark)}
		return d.DialContext(ctx, network, addr)
	}}
}
