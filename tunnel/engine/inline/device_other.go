//go:build !linux

package inline

import "errors"

var errNoRaw = errors.New("raw tun devices are not supported on this system")

// OpenDevice is not supported on this system.
func OpenDevice(name string, mtu, queues int, want Offloads) (*Device, error) { return nil, errNoRaw }

func newRawDevice(d *Device) packetDevice { return nil }
