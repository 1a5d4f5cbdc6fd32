package tundev

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inNamespace runs the rest of the test on a thread with a network namespace
// of its own, which goes away with the thread.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root: makes a network namespace and a TUN device")
		}
		t.Skip("needs root: makes a network namespace and a TUN device")
	}
	runtime.LockOSThread() // never unlocked
	ns, err := netns.New()
	require.NoError(t, err)
	t.Cleanup(func() { ns.Close() })
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	require.NoError(t, err, "ip %s: %s", strings.Join(args, " "), out)
	return string(out)
}

// The interface outlives the device, with what others put on it, and is taken
// up again.
func TestPersistent(t *testing.T) {
	inNamespace(t)
	d, err := Open("cw7", 1420)
	require.NoError(t, err)
	ip(t, "addr", "add", "198.18.0.7/32", "dev", "cw7")
	ip(t, "link", "set", "cw7", "up")
	link := ip(t, "link", "show", "cw7")
	assert.Contains(t, link, "mtu 1420")
	assert.Contains(t, link, "qlen 2000")
	index := strings.SplitN(link, ":", 2)[0]
	name, err := d.Name()
	require.NoError(t, err)
	assert.Equal(t, "cw7", name)
	assert.Equal(t, 128, d.BatchSize(), "offloads are on")
	closeDevice(t, d)

	assert.Contains(t, ip(t, "addr", "show", "cw7"), "198.18.0.7/32", "closing took the interface or its address away")
	d, err = Open("cw7", 1380)
	require.NoError(t, err)
	defer closeDevice(t, d)
	link = ip(t, "link", "show", "cw7")
	assert.Contains(t, link, "mtu 1380")
	assert.Equal(t, index, strings.SplitN(link, ":", 2)[0], "another interface")
	assert.Contains(t, ip(t, "addr", "show", "cw7"), "198.18.0.7/32")
}

// closeDevice closes d and reads its events to the end.
func closeDevice(t *testing.T, d tun.Device) {
	t.Helper()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for range d.Events() {
		}
	}()
	require.NoError(t, d.Close())
	select {
	case <-drained:
	case <-time.After(20 * time.Second):
		require.Fail(t, "events are not closed")
	}
}

// A packet to a route over the device comes out of it, one written to it comes
// in.
func TestPackets(t *testing.T) {
	inNamespace(t)
	d, err := Open("cw7", 1420)
	require.NoError(t, err)
	defer closeDevice(t, d)
	ip(t, "addr", "add", "198.18.0.7/32", "dev", "cw7")
	ip(t, "link", "set", "cw7", "up")
	ip(t, "link", "set", "lo", "up")
	ip(t, "route", "add", "10.9.0.0/16", "dev", "cw7", "src", "198.18.0.7")
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // on this thread, so in its namespace
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Sendto(fd, []byte("hello"), 0, &unix.SockaddrInet4{Addr: [4]byte{10, 9, 1, 2}, Port: 9}))
	bufs, sizes := make([][]byte, 128), make([]int, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	for {
		n, err := d.Read(bufs, sizes, 0)
		require.NoError(t, err)
		if n > 0 && bufs[0][0]>>4 == 4 { // not the router solicitations of IPv6
			assert.Equal(t, []byte{198, 18, 0, 7, 10, 9, 1, 2}, bufs[0][12:20])
			assert.Equal(t, "hello", string(bufs[0][28:sizes[0]]))
			return
		}
	}
}

func TestErrors(t *testing.T) {
	inNamespace(t)
	fails := func(name string, mtu int, want string) {
		t.Helper()
		_, err := Open(name, mtu)
		require.Error(t, err)
		assert.Contains(t, err.Error(), want)
		assert.NotContains(t, err.Error(), "\n")
	}
	fails("", 1420, "interface name is empty")
	fails("sixteen-byte-nam", 1420, "longer than 15 bytes")
	fails("a/b", 1420, "not valid")
	fails("cw%d", 1420, "not valid")
	fails("cw7", 1279, "mtu 1279 is not between")
	fails("cw7", 70000, "mtu 70000 is not between")
	fails("lo", 1420, "not ours to use")

	d, err := Open("cw7", 1420)
	require.NoError(t, err)
	fails("cw7", 1420, "another agent runs")
	closeDevice(t, d)

	// The rest changes this thread for good.
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	require.NoError(t, unix.Capget(&hdr, &caps[0]))
	all := caps
	caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	require.NoError(t, unix.Capset(&hdr, &caps[0]))
	fails("cw7", 1420, "CAP_NET_ADMIN is missing")
	fails("cw8", 1420, "CAP_NET_ADMIN is missing")

	// /dev/net/tun is open to everybody on most hosts: the device's owner has to
	// keep an ordinary user from taking the persistent interface up.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	ifr, err := unix.NewIfreq("cw7")
	require.NoError(t, err)
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)) // this thread alone
	require.Zero(t, errno)
	assert.ErrorIs(t, unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr), unix.EPERM)
	unix.Close(fd)
	_, _, errno = unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0))
	require.Zero(t, errno)
	require.NoError(t, unix.Capset(&hdr, &all[0]))

	require.NoError(t, unix.Unshare(unix.CLONE_NEWNS))
	require.NoError(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	require.NoError(t, unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, ""))
	fails("cw7", 1420, "/dev/net/tun is missing: load the tun module")
	require.NoError(t, os.WriteFile("/dev/net/tun", nil, 0))
	fails("cw7", 1420, "what is at /dev/net/tun is no TUN device")
	require.NoError(t, os.Remove("/dev/net/tun"))
	require.NoError(t, os.Mkdir("/dev/net/tun", 0o755))
	fails("cw7", 1420, "what is at /dev/net/tun is no TUN device")
	// As it says.
	require.NoError(t, os.Remove("/dev/net/tun"))
	require.NoError(t, unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))))
	made, err := Open("cw7", 1420)
	require.NoError(t, err)
	require.NoError(t, made.Close())
}

func TestExplain(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.ENODEV: "modprobe tun", unix.EPERM: "DeviceAllow", unix.EACCES: "DeviceAllow", unix.EIO: "/dev/net/tun: input/output error",
	} {
		err := explainOpen(errno)
		assert.ErrorIs(t, err, errno)
		assert.Contains(t, err.Error(), want)
	}
	assert.ErrorIs(t, explainAttach(unix.ENOMEM), unix.ENOMEM)
}

// queuesOf opens, counts and closes.
func queuesOf(t *testing.T, name string, queues int) int {
	t.Helper()
	fds, err := OpenFDs(name, 1420, queues)
	require.NoError(t, err)
	for _, fd := range fds {
		require.NoError(t, CloseFD(fd))
	}
	return len(fds)
}

// A device keeps the kind it was made with, and its index, addresses and
// routes, whoever opens it afterwards: what runs over it goes on.
func TestQueuesOfAnEarlierDevice(t *testing.T) {
	inNamespace(t)
	for name, made := range map[string]int{"cw1": 1, "cw2": 2} {
		require.Equal(t, made, queuesOf(t, name, made))
		ip(t, "addr", "add", "198.18.0.7/32", "dev", name)
		ip(t, "link", "set", name, "up")
		index := strings.SplitN(ip(t, "link", "show", name), ":", 2)[0]
		for _, asked := range []int{1, 2, 3, 1} {
			want := asked
			if made == 1 {
				want = 1
			}
			assert.Equal(t, want, queuesOf(t, name, asked), "made with %d, asked for %d", made, asked)
		}
		d, err := Open(name, 1420) // the other engine
		require.NoError(t, err)
		closeDevice(t, d)
		assert.Equal(t, index, strings.SplitN(ip(t, "link", "show", name), ":", 2)[0], "another interface")
		assert.Contains(t, ip(t, "addr", "show", name), "198.18.0.7/32")
	}
}

// The kernel would let a second agent have further queues.
func TestQueuesInUse(t *testing.T) {
	inNamespace(t)
	fds, err := OpenFDs("cw7", 1420, 2)
	require.NoError(t, err)
	ip(t, "link", "set", "cw7", "up")
	for _, queues := range []int{1, 2} {
		_, err := OpenFDs("cw7", 1420, queues)
		require.ErrorContains(t, err, "another agent runs", "%d queues", queues)
	}
	for _, fd := range fds {
		require.NoError(t, CloseFD(fd))
	}
	require.Equal(t, 2, queuesOf(t, "cw7", 2), "free at once")
	_, err = OpenFDs("lo", 1420, 2)
	require.ErrorContains(t, err, "not ours to use")
	_, err = OpenFDs("cw7", 1420, MaxQueues+1)
	require.ErrorContains(t, err, "queues are not between")
}

// What was written by one queue is answered there: so a flow stays on a thread.
func TestFlowStaysOnItsQueue(t *testing.T) {
	inNamespace(t)
	fds, err := OpenFDs("cw7", 1420, 2)
	require.NoError(t, err)
	ip(t, "addr", "add", "198.18.0.7/32", "dev", "cw7")
	ip(t, "link", "set", "cw7", "up")
	ip(t, "link", "set", "lo", "up")
	ip(t, "route", "add", "10.9.0.0/16", "dev", "cw7")
	defer func() {
		for _, fd := range fds {
			CloseFD(fd)
		}
	}()
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(sock)
	require.NoError(t, unix.Bind(sock, &unix.SockaddrInet4{Addr: [4]byte{198, 18, 0, 7}, Port: 7000}))
	for flow := range 8 {
		q := flow % 2
		// From 10.9.1.2, port 9000 + flow, to the socket; no checksum (RFC 768).
		p := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 1, 2, 198, 18, 0, 7, 0x23, byte(0x28 + flow), 0x1b, 0x58, 0, 8, 0, 0}
		var sum uint32
		for i := 0; i < 20; i += 2 {
			sum += uint32(p[i])<<8 | uint32(p[i+1])
		}
		sum = ^(sum&0xffff + sum>>16)
		p[10], p[11] = byte(sum>>8), byte(sum)
		_, err := unix.Write(fds[q], append(make([]byte, vnetHeader), p...))
		require.NoError(t, err)
		require.NoError(t, unix.Sendto(sock, []byte("answer"), 0, &unix.SockaddrInet4{Addr: [4]byte{10, 9, 1, 2}, Port: 9000 + flow}))
		b := make([]byte, 2048)
		require.Eventually(t, func() bool {
			n, err := unix.Read(fds[q], b)
			return err == nil && n > vnetHeader && b[vnetHeader]>>4 == 4
		}, 5*time.Second, time.Millisecond, "flow %d is not answered on queue %d", flow, q)
	}
}

// A device that somebody renamed gets its name back, up or down, and works under the one that
// it was given while another link has its own.
func TestRenamed(t *testing.T) {
	inNamespace(t)
	fds, err := OpenFDs("cw7", 1420, 2)
	require.NoError(t, err)
	h, err := NewHandle("cw7", 1420, fds)
	require.NoError(t, err)
	defer h.Close()
	for _, fd := range fds {
		defer CloseFD(fd)
	}
	_, index := h.Device()
	is := func(want string) {
		t.Helper()
		made, err := h.Reattach()
		require.NoError(t, err)
		require.False(t, made)
		name, i := h.Device()
		require.Equal(t, want, name)
		require.Equal(t, index, i)
	}
	is("cw7")
	ip(t, "link", "set", "cw7", "name", "x0")
	is("cw7")
	ip(t, "link", "set", "cw7", "name", "x0")
	ip(t, "link", "set", "x0", "up")
	is("cw7")
	ip(t, "link", "set", "cw7", "down")
	ip(t, "link", "set", "cw7", "name", "x0")
	ip(t, "link", "add", "cw7", "type", "bridge")
	is("x0")
	ip(t, "link", "del", "cw7")
	is("cw7")

	ip(t, "link", "del", "cw7")
	name, _ := h.Device()
	require.Empty(t, name)
	made, err := h.Reattach()
	require.NoError(t, err)
	require.True(t, made)
	name, _ = h.Device()
	require.Equal(t, "cw7", name)
}
