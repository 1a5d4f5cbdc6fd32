// Package tundev opens the kernel's TUN device. The interface is persistent:
// it outlives the process, so that traffic fails closed while no agent runs
// and TCP connections survive a restart. Addresses, routes and removal are
// others' business.
package tundev

import (
	"fmt"
	"strings"
)

// Bounds of a device's MTU: what IPv6 needs, and what a datagram can carry.
const (
	MinMTU = 1280
	MaxMTU = 65535 - 80
)

// MaxQueues of a device; the kernel has more.
const MaxQueues = 16

// CheckName says what is wrong with the name of an interface: 1 to 15 bytes,
// no '/', '%', ':' or white space, not '.' or '..' (dev_valid_name in Linux'
// net/core/dev.c; '%' would be a pattern).
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("interface name is empty")
	case len(name) > 15:
		return fmt.Errorf("interface name %q is longer than 15 bytes", name)
	case name == "." || name == ".." || strings.ContainsAny(name, "/%: \t\n\v\f\r\x00"):
		return fmt.Errorf("interface name %q is not valid", name)
	}
	return nil
}
