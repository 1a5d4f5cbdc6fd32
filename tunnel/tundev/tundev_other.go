//go:build !linux

package tundev

import (
	"errors"
	"os"

	"golang.zx2c4.com/wireguard/tun"
)

// Open is not supported on this system.
func Open(name string, mtu int) (tun.Device, error) { return nil, errors.ErrUnsupported }

// OpenFile is not supported on this system.
func OpenFile(name string, mtu int) (*os.File, error) { return nil, errors.ErrUnsupported }

// OpenFDs is not supported on this system.
func OpenFDs(name string, mtu, queues int) ([]int, error) { return nil, errors.ErrUnsupported }

// SetOffloads is not supported on this system.
func SetOffloads(fd int) (tso, uso bool) { return false, false }

// CloseFD is not supported on this system.
func CloseFD(fd int) error { return errors.ErrUnsupported }

// Handle is not supported on this system.
type Handle struct{}

// NewHandle is not supported on this system.
func NewHandle(name string, mtu int, fds []int) (*Handle, error) { return nil, errors.ErrUnsupported }

// Device is not supported on this system.
func (*Handle) Device() (string, int) { return "", 0 }

// MTU is not supported on this system.
func (*Handle) MTU() int { return 0 }

// QueueLen is not supported on this system.
func (*Handle) QueueLen() int { return 0 }

// Reattach is not supported on this system.
func (*Handle) Reattach() (bool, error) { return false, errors.ErrUnsupported }

// Inject is not supported on this system.
func (*Handle) Inject([]byte) error { return errors.ErrUnsupported }

// Close does nothing.
func (*Handle) Close() {}
