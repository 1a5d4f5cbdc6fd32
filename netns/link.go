package netns

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// linkLines are the plan's lines of its device. The name is no line: a device that is
// called otherwise is missing, and the tunnel's to bring back.
func (p Plan) linkLines() (out []string) {
	if p.LinkMTU > 0 {
		out = append(out, linkMTULine(p.Interface, p.LinkMTU))
	}
	if p.Queue > 0 {
		out = append(out, linkQueueLine(p.Interface, p.Queue))
	}
	return append(out, linkLine(p.Interface))
}

func linkMTULine(dev string, mtu int) string { return fmt.Sprintf("ip link set %s mtu %d", dev, mtu) }

func linkQueueLine(dev string, n int) string {
	return fmt.Sprintf("ip link set %s txqueuelen %d", dev, n)
}

func linkLine(dev string) string { return fmt.Sprintf("ip link set %s up", dev) }

// foundLink is what is there of Plan.linkLines.
func foundLink(link netlink.Link, c Config) (out []string) {
	if link == nil {
		if l, err := netlink.LinkByIndex(c.Index); c.Index > 0 && err == nil {
			out = append(out, fmt.Sprintf("# the tunnel's device is called %s", l.Attrs().Name))
		}
		return out
	}
	at := link.Attrs()
	if c.LinkMTU > 0 {
		out = append(out, linkMTULine(c.Interface, at.MTU))
	}
	if c.Queue > 0 {
		out = append(out, linkQueueLine(c.Interface, at.TxQLen))
	}
	if at.Flags&unix.IFF_UP != 0 {
		out = append(out, linkLine(c.Interface))
	}
	return out
}

// setLink sets one number of a link that the plan has (not 0) and that differs.
func setLink(link netlink.Link, what string, now, want int, set func(netlink.Link, int) error) error {
	if want == 0 || now == want {
		return nil
	}
	if err := set(link, want); err != nil {
		return fmt.Errorf("set link %s %s %d: %w", link.Attrs().Name, what, want, err)
	}
	return nil
}

// setUp sets a link up, and says whether it was down by now, whatever was read of it before.
func setUp(link netlink.Link) (down bool, err error) {
	now, err := kernel.Retry(func() (netlink.Link, error) { return netlink.LinkByIndex(link.Attrs().Index) })
	if err == nil {
		down = now.Attrs().Flags&unix.IFF_UP == 0
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return down, fmt.Errorf("set link %s up: %w", link.Attrs().Name, err)
	}
	return down, nil
}

// InUse reports whether a program holds the TUN device of a name: without one it has no carrier.
func InUse(dev string) (bool, error) {
	link, err := kernel.LinkByName(dev)
	if err != nil || link == nil || !isTUN(link) {
		return false, err
	}
	return carries(link), nil
}

func carries(link netlink.Link) bool { return link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 }

// Device is the tunnel's device: by its index where that is known, for somebody else's
// link may have its name. It returns nil without an error if there is none of that name.
func (c Config) Device() (netlink.Link, error) {
	switch c.Index {
	case 0:
		return kernel.LinkByName(c.Interface)
	case NoDevice:
		return nil, nil
	}
	l, err := kernel.Retry(func() (netlink.Link, error) { return netlink.LinkByIndex(c.Index) })
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || err == nil && l.Attrs().Name != c.Interface {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %d: %w", c.Index, err)
	}
	return l, nil
}
