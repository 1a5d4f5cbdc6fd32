// Package unixsock listens on unix sockets whose mode holds from the first moment.
package unixsock

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen listens at path with a mode. The socket never has a wider one: a connection that is made before a chmod
// would wait and be served. The process's umask is left alone, which files that are made at the same time go by.
func Listen(path string, mode os.FileMode) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode.Perm())) }), err)
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil { // what the umask took
		return nil, errors.Join(err, l.Close())
	}
	return l.(*net.UnixListener), nil
}
