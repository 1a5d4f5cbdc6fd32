//go:build linux

package inline_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/inline"
	"causeway/tunnel/engine/wggo"
	"causeway/tunnel/underlay"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: makes network namespaces and TUN devices")
}

var labCount atomic.Int32

// host is a network namespace with an engine on a kernel TUN device.
type host struct {
	t      testing.TB
	ns     netns.NsHandle
	number protocol.NodeNumber
	key    protocol.WireGuardPrivateKey
	engine engine.Engine
	udp    *udpCarrier

	stop     func()
	ended    chan struct{}
	runError error
}

func newHost(t testing.TB, number protocol.NodeNumber) *host {
	t.Helper()
	h := &host{t: t, number: number}
	name := fmt.Sprintf("cwinl-%d-%d", os.Getpid(), labCount.Add(1))
	run(t, netns.None(), func() error {
		ns, err := netns.NewNamed(name)
		h.ns = ns
		return err
	})
	t.Cleanup(func() {
		h.ns.Close()
		require.NoError(t, netns.DeleteNamed(name))
	})
	k, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	h.key = k
	h.in(func() error {
		// Nothing of the kernel's own (router solicitations) in the counters.
		return os.WriteFile("/proc/thread-self/net/../sys/net/ipv6/conf/default/router_solicitations", []byte("0"), 0)
	}, true)
	h.in(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	return h
}

// run calls f on a thread of its own in ns. The thread ends with it, so that
// no other goroutine can come to run in the wrong namespace.
func run(t testing.TB, ns netns.NsHandle, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if ns.IsOpen() {
			if err := netns.Set(ns); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	require.NoError(t, <-done)
}

// in runs f in the host's namespace; optional ignores its error.
func (h *host) in(f func() error, optional ...bool) {
	h.t.Helper()
	if len(optional) > 0 {
		g := f
		f = func() error { g(); return nil }
	}
	run(h.t, h.ns, f)
}

func (h *host) addr4() netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(h.number)}) }
func (h *host) addr6() netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0x77, 15: byte(h.number)})
}

func (h *host) peer() engine.Peer {
	return engine.Peer{Number: h.number, Key: h.key.Public(), AllowedIPs: []netip.Prefix{
		netip.PrefixFrom(h.addr4(), 32), netip.PrefixFrom(h.addr6(), 128)}}
}

const rawMTU = 1420

// configure gives the device its addresses.
func (h *host) configure(name string) {
	h.t.Helper()
	h.in(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range []string{h.addr4().String() + "/24", h.addr6().String() + "/64"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetTxQLen(l, 5000); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
}

// startInline opens a device with these offloads and queues and runs the
// engine on it.
func (h *host) startInline(off inline.Offloads, queues int) *inline.Device {
	h.t.Helper()
	var d *inline.Device
	h.in(func() (err error) {
		d, err = openDevice("cwtest0", rawMTU, queues, off)
		return err
	})
	h.configure("cwtest0")
	e, err := inline.New(inline.Config{PrivateKey: h.key, Device: d, Carrier: h.udp, Log: zerolog.Nop(), AnyDestination: true})
	require.NoError(h.t, err)
	h.start(e)
	return d
}

// startWireguardGo runs the reference engine on wireguard-go's own device.
func (h *host) startWireguardGo() {
	h.t.Helper()
	var d tun.Device
	h.in(func() (err error) {
		d, err = tun.CreateTUN("cwtest0", rawMTU)
		return err
	})
	h.configure("cwtest0")
	e, err := wggo.New(wggo.Config{Number: h.number, PrivateKey: h.key, TUN: d, Carrier: h.udp, Log: zerolog.Nop(), AnyDestination: true})
	require.NoError(h.t, err)
	h.start(e)
}

func (h *host) start(e engine.Engine) {
	h.t.Helper()
	h.engine = e
	ctx, cancel := context.WithCancel(context.Background())
	h.ended = make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(h.ended)
		h.runError = e.Run(ctx)
	})
	wg.Go(func() { h.udp.read(e.NewReader()) })
	h.stop = sync.OnceFunc(func() {
		cancel()
		h.udp.stop()
		wg.Wait()
		require.NoError(h.t, h.runError)
	})
	h.t.Cleanup(h.stop)
}

// newPair makes two hosts whose engines meet over UDP on a loopback device.
func newRawPair(t testing.TB) (*host, *host) {
	needRoot(t)
	a, b := newHost(t, 2), newHost(t, 3)
	a.udp, b.udp = newUDPCarrier(a), newUDPCarrier(a)
	a.udp.connect(b)
	b.udp.connect(a)
	return a, b
}

func join(t testing.TB, a, b *host) {
	require.NoError(t, a.engine.SetPeers([]engine.Peer{b.peer()}))
	require.NoError(t, b.engine.SetPeers([]engine.Peer{a.peer()}))
}

// udpCarrier is a small underlay: one socket, one peer, UDP_SEGMENT and
// UDP_GRO.
type udpCarrier struct {
	fd     int
	port   int
	peer   protocol.NodeNumber
	closed atomic.Bool

	sends, segments atomic.Uint64
}

func newUDPCarrier(h *host) *udpCarrier {
	h.t.Helper()
	c := &udpCarrier{}
	h.in(func() (err error) {
		if c.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 7<<20)
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 7<<20)
		if err := unix.SetsockoptInt(c.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
			return err
		}
		if err := unix.Bind(c.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		sa, err := unix.Getsockname(c.fd)
		if err == nil {
			c.port = sa.(*unix.SockaddrInet4).Port
		}
		return err
	})
	h.t.Cleanup(func() { unix.Close(c.fd) })
	return c
}

func (c *udpCarrier) connect(to *host) {
	c.peer = to.number
	require.NoError(to.t, unix.Connect(c.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: to.udp.port}))
}

// Send implements engine.Carrier.
func (c *udpCarrier) Send(to protocol.NodeNumber, b []byte, segment int) error {
	if to != c.peer {
		return underlay.ErrNoPath
	}
	c.sends.Add(1)
	c.segments.Add(uint64((len(b) + segment - 1) / segment))
	var m unix.Msghdr
	var iov unix.Iovec
	var oob [24]byte
	iov.Base = &b[0]
	iov.SetLen(len(b))
	m.Iov = &iov
	m.SetIovlen(1)
	if len(b) > segment {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
		h.SetLen(unix.CmsgLen(2))
		binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(segment))
		m.Control = &oob[0]
		m.SetControllen(unix.CmsgSpace(2))
	}
	_, _, e := unix.Syscall(unix.SYS_SENDMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&m)), 0)
	if e != 0 {
		return e
	}
	return nil
}

func (c *udpCarrier) read(r underlay.Receiver) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	buf, oob := make([]byte, 65536), make([]byte, 64)
	var m unix.Msghdr
	var iov unix.Iovec
	for !c.closed.Load() {
		iov.Base = &buf[0]
		iov.SetLen(len(buf))
		m.Iov = &iov
		m.SetIovlen(1)
		m.Control = &oob[0]
		m.SetControllen(len(oob))
		n, _, e := unix.Syscall(unix.SYS_RECVMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&m)), 0)
		if e != 0 || n == 0 {
			continue
		}
		segment := int(n)
		if m.Controllen >= uint64(unix.CmsgLen(2)) {
			segment = int(binary.NativeEndian.Uint16(oob[unix.CmsgLen(0):]))
		}
		r.Receive(underlay.Source{Peer: c.peer}, buf[:n], segment)
		r.Flush()
	}
}

func (c *udpCarrier) stop() {
	c.closed.Store(true)
	unix.Shutdown(c.fd, unix.SHUT_RDWR)
}

func (h *host) listen(network string, a netip.Addr) (l net.Listener) {
	h.t.Helper()
	h.in(func() (err error) {
		l, err = net.Listen(network, netip.AddrPortFrom(a, 0).String())
		return err
	})
	return l
}

func (h *host) dial(network string, to net.Addr) (c net.Conn) {
	h.t.Helper()
	h.in(func() (err error) {
		c, err = net.DialTimeout(network, to.String(), 15*time.Second)
		return err
	})
	return c
}

func (h *host) packetConn(a netip.Addr) (c *net.UDPConn) {
	h.t.Helper()
	h.in(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		return err
	})
	return c
}

// openDevice opens the TUN device with this name, making it if it is missing,
// with as many of the wanted offloads as the kernel has. mtu 0 leaves the MTU
// as it is. Needs CAP_NET_ADMIN.
func openDevice(name string, mtu, queues int, want inline.Offloads) (*inline.Device, error) {
	d := &inline.Device{Name: name, MTU: mtu}
	d.VNet = want.VNet || want.TSO || want.USO
	for range max(queues, 1) {
		fd, err := openQueue(name, queues > 1, d.VNet)
		if err != nil {
			return nil, fmt.Errorf("open tun %q: %w", name, err)
		}
		d.Queues = append(d.Queues, fd)
	}
	if want.TSO {
		setOffloads(d, want)
	}
	if err := syncMTU(d); err != nil {
		return nil, fmt.Errorf("set mtu of %q: %w", name, err)
	}
	return d, nil
}

func openQueue(name string, multi, vnet bool) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if vnet {
		flags |= unix.IFF_VNET_HDR
	}
	if multi {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if vnet {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, 10); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// setOffloads asks for what is wanted, then for less. The kernel may then hand
// over super-packets.
func setOffloads(d *inline.Device, want inline.Offloads) {
	set := func(flags int) bool {
		for _, fd := range d.Queues {
			if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) != nil {
				return false
			}
		}
		return true
	}
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	switch {
	case want.USO && set(tcp|unix.TUN_F_USO4|unix.TUN_F_USO6):
		d.TSO, d.USO = true, true
	case set(tcp):
		d.TSO = true
	default:
		set(0)
	}
}

func syncMTU(d *inline.Device) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(d.Name)
	if err != nil {
		return err
	}
	if d.MTU != 0 {
		ifr.SetUint32(uint32(d.MTU))
		return unix.IoctlIfreq(s, unix.SIOCSIFMTU, ifr)
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFMTU, ifr); err != nil {
		return err
	}
	d.MTU = int(ifr.Uint32())
	return nil
}
