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

// OpenFD is not supported on this system.
func OpenFD(name string, mtu int) (int, error) { return -1, errors.ErrUnsupported }

// SetOffloads is not supported on this system.
func SetOffloads(fd int) (tso, uso bool) { return false, false }

// CloseFD is not supported on this system.
func CloseFD(fd int) error { return errors.ErrUnsupported }
