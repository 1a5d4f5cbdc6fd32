package netstack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun"

	"causeway/protocol"
	"causeway/tunnel/engine"
	"causeway/tunnel/engine/enginetest"
	"causeway/tunnel/engine/wggo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

var (
	a4 = netip.MustParseAddr("198.18.0.1")
	a6 = netip.MustParseAddr("fd63:7761:7900::1")
	b4 = netip.MustParseAddr("198.18.0.2")
	b6 = netip.MustParseAddr("fd63:7761:7900::2")
)

func newNet(t *testing.T, addrs ...netip.Addr) *Net {
	t.Helper()
	n, err := New(Config{Addresses: addrs})
	require.NoError(t, err)
	t.Cleanup(func() { n.Close() })
	return n
}

// pump carries packets one way until from closes.
func pump(wg *sync.WaitGroup, from, to tun.Device) {
	wg.Go(func() {
		bufs, sizes := make([][]byte, 8), make([]int, 8)
		for i := range bufs {
			bufs[i] = make([]byte, 2048)
		}
		for {
			n, err := from.Read(bufs, sizes, 16)
			if err != nil {
				return
			}
			out := make([][]byte, n)
			for i := range out {
				out[i] = bufs[i][:16+sizes[i]]
			}
			if _, err := to.Write(out, 16); err != nil {
				return
			}
		}
	})
}

// cabled returns two stacks joined by a cable.
func cabled(t *testing.T) (*Net, *Net) {
	a, b := newNet(t, a4, a6), newNet(t, b4, b6)
	var wg sync.WaitGroup
	pump(&wg, a, b)
	pump(&wg, b, a)
	t.Cleanup(func() { a.Close(); b.Close(); wg.Wait() })
	return a, b
}

func TestTransfer(t *testing.T) {
	a, b := cabled(t)
	for _, addr := range []netip.Addr{a4, a6} {
		transfer(t, a, b, netip.AddrPortFrom(addr, 4710), 4<<20)
	}
}

// transfer echoes size bytes from b through a listener at a.
func transfer(t *testing.T, a, b *Net, at netip.AddrPort, size int) {
	t.Helper()
	l, err := a.ListenTCP(at)
	require.NoError(t, err)
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		c, err := l.Accept()
		if !assert.NoError(t, err) {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := b.DialTCP(ctx, at)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	assert.Equal(t, at.String(), c.RemoteAddr().String())
	data := make([]byte, size)
	r := rand.NewChaCha8(sha256.Sum256([]byte("netstack")))
	r.Read(data)
	wg.Go(func() {
		c.Write(data)
		c.(interface{ CloseWrite() error }).CloseWrite()
	})
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got), "%d of %d bytes came back", len(got), size)
}

func TestClose(t *testing.T) {
	a, b := cabled(t)
	at := netip.AddrPortFrom(a4, 4710)
	l, err := a.ListenTCP(at)
	require.NoError(t, err)
	conns := make(chan net.Conn, 1)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			conns <- c
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := b.DialTCP(ctx, at)
	require.NoError(t, err)
	far := <-conns
	readErr := make(chan error, 1)
	go func() {
		_, err := far.Read(make([]byte, 1))
		readErr <- err
	}()
	// Close while packets go both ways and calls wait.
	go c.Write(make([]byte, 1<<20))
	require.NoError(t, a.Close())
	require.NoError(t, a.Close())
	for name, ch := range map[string]chan error{"accept": ended, "read": readErr} {
		select {
		case err := <-ch:
			assert.Error(t, err, name)
			if name == "accept" {
				assert.ErrorIs(t, err, net.ErrClosed)
			}
		case <-time.After(patience):
			require.Fail(t, "call still waits", name)
		}
	}
	_, err = a.Read([][]byte{make([]byte, 2000)}, []int{0}, 0)
	assert.ErrorIs(t, err, os.ErrClosed)
	_, err = a.Write([][]byte{make([]byte, 2000)}, 0)
	assert.ErrorIs(t, err, os.ErrClosed)
	_, err = a.ListenTCP(at)
	assert.ErrorIs(t, err, net.ErrClosed)
	_, err = a.DialTCP(ctx, netip.AddrPortFrom(b4, 1))
	assert.ErrorIs(t, err, net.ErrClosed)
}

// A peer that falls silent while much is on its way to it: what it was sent is
// held for the time of silence and no longer, on connections that were closed
// and on those that nobody closed.
func TestSilentPeer(t *testing.T) {
	const (
		conns = 40
		data  = 200 << 10
		after = 2 * time.Second
	)
	a, err := New(Config{Addresses: []netip.Addr{a4}, SilentAfter: after})
	require.NoError(t, err)
	b := newNet(t, b4)
	var wg sync.WaitGroup
	t.Cleanup(func() { a.Close(); b.Close(); wg.Wait() })
	var cut atomic.Bool
	pump(&wg, &cable{a, &cut}, b)
	pump(&wg, b, a)

	at := netip.AddrPortFrom(a4, 4710)
	l, err := a.ListenTCP(at)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var accepted []net.Conn
	for range conns {
		near, err := b.DialTCP(ctx, at)
		require.NoError(t, err)
		defer near.Close()
		far, err := l.Accept()
		require.NoError(t, err)
		defer far.Close()
		accepted = append(accepted, far)
	}
	require.Equal(t, uint64(conns), a.stack.Stats().TCP.CurrentEstablished.Value())
	payload := make([]byte, data)
	before := heap()
	cut.Store(true)
	var writers sync.WaitGroup
	var taken atomic.Int64
	for _, c := range accepted {
		writers.Go(func() {
			c.SetWriteDeadline(time.Now().Add(after / 4))
			n, _ := c.Write(payload)
			taken.Add(int64(n))
		})
	}
	writers.Wait()
	held := func() int64 { return heap() - before }
	require.Greater(t, taken.Load(), int64(conns*bufferSend/2), "the buffers fill")
	require.Less(t, held(), int64(conns*100<<10), "one connection holds no more than a control message or two")
	for _, c := range accepted[:conns/2] {
		require.NoError(t, c.Close())
	}
	require.Eventually(t, func() bool { return a.stack.Stats().TCP.EstablishedTimedout.Value() == conns }, 3*after, 20*time.Millisecond)
	require.Eventually(t, func() bool { return held() < conns*10<<10 }, patience, 20*time.Millisecond, "the buffers are free")
	for _, c := range accepted[conns/2:] {
		c.SetReadDeadline(time.Now().Add(patience))
		_, err := c.Read(make([]byte, 1))
		require.Error(t, err)
		require.False(t, errors.Is(err, os.ErrDeadlineExceeded), "the reader hears of it: %v", err)
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // pools give up what they hold after the second
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// cable loses what is read from a device once it is cut.
type cable struct {
	tun.Device
	cut *atomic.Bool
}

func (c *cable) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := c.Device.Read(bufs, sizes, offset)
	if c.cut.Load() {
		n = 0
	}
	return n, err
}

func TestListenerClose(t *testing.T) {
	a := newNet(t, a4)
	l, err := a.ListenTCP(netip.AddrPortFrom(a4, 4710))
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	select {
	case err := <-ended:
		assert.ErrorIs(t, err, net.ErrClosed)
	case <-time.After(patience):
		require.Fail(t, "accept still waits")
	}
	again, err := a.ListenTCP(netip.AddrPortFrom(a4, 4710))
	require.NoError(t, err, "the port is free again")
	again.Close()
}

func TestDialEnds(t *testing.T) {
	a := newNet(t, a4)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := a.DialTCP(ctx, netip.AddrPortFrom(b4, 1)) // nobody reads the device
		done <- err
	}()
	cancel()
	select {
	case err := <-done:
		assert.ErrorIs(t, err, context.Canceled)
	case <-time.After(patience):
		require.Fail(t, "dial still waits")
	}
}

// Foreign destinations, garbage and what is cut short are dropped.
// Threat model: a peer that WireGuard has authenticated.
func TestHostilePackets(t *testing.T) {
	a, b := cabled(t)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 5000 {
		p := make([]byte, 16+1+r.IntN(200))
		for j := range p {
			p[j] = byte(r.Uint32())
		}
		p[16] = byte([]int{0x45, 0x60, 0x4f, 0x00, 0xff}[i%5])
		_, err := a.Write([][]byte{p, p[:16]}, 16)
		require.NoError(t, err)
	}
	a.Write([][]byte{enginetest.Packet(b4, netip.MustParseAddr("192.0.2.1"), make([]byte, 40))}, 0)
	transfer(t, a, b, netip.AddrPortFrom(a4, 4710), 1<<10)
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{}, {Addresses: []netip.Addr{{}}}, {Addresses: []netip.Addr{a4}, MTU: 1279}, {Addresses: []netip.Addr{a4}, MTU: 70000},
		{Addresses: []netip.Addr{a4, a4}}, {Addresses: []netip.Addr{netip.IPv4Unspecified()}}, {Addresses: []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")}},
	} {
		_, err := New(c)
		assert.Error(t, err, "%v", c)
	}
}

// TCP between two stacks through two engines, as between two hubs' devices.
func TestThroughEngines(t *testing.T) {
	network := enginetest.NewNetwork()
	nets := map[protocol.NodeNumber]*Net{1: newNet(t, a4, a6), 2: newNet(t, b4, b6)}
	keys := map[protocol.NodeNumber]protocol.WireGuardPrivateKey{1: enginetest.Key(t), 2: enginetest.Key(t)}
	addrs := map[protocol.NodeNumber][]netip.Addr{1: {a4, a6}, 2: {b4, b6}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(cancel)
	for n, dev := range nets {
		m := network.Join(n)
		e, err := wggo.New(wggo.Config{Number: n, PrivateKey: keys[n], TUN: dev, Carrier: m, AnyDestination: true})
		require.NoError(t, err)
		other := 3 - n
		var allowed []netip.Prefix
		for _, a := range addrs[other] {
			allowed = append(allowed, netip.PrefixFrom(a, a.BitLen()))
		}
		require.NoError(t, e.SetPeers([]engine.Peer{{Number: other, Key: keys[other].Public(), AllowedIPs: allowed}}))
		wg.Go(func() { assert.NoError(t, e.Run(ctx)) })
		wg.Go(func() { m.Deliver(ctx, e.NewReader()) })
	}
	for _, addr := range addrs[1] {
		transfer(t, nets[1], nets[2], netip.AddrPortFrom(addr, 4710), 8<<20)
	}
	// A lossy network: TCP copes.
	r := rand.New(rand.NewPCG(5, 6))
	network.SetHook(func(_, _ protocol.NodeNumber, d []byte) [][]byte {
		if r.IntN(100) < 2 {
			return nil
		}
		return [][]byte{d}
	})
	transfer(t, nets[1], nets[2], netip.AddrPortFrom(a4, 4710), 1<<20)
	assert.Empty(t, network.Faults())
	cancel()
	wg.Wait()
	_, err := nets[1].ListenTCP(netip.AddrPortFrom(a4, 4710))
	require.True(t, errors.Is(err, net.ErrClosed), "the engine closed the stack")
}

// Nothing is kept of connections that were aborted, whether they were closed before or not and
// though their peers never answer; those that were closed alone stay.
func TestAbort(t *testing.T) {
	a, err := New(Config{Addresses: []netip.Addr{a4}})
	require.NoError(t, err)
	b := newNet(t, b4)
	var wg sync.WaitGroup
	t.Cleanup(func() { a.Close(); b.Close(); wg.Wait() })
	var cut atomic.Bool
	pump(&wg, &cable{a, &cut}, b)
	pump(&wg, b, a)
	l, err := a.ListenTCP(netip.AddrPortFrom(a4, 4710))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var far []*Conn
	for range 9 {
		near, err := b.DialTCP(ctx, netip.AddrPortFrom(a4, 4710))
		require.NoError(t, err)
		defer near.Close()
		c, err := l.Accept()
		require.NoError(t, err)
		far = append(far, c.(*Conn))
	}
	cut.Store(true)
	kept := func() int { return len(a.stack.RegisteredEndpoints()) }
	all := kept()
	for i, c := range far {
		switch i % 3 {
		case 0:
			c.Close()
		case 1:
			c.Close()
			c.Abort()
		case 2:
			c.Abort()
			c.Close()
		}
		c.Close() // as often as one likes
	}
	require.Eventually(t, func() bool { return kept() == all-6 }, patience, 10*time.Millisecond, "%d of %d", kept(), all)
	for i := 0; i < 9; i += 3 {
		far[i].Abort()
	}
	require.Equal(t, all-9, kept())
}
