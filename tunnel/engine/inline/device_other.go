//go:build !linux

package inline

import "errors"

func newRawDevice(*Device) (packetDevice, error) {
	return nil, errors.New("raw tun devices are not supported on this system")
}
