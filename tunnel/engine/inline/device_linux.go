package inline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

func (d *rawDevice) closeQueues() {
	for _, fd := range d.Queues {
		unix.Close(fd)
	}
	d.Queues = nil
}

// rawDevice runs the engine on the file descriptors of a kernel TUN device.
type rawDevice struct {
	*Device
	wake     int // eventfd that ends the waiting
	stopping atomic.Bool
	// What the kernel refused when it was written is not tried again.
	noTCP, noUDP atomic.Bool
}

func newRawDevice(d *Device) (packetDevice, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	return &rawDevice{Device: d, wake: -1}, nil
}

func (d *rawDevice) mtu() int {
	if d.MTU > 0 {
		return d.MTU
	}
	return defaultMTU
}

func (d *rawDevice) run(e *Engine, g *errgroup.Group) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		g.Go(func() error { return fmt.Errorf("make eventfd: %w", err) })
		return
	}
	d.wake = fd
	for _, q := range d.Queues {
		g.Go(func() error {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if err := d.read(e, q); err != nil {
				return fmt.Errorf("read tun %q: %w", d.Name, err)
			}
			return nil
		})
	}
}

func (d *rawDevice) stop() {
	d.stopping.Store(true)
	if d.wake >= 0 {
		unix.Write(d.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

func (d *rawDevice) close() {
	d.closeQueues()
	if d.wake >= 0 {
		unix.Close(d.wake)
	}
}

const (
	// drainReads bounds how long the groups of other peers wait for one busy
	// flow.
	drainReads = 64
	// maxYields is how often a short group lets others run first, so that
	// small packets do not leave one by one. It returns at once when nobody
	// else wants the processor.
	maxYields = 3
)

// read is the loop of one queue: packets until there are none, then what was
// gathered goes out, then it waits.
func (d *rawDevice) read(e *Engine, fd int) error {
	w := newSender(e)
	buf := make([]byte, readHead+vnetSize+65536+maxHeaders+padding)
	start := readHead
	if d.VNet {
		start += vnetSize
	}
	in := buf[readHead : start+65536]
	var vnet []byte
	if d.VNet {
		vnet = buf[readHead:start]
	}
	reads, yields := 0, 0
	for {
		n, errno := rawRead(fd, in)
		switch errno {
		case 0:
			if n -= start - readHead; n > 0 {
				w.packet(vnet, buf, start, n)
			}
			if reads++; reads == drainReads {
				w.flush()
				w.tick()
				reads = 0
				if d.stopping.Load() {
					return nil
				}
			}
			yields = 0
		case unix.EAGAIN:
			if yields < maxYields && w.short() {
				yields++
				unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
				continue
			}
			w.flush()
			if d.stopping.Load() {
				return nil
			}
			if err := d.wait(fd); err != nil {
				return err
			}
			w.tick()
			reads, yields = 0, 0
		case unix.EINTR:
		case unix.EBADFD: // the device was deleted
			if !d.Hold {
				return errno
			}
			if !d.await(fd) {
				return nil
			}
		default:
			return errno
		}
	}
}

// goneWait is how often a deleted device is looked for.
const goneWait = 20 * time.Millisecond

// await waits for the device to be there again; false: the engine stops.
func (d *rawDevice) await(fd int) bool {
	every := unix.NsecToTimespec(int64(goneWait))
	for !d.stopping.Load() {
		wake := []unix.PollFd{{Fd: int32(d.wake), Events: unix.POLLIN}}
		unix.Ppoll(wake, &every, nil)
		at := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		unix.Ppoll(at, &unix.Timespec{}, nil)
		if at[0].Revents&unix.POLLERR == 0 {
			return true
		}
	}
	return false
}

// wait blocks until fd can be read or the device stops.
func (d *rawDevice) wait(fd int) error {
	fds := [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(d.wake), Events: unix.POLLIN}}
	for {
		_, err := unix.Ppoll(fds[:], nil, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("poll: %w", err)
		case fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 && fds[0].Revents&unix.POLLIN == 0 && fds[1].Revents == 0 && !d.Hold:
			return errors.New("the device is gone")
		}
		return nil
	}
}

func rawRead(fd int, b []byte) (int, unix.Errno) {
	n, _, e := unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), e
}

func rawWrite(fd int, b []byte) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return e
}

func (d *rawDevice) sink(e *Engine) sink { return &rawSink{e: e, d: d, queues: d.Queues} }

// queue is where a packet is written: the kernel sends what answers a flow to
// the queue at which the flow came in. So flows, not readers, choose it, and
// both directions of one choose the same.
func (s *rawSink) queue(p []byte, v6 bool) int {
	if len(s.queues) == 1 {
		return s.queues[0]
	}
	return s.queues[flowHash(p, v6)%uint32(len(s.queues))]
}

// flowHash is the same for both directions of a flow.
func flowHash(p []byte, v6 bool) uint32 {
	var h uint32
	l4 := minIPv6
	proto := p[6]
	if v6 {
		for i := 8; i < minIPv6; i += 4 {
			h ^= binary.BigEndian.Uint32(p[i:])
		}
	} else {
		h = binary.BigEndian.Uint32(p[12:]) ^ binary.BigEndian.Uint32(p[16:])
		l4, proto = int(p[0]&15)*4, p[9]
		if p[6]&0x3f|p[7] != 0 { // fragments go together
			proto = 0
		}
	}
	if (proto == protoTCP || proto == protoUDP) && len(p) >= l4+4 {
		h ^= uint32(binary.BigEndian.Uint16(p[l4:]) ^ binary.BigEndian.Uint16(p[l4+2:]))
	}
	return h * 0x9e3779b1 >> 16 // low bits alone would be those of the ports' difference
}

// rawSink writes packets and super-packets for one reader.
type rawSink struct {
	e      *Engine
	d      *rawDevice
	queues []int
	c      coalescer
	iov    [maxMerge + 1]unix.Iovec
}

func (s *rawSink) add(msg []byte, v6 bool) {
	p := msg[headerSize:]
	if !s.d.VNet {
		s.count(rawWrite(s.queue(p, v6), p))
		return
	}
	if !s.c.add(p, v6, s.d.TSO && !s.d.noTCP.Load(), s.d.USO && !s.d.noUDP.Load()) {
		s.flush()
	}
}

func (s *rawSink) flush() {
	for _, sl := range s.c.slots[:s.c.n] {
		if sl.n > 1 && s.writeSuper(sl) {
			continue
		}
		for _, p := range sl.pkts[:sl.n] {
			s.count(s.writeOne(p, sl.v6))
		}
	}
	s.c.reset()
}

// writeOne writes a packet behind an empty virtio header, which is put over
// the end of the message's header in front of it.
func (s *rawSink) writeOne(p []byte, v6 bool) unix.Errno {
	b := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(p)), -vnetSize)), vnetSize+len(p))
	clear(b[:vnetSize])
	return rawWrite(s.queue(p, v6), b)
}

// writeSuper reports whether the kernel took the slot whole. If it does not
// know the kind, it is never tried again.
func (s *rawSink) writeSuper(sl *slot) bool {
	h := sl.super()
	s.iov[0].Base = &h[0]
	s.iov[0].SetLen(len(h))
	for i, p := range sl.pkts[:sl.n] {
		s.iov[i+1].Base = &p[sl.headers]
		s.iov[i+1].SetLen(len(p) - sl.headers)
	}
	_, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(s.queue(sl.pkts[0], sl.v6)), uintptr(unsafe.Pointer(&s.iov[0])), uintptr(sl.n+1))
	switch errno {
	case 0:
		return true
	case unix.EINVAL, unix.EMSGSIZE:
		refused, kind := &s.d.noTCP, "tcp"
		if sl.proto == protoUDP {
			refused, kind = &s.d.noUDP, "udp"
		}
		if !refused.Swap(true) {
			s.e.log.Warn().Str("iface", s.d.Name).Str("protocol", kind).Err(errno).Msg("the kernel refuses super-packets, writing packets one by one")
		}
		return false
	}
	s.count(errno)
	return true
}

func (s *rawSink) count(errno unix.Errno) {
	if errno != 0 {
		s.e.counts.writeErrors.Add(1)
	}
}
