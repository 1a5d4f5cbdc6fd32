package tundev

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"unsafe"

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
// offloads. If the device is there, made is false; one that somebody renamed gets its
// name back, unless another link has that by now: see Device.
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
		return false, h.rename()
	}
	if err := setup(h.fds[0], h.name, h.mtu); err != nil {
		return true, fmt.Errorf("make tun %q anew: %w", h.name, err)
	}
	SetOffloads(h.fds[0])
	return true, nil
}

// rename gives the device its name back, if that is free. h.mu is held.
func (h *Handle) rename() error {
	now := nameOf(h.fds[0])
	if now == "" || now == h.name {
		return nil
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("rename tun %q: %w", now, err)
	}
	defer unix.Close(s)
	err = setName(s, now, h.name)
	if errors.Is(err, unix.EBUSY) { // before Linux 6.2, while it is up
		if err = setFlags(s, now, func(f uint16) uint16 { return f &^ unix.IFF_UP }); err == nil {
			err = setName(s, now, h.name)
		}
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("rename tun %q to %q: %w", now, h.name, err)
	}
	return nil
}

// setName is ioctl(2) SIOCSIFNAME (netdevice(7)).
func setName(socket int, from, to string) error {
	var req struct {
		from, to [unix.IFNAMSIZ]byte
		_        [8]byte // the kernel's union is longer
	}
	copy(req.from[:unix.IFNAMSIZ-1], from)
	copy(req.to[:unix.IFNAMSIZ-1], to)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCSIFNAME, uintptr(unsafe.Pointer(&req))); e != 0 {
		return e
	}
	return nil
}

func setFlags(socket int, name string, change func(uint16) uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, ifr); err != nil {
		return err
	}
	ifr.SetUint16(change(ifr.Uint16()))
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, ifr)
}

// Device is what the device is called now, and its index; empty and 0 if there is none, or
// none in this network namespace.
func (h *Handle) Device() (name string, index int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.fds) == 0 {
		return "", 0
	}
	if name = nameOf(h.fds[0]); name == "" {
		return "", 0
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return "", 0
	}
	return name, i.Index
}

// MTU and QueueLen are what a device was made with.
func (h *Handle) MTU() int { return h.mtu }

// QueueLen is its txqueuelen.
func (h *Handle) QueueLen() int { return txQueueLen }

// nameOf is the name of a queue's device, empty if there is none.
func nameOf(fd int) string {
	ifr, err := unix.NewIfreq("")
	if err != nil || unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr) != nil {
		return ""
	}
	return ifr.Name()
}

// Inject gives the kernel an IP packet as one that came out of the tunnel.
func (h *Handle) Inject(packet []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.fds) == 0 {
		return errors.New("inject into tun: it is closed")
	}
	if _, err := unix.Write(h.fds[0], append(make([]byte, vnetHeader), packet...)); err != nil {
		return fmt.Errorf("inject into tun %q: %w", h.name, err)
	}
	return nil
}

// attached reports whether a queue has a device.
func attached(fd int) bool {
	return nameOf(fd) != ""
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
