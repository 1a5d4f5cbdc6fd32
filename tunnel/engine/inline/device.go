package inline

import "errors"

// Device is a kernel TUN device as the fast path uses it, opened by its caller.
type Device struct {
	Name string
	// Queues are file descriptors of the device, IFF_NO_PI and O_NONBLOCK.
	// Each gets a thread of its own. The engine closes them.
	Queues []int
	Offloads
	MTU int
	// Hold says that a device which was deleted is waited for: its queues are
	// to be attached again by whoever opened them. Without it the engine ends.
	Hold bool
}

// Offloads are features of a TUN device. Each can be missing.
type Offloads struct {
	VNet bool // packets have a virtio header (IFF_VNET_HDR); needed by the others
	TSO  bool // TCP super-packets both ways
	USO  bool // UDP super-packets both ways (Linux 6.2)
}

func (d *Device) check() error {
	if len(d.Queues) == 0 {
		return errors.New("tun device has no queues")
	}
	if !d.VNet && (d.TSO || d.USO) {
		return errors.New("tun offloads need the virtio header")
	}
	return nil
}
