//go:build linux

package inline_test

import (
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"causeway/protocol"
	"causeway/tunnel/engine/inline"
)

var allOffloads = inline.Offloads{VNet: true, TSO: true, USO: true}

// transfer sends n bytes over TCP from one host to the other and compares
// their hashes.
func transfer(t testing.TB, from, to *host, at netip.Addr, n int64) {
	t.Helper()
	l := to.listen("tcp", at)
	defer l.Close()
	sums := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			sums <- nil
			return
		}
		defer c.Close()
		h := sha256.New()
		io.Copy(h, c)
		sums <- h.Sum(nil)
	}()
	c := from.dial("tcp", l.Addr())
	h := sha256.New()
	_, err := io.CopyN(io.MultiWriter(c, h), rand.NewChaCha8([32]byte{1}), n)
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	select {
	case got := <-sums:
		require.Equal(t, h.Sum(nil), got, "data was changed on the way")
	case <-time.After(30 * time.Second):
		require.FailNow(t, "transfer did not end")
	}
	c.Close()
}

// datagrams sends UDP datagrams of many sizes and waits for each to come back.
func datagrams(t testing.TB, from, to *host, at, src netip.Addr) {
	t.Helper()
	server, client := to.packetConn(at), from.packetConn(src)
	defer server.Close()
	defer client.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, from, err := server.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			server.WriteToUDPAddrPort(b[:n], from)
		}
	})
	defer server.Close()
	b, r := make([]byte, 65536), make([]byte, 65536)
	dst := server.LocalAddr().(*net.UDPAddr).AddrPort()
	for size := 0; size <= 4000; size += 37 { // beyond the MTU they are fragments
		for i := range size {
			b[i] = byte(i * size)
		}
		ok := false
		for range 5 { // a socket buffer may be full
			client.WriteToUDPAddrPort(b[:size], dst)
			client.SetReadDeadline(time.Now().Add(2 * time.Second))
			n, _, err := client.ReadFromUDPAddrPort(r)
			if ok = err == nil && n == size && string(r[:n]) == string(b[:n]); ok {
				break
			}
		}
		require.True(t, ok, "datagram of %d bytes", size)
	}
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(d)
}

// Stopped under load, again and again, the engine leaves nothing open.
func TestStopLeavesNothing(t *testing.T) {
	needRoot(t)
	var files int
	for i := range 5 {
		t.Run("", func(t *testing.T) {
			a, b := newRawPair(t)
			a.startInline(allOffloads, 1+i%2)
			b.startInline(allOffloads, 1+i%2)
			join(t, a, b)
			transfer(t, a, b, b.addr4(), 1<<20)
			c := a.packetConn(a.addr4())
			flood := make(chan struct{})
			go func() {
				defer close(flood)
				for {
					if _, err := c.WriteTo(make([]byte, 1000), net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.addr4(), 9))); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
						return
					}
				}
			}()
			t.Cleanup(func() { <-flood })
			t.Cleanup(func() { c.Close() })
			// The engines stop first: cleanups run backwards.
			require.Eventually(t, func() bool { return a.udp.sends.Load() > 100 }, 10*time.Second, time.Millisecond)
			a.stop()
			b.stop()
		})
		if i == 0 {
			files = openFiles(t)
		}
	}
	require.LessOrEqual(t, openFiles(t), files)
}

// The device's end is the engine's.
func TestDeviceTakenAway(t *testing.T) {
	needRoot(t)
	a, b := newRawPair(t)
	a.startInline(allOffloads, 1)
	b.startInline(allOffloads, 1)
	join(t, a, b)
	transfer(t, a, b, b.addr4(), 1<<20)
	a.in(func() error {
		l, err := netlink.LinkByName("cwtest0")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	select {
	case <-a.ended:
		require.ErrorContains(t, a.runError, "cwtest0")
		a.runError = nil
	case <-time.After(10 * time.Second):
		require.FailNow(t, "the engine goes on without its device")
	}
}

// Every kind of packet passes with every set of offloads, IPv4 and IPv6,
// against each engine.
func TestKernelDevice(t *testing.T) {
	for _, c := range []struct {
		name   string
		off    inline.Offloads
		queues int
		other  string
	}{
		{"all offloads", allOffloads, 1, ""},
		{"two queues", allOffloads, 2, ""},
		{"no USO", inline.Offloads{VNet: true, TSO: true}, 1, ""},
		{"no TSO", inline.Offloads{VNet: true}, 1, ""},
		{"no virtio header", inline.Offloads{}, 1, ""},
		{"against wireguard-go", allOffloads, 1, "wireguard-go"},
		{"no virtio header against wireguard-go", inline.Offloads{}, 1, "wireguard-go"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := newRawPair(t)
			d := a.startInline(c.off, c.queues)
			if c.other != "" {
				b.startWireguardGo()
			} else {
				b.startInline(c.off, c.queues)
			}
			require.Equal(t, c.off, d.Offloads, "this machine's kernel has all offloads")
			join(t, a, b)
			const n = 16 << 20
			transfer(t, a, b, b.addr4(), n)
			transfer(t, b, a, a.addr4(), n)
			transfer(t, a, b, b.addr6(), n)
			transfer(t, b, a, a.addr6(), n)
			datagrams(t, a, b, b.addr4(), a.addr4())
			datagrams(t, b, a, a.addr6(), b.addr6())
			e := a.engine.(*inline.Engine)
			for _, k := range []protocol.DropReason{protocol.DropMalformed, protocol.DropSpoofed, protocol.DropRejected, protocol.DropWriteErrors, protocol.DropSendErrors} {
				require.Zero(t, e.Drops()[k], k)
			}
		})
	}
}
