package tundev

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Handle brings a device back that somebody deleted. The queues of a deleted
// device stay open, without a device (tun_detach_all in Linux'
// drivers/net/tun.c): reads and writes fail with EBADFD until they are
// attached again. So who reads them goes on with the same descriptors.
//
// Its methods may be called concurrently.
type Handle struct {
	name string
	mtu  int

	mu  sync.Mutex
	fds []int // our own duplicates
}

// NewHandle duplicates the descriptors of a device's queues, which stay the
// caller's.
func NewHandle(name string, mtu int, fds []int) (*Handle, error) {
	h := &Handle{name: name, mtu: mtu}
	for _, fd := range fds {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			h.Close()
			return nil, fmt.Errorf("keep queue of tun %q: %w", name, err)
		}
		h.fds = append(h.fds, own)
	}
	return h, nil
}

// Reattach makes the device anew, with the queues that there were, and sets its
// offloads. It does nothing, and made is false, if the device is there.
func (h *Handle) Reattach() (made bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.fds) == 0 {
		return false, errors.New("reattach tun: it is closed")
	}
	for _, fd := range h.fds {
		if attached(fd) {
			continue
		}
		if err := attach(fd, h.name, len(h.fds) > 1); err != nil {
			return made, fmt.Errorf("make tun %q anew: %w", h.name, err)
		}
		made = true
	}
	if !made {
		return false, nil
	}
	if err := setup(h.fds[0], h.name, h.mtu); err != nil {
		return true, fmt.Errorf("make tun %q anew: %w", h.name, err)
	}
	SetOffloads(h.fds[0])
	return true, nil
}

// attached reports whether a queue has a device.
func attached(fd int) bool {
	ifr, err := unix.NewIfreq("")
	return err == nil && unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr) == nil
}

// Close gives the duplicates up.
func (h *Handle) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, fd := range h.fds {
		unix.Close(fd)
	}
	h.fds = nil
}
