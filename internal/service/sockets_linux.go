package service

import (
	"fmt"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Sockets takes what the manager hands over: the sockets of socket units and
// those that Keep stored, by name (FileDescriptorName=, or Keep's). Nothing
// that is started later inherits them. Call it once.
func Sockets() map[string][]*os.File {
	out := map[string][]*os.File{}
	for _, f := range activation.Files(true) {
		out[f.Name()] = append(out[f.Name()], f)
	}
	return out
}

// Listener makes a listener of the one socket of a name; nil if there is none.
// The file is closed.
func Listener(sockets map[string][]*os.File, name string) (net.Listener, error) {
	fs := sockets[name]
	switch len(fs) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, fmt.Errorf("the service manager hands over %d sockets named %s, not one; give its socket unit one ListenStream=", len(fs), name)
	}
	defer fs[0].Close()
	l, err := net.FileListener(fs[0])
	if err != nil {
		return nil, fmt.Errorf("use the service manager's socket %s: %w", name, err)
	}
	return l, nil
}

// Keep asks the manager to hold these sockets under one name, in place of those
// it held, so that they and what arrives at them outlive this process. It
// reports whether the manager does: NOTIFY_SOCKET is there and took the message.
// The files stay the caller's.
func Keep(name string, files []*os.File) (bool, error) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return false, nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("keep sockets: %w", err)
	}
	defer unix.Close(fd)
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	to := &unix.SockaddrUnix{Name: path} // '@' begins an abstract name, as in x/sys
	if err := unix.Sendmsg(fd, []byte("FDSTOREREMOVE=1\nFDNAME="+name), nil, to, 0); err != nil {
		return false, fmt.Errorf("keep sockets: %w", err)
	}
	if len(fds) == 0 {
		return true, nil
	}
	// FDPOLL=0: they are no connections that could end.
	if err := unix.Sendmsg(fd, []byte("FDSTORE=1\nFDNAME="+name+"\nFDPOLL=0"), unix.UnixRights(fds...), to, 0); err != nil {
		return false, fmt.Errorf("keep sockets: %w", err)
	}
	return true, nil
}
