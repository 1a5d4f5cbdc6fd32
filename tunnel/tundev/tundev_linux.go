package tundev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

const devicePath = "/dev/net/tun"

const vnetHeader = 10 // sizeof(struct virtio_net_hdr)

// txQueueLen is the ring between the kernel and Read, in packets (a
// super-packet counts as one). The kernel's default of 500 drops small packets
// above some 100,000 a second; much more would only add delay.
const txQueueLen = 2000

// Open opens the TUN device name for wireguard's tun package, makes it if it
// is missing, and sets its MTU. Closing the device leaves the interface, its
// addresses and its routes in place.
func Open(name string, mtu int) (tun.Device, error) {
	f, err := OpenFile(name, mtu)
	if err != nil {
		return nil, err
	}
	d, err := tun.CreateTUNFromFile(f, mtu)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open tun %q: %w", name, err)
	}
	return d, nil
}

// OpenFile is Open without a device around the descriptor; see OpenFDs.
func OpenFile(name string, mtu int) (*os.File, error) {
	fds, err := OpenFDs(name, mtu, 1)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), devicePath), nil
}

// OpenFDs returns the bare descriptors of up to queues queues, non-blocking.
// Every packet read or written has a virtio_net_hdr of 10 bytes in front;
// offloads are off until SetOffloads.
//
// Whether a device has several queues is fixed when it is made. One that is
// there is taken as it is, because making it anew would break what runs over
// it: of a device made with one queue there comes one descriptor, whatever was
// asked for.
func OpenFDs(name string, mtu, queues int) ([]int, error) {
	if err := CheckName(name); err != nil {
		return nil, fmt.Errorf("open tun: %w", err)
	}
	if mtu < MinMTU || mtu > MaxMTU {
		return nil, fmt.Errorf("open tun %q: mtu %d is not between %d and %d", name, mtu, MinMTU, MaxMTU)
	}
	if queues < 1 || queues > MaxQueues {
		return nil, fmt.Errorf("open tun %q: %d queues are not between 1 and %d", name, queues, MaxQueues)
	}
	multi := queues > 1
	fds, err := openQueues(name, mtu, queues, multi)
	if errors.Is(err, unix.EINVAL) {
		// The device may be of the other kind. If it is not ours at all, this
		// fails alike.
		if multi {
			queues = 1
		}
		fds, err = openQueues(name, mtu, queues, !multi)
	}
	if err != nil {
		return nil, fmt.Errorf("open tun %q: %w", name, err)
	}
	return fds, nil
}

// openQueues opens a device of one kind, every queue or none.
func openQueues(name string, mtu, queues int, multi bool) (fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			fds = nil
		}
	}()
	if multi {
		// The kernel gives a further queue to whoever asks; of a device with one
		// queue it says itself that it is taken.
		if used, err := inUse(name); err != nil {
			return nil, err
		} else if used {
			return nil, explainAttach(unix.EBUSY)
		}
	}
	for range queues {
		fd, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return fds, explainOpen(err)
		}
		fds = append(fds, fd)
		if err := attach(fd, name, multi); err != nil {
			return fds, err
		}
	}
	return fds, setup(fds[0], name, mtu)
}

// inUse reports whether an interface that is up has a carrier: a TUN device
// has one while somebody holds a queue.
func inUse(name string) (bool, error) {
	b, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return false, fmt.Errorf("list interfaces: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_IFNAME && unix.ByteSliceToString(a.Value) == name {
				// struct ifinfomsg (rtnetlink(7)): the flags are at 8.
				return binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_LOWER_UP != 0, nil
			}
		}
	}
	return false, nil
}

// CloseFD closes what OpenFD returned.
func CloseFD(fd int) error { return unix.Close(fd) }

// SetOffloads asks for super-packets both ways and says which the kernel has:
// of TCP, and of UDP (Linux 6.2).
func SetOffloads(fd int) (tso, uso bool) {
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
		return true, true
	}
	return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp) == nil, false
}

// attach makes fd a queue of the device, which is made if it is missing.
func attach(fd int, name string, multi bool) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return explainAttach(err)
	}
	return unix.SetNonblock(fd, true)
}

// setup sets what all queues share.
func setup(fd int, name string, mtu int) error {
	// An earlier owner may have left another size behind.
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, vnetHeader); err != nil {
		return fmt.Errorf("set header size: %w", err)
	}
	// A persistent device without an owner could be taken up by whoever may open
	// /dev/net/tun, which is everybody, while no agent runs.
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, os.Geteuid()); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make it persistent: %w", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	for _, set := range []struct {
		what  string
		ioctl uint
		value int
	}{{"mtu", unix.SIOCSIFMTU, mtu}, {"txqueuelen", unix.SIOCSIFTXQLEN, txQueueLen}} {
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint32(uint32(set.value))
		if err := unix.IoctlIfreq(s, set.ioctl, ifr); errors.Is(err, unix.EPERM) {
			return explainAttach(err)
		} else if err != nil {
			return fmt.Errorf("set %s %d: %w", set.what, set.value, err)
		}
	}
	return nil
}

// explainOpen says what to do when /dev/net/tun does not open.
func explainOpen(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s is missing: load the tun module (modprobe tun), or give the device to the container: %w", devicePath, err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("the kernel has no tun driver: load the tun module (modprobe tun): %w", err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s is not allowed: run as root, or allow the device (systemd: DeviceAllow=%s rw; container: --device %s): %w",
			devicePath, devicePath, devicePath, err)
	case errors.Is(err, unix.EISDIR):
		return noTUN(err)
	}
	return fmt.Errorf("%s: %w", devicePath, err)
}

// explainAttach says what to do when the interface cannot be had.
func explainAttach(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("CAP_NET_ADMIN is missing: run as root or grant it: %w", err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("it is in use: another agent runs on this host, stop that one first: %w", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("there is an interface of this name that is not ours to use: choose another name, or remove it: %w", err)
	case errors.Is(err, unix.ENOTTY):
		return noTUN(err)
	}
	return err
}

// noTUN explains a file or directory in the place of the device: what a container gets where
// one is mounted that its host has not.
func noTUN(err error) error {
	return fmt.Errorf("what is at %s is no TUN device: load the tun module (modprobe tun); give the device to the container (--device %[1]s), or on a host make it anew ('rm -r %[1]s; mknod -m 666 %[1]s c 10 200'): %w", devicePath, err)
}
