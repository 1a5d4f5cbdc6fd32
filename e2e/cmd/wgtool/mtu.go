package main

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// tunGetDevNetns is TUNGETDEVNETNS (include/uapi/linux/if_tun.h): a descriptor
// of the namespace that a TUN device is in.
const tunGetDevNetns = 'T'<<8 | 227

// watchMTU calls set when the MTU of a TUN device changes, whatever namespace
// the interface was moved to: no notice of the kernel reaches us from there.
func watchMTU(ctx context.Context, tun int, set func(int)) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	sock, inode, last := -1, uint64(0), 0
	defer func() { unix.Close(sock) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		ns, err := unix.IoctlRetInt(tun, tunGetDevNetns)
		if err != nil {
			return fmt.Errorf("find the tun device's namespace: %w", err)
		}
		var st unix.Stat_t
		err = unix.Fstat(ns, &st)
		if err == nil && (sock < 0 || st.Ino != inode) {
			unix.Close(sock)
			inode = st.Ino
			sock, err = socketIn(ns)
		}
		unix.Close(ns)
		if err != nil {
			return fmt.Errorf("enter the tun device's namespace: %w", err)
		}
		ifr, err := unix.NewIfreq("x")
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(tun, unix.TUNGETIFF, ifr); err != nil {
			return fmt.Errorf("the tun device is gone: %w", err)
		}
		if ifr, err = unix.NewIfreq(ifr.Name()); err != nil {
			return err
		}
		if unix.IoctlIfreq(sock, unix.SIOCGIFMTU, ifr) != nil {
			continue // on its way to another namespace
		}
		if mtu := int(ifr.Uint32()); mtu != last {
			last = mtu
			set(mtu)
		}
	}
}

// socketIn opens a socket in a namespace, on a thread that ends with it.
func socketIn(ns int) (fd int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked
		if err = unix.Setns(ns, unix.CLONE_NEWNET); err == nil {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		}
	}()
	<-done
	return fd, err
}
