package uapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"causeway/internal/unixsock"

	"golang.org/x/sys/unix"
)

// Directory is where wg(8) looks for sockets.
const Directory = "/var/run/wireguard"

// Backend is a device behind the protocol. Its methods are called
// concurrently. An error that is an *Error, or wraps a unix.Errno, is answered
// by its number.
type Backend interface {
	// Get returns the device. Keys of the device and preshared keys are in it
	// only if whoever may open the socket may have them.
	Get() (Device, error)
	// Set changes the device; it answers EPERM where that is not wanted.
	Set(Change) error
}

// Server serves one device. Make it by Listen.
type Server struct {
	ln      *net.UnixListener
	backend Backend
	slots   chan struct{}
}

const (
	// maxClients bounds what is served at once; the next one waits.
	maxClients = 8
	// patience is how long a client may take for a request and its answer.
	patience = 10 * time.Second
)

// Listen opens the socket of the device called name in dir (Directory), for
// root and the caller's own user alone. A socket that a dead process left
// behind is replaced, that of a living one is an error. Run closes it.
func Listen(dir, name string, b Backend) (*Server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open wireguard socket: %w", err)
	}
	path := filepath.Join(dir, name+".sock")
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("open wireguard socket %s: another program serves it: %w", path, unix.EADDRINUSE)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("open wireguard socket: %w", err)
		}
	}
	ln, err := unixsock.Listen(path, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open wireguard socket: %w", err)
	}
	return &Server{ln: ln, backend: b, slots: make(chan struct{}, maxClients)}, nil
}

// Run serves until ctx ends (nil), and removes the socket.
func (s *Server) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.ln.Close() })()
	defer s.ln.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := s.ln.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("serve wireguard socket: %w", err)
		}
		wg.Go(func() {
			defer func() { <-s.slots }()
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			if trusted(c) {
				s.serve(c)
			}
		})
	}
}

// trusted reports whether the other end is root or our own user, whatever
// became of the socket's mode.
func trusted(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || cerr != nil {
		return false
	}
	return cred.Uid == 0 || int(cred.Uid) == os.Geteuid()
}

// serve answers requests until the client hangs up or errs.
func (s *Server) serve(c net.Conn) {
	r := NewReader(c)
	for {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return
		}
		q, err := Read(r)
		var wrong *Error
		switch {
		case err == nil:
		case errors.As(err, &wrong):
			// What follows cannot be told from the rest of this request.
			fmt.Fprintf(c, "errno=%d\n\n", -int(errno(err)))
			return
		default:
			return
		}
		if err := s.answer(c, &q); err != nil {
			return
		}
	}
}

// answer writes the answer; numbers are negative, as in wireguard-go.
func (s *Server) answer(w io.Writer, q *Request) error {
	var err error
	if q.Get {
		var d Device
		if d, err = s.backend.Get(); err == nil {
			if err := d.Write(w); err != nil {
				return err
			}
		}
	} else {
		err = s.backend.Set(q.Set)
	}
	_, werr := fmt.Fprintf(w, "errno=%d\n\n", -int(errno(err)))
	return werr
}
