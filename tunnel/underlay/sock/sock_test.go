package sock

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func open(t testing.TB, o Options) *Conn {
	t.Helper()
	if !o.Addr.IsValid() {
		o.Addr = netip.MustParseAddrPort("127.0.0.1:0")
	}
	c, err := Open(o)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func datagrams(n, size, last int) []byte {
	b := make([]byte, (n-1)*size+last)
	for i := range b {
		b[i] = byte(i/size + i%251)
	}
	return b
}

// receive reads until it has n bytes, and checks each message's shape.
func receive(t testing.TB, c *Conn, n int) (data []byte, messages []Message) {
	t.Helper()
	timer := time.AfterFunc(10*time.Second, func() { c.Close() })
	defer timer.Stop()
	b := NewBatch()
	for len(data) < n {
		ms, err := c.Read(b)
		require.NoError(t, err)
		for _, m := range ms {
			require.Positive(t, m.Segment)
			data = append(data, m.Data...)
			messages = append(messages, Message{From: m.From, Local: m.Local, Segment: m.Segment})
		}
	}
	return data, messages
}

func TestGroups(t *testing.T) {
	for name, o := range map[string]Options{"offload": {}, "none": {NoOffload: true}} {
		t.Run(name, func(t *testing.T) {
			a, b := open(t, o), open(t, o)
			for _, c := range []struct{ n, size, last int }{{1, 100, 100}, {2, 1400, 1}, {40, 1452, 700}, {64, 200, 200}, {130, 300, 7}, {60, 1472, 1472}} {
				want := datagrams(c.n, c.size, c.last)
				require.NoError(t, a.Write(b.LocalAddr(), want, c.size))
				got, ms := receive(t, b, len(want))
				require.True(t, bytes.Equal(want, got))
				require.Equal(t, a.LocalAddr(), ms[0].From)
				if o.NoOffload {
					require.Len(t, ms, c.n)
				} else if c.n == 40 {
					require.Less(t, len(ms), 10, "groups arrive as groups")
					require.Equal(t, c.size, ms[0].Segment)
				}
			}
		})
	}
}

// A destination over which UDP_SEGMENT fails gets single datagrams, at once
// and from then on; others keep their groups.
func TestSegmentFallback(t *testing.T) {
	a, b, c := open(t, Options{}), open(t, Options{}), open(t, Options{})
	// The kernel refuses UDP_SEGMENT without checksums (EINVAL).
	require.NoError(t, unix.SetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1))
	want := datagrams(20, 1000, 10)
	require.NoError(t, a.Write(b.LocalAddr(), want, 1000))
	got, _ := receive(t, b, len(want))
	require.True(t, bytes.Equal(want, got))
	require.True(t, a.refused(b.LocalAddr()))
	require.False(t, a.refused(c.LocalAddr()))

	var g Group
	for o := 0; o < len(want); o += 1000 {
		require.True(t, g.Add(want[o:min(o+1000, len(want))]))
	}
	for _, to := range []*Conn{b, c} {
		require.NoError(t, a.WriteGroup(netip.Addr{}, to.LocalAddr(), &g))
		got, _ = receive(t, to, len(want))
		require.True(t, bytes.Equal(want, got))
	}
	require.True(t, a.refused(c.LocalAddr()))

	// It is tried again after a while.
	require.NoError(t, unix.SetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 0))
	a.noGSO.Store(&map[netip.AddrPort]time.Time{b.LocalAddr(): time.Now()})
	require.NoError(t, a.Write(b.LocalAddr(), want, 1000))
	got, ms := receive(t, b, len(want))
	require.True(t, bytes.Equal(want, got))
	require.Less(t, len(ms), 3, "groups again")
	require.False(t, a.refused(b.LocalAddr()))
}

func TestGroupGathers(t *testing.T) {
	a, b := open(t, Options{}), open(t, Options{})
	x, y := datagrams(5, 500, 500), datagrams(3, 500, 20)
	var g Group
	for o := 0; o < len(x); o += 500 {
		if o != 1000 { // one was another's
			require.True(t, g.Add(x[o:o+500]))
		}
	}
	for o := 0; o < len(y); o += 500 {
		require.True(t, g.Add(y[o:min(o+500, len(y))]))
	}
	require.False(t, g.Add(x[:10]), "nothing follows a shorter one")
	require.Equal(t, 7, g.Len())
	require.Equal(t, 3, g.n, "neighbours share a vector")
	want := append(append(append([]byte{}, x[:1000]...), x[1500:]...), y...)
	require.Equal(t, len(want), g.Bytes())
	require.NoError(t, a.WriteGroup(netip.Addr{}, b.LocalAddr(), &g))
	got, _ := receive(t, b, len(want))
	require.True(t, bytes.Equal(want, got))
	g.Reset()
	require.True(t, g.Add(make([]byte, 10)))
	require.False(t, g.Add(make([]byte, 11)), "nothing longer than the first")
}

func TestFamilies(t *testing.T) {
	dual, err := Open(Options{Addr: netip.MustParseAddrPort("[::]:0")})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Skip("this host has no IPv6")
	}
	require.NoError(t, err)
	defer dual.Close()
	four := open(t, Options{})
	to := netip.AddrPortFrom(four.LocalAddr().Addr(), dual.LocalAddr().Port())
	want := datagrams(10, 800, 100)
	require.NoError(t, four.Write(to, want, 800))
	got, ms := receive(t, dual, len(want))
	require.Equal(t, want, got)
	require.Equal(t, four.LocalAddr(), ms[0].From, "no mapped address")
	require.NoError(t, dual.Write(four.LocalAddr(), want, 800))
	got, _ = receive(t, four, len(want))
	require.Equal(t, want, got)
	require.ErrorIs(t, four.Write(netip.MustParseAddrPort("[::1]:1"), want, 800), ErrFamily)
	require.ErrorIs(t, four.Write(netip.AddrPort{}, want, 800), ErrFamily)

	six := open(t, Options{Addr: netip.MustParseAddrPort("[::1]:0"), Only6: true})
	require.NoError(t, six.Write(netip.AddrPortFrom(netip.IPv6Loopback(), dual.LocalAddr().Port()), want, 800))
	got, ms = receive(t, dual, len(want))
	require.Equal(t, want, got)
	require.Equal(t, six.LocalAddr(), ms[0].From)
}

func TestClose(t *testing.T) {
	c := open(t, Options{})
	done := make(chan error)
	go func() {
		_, err := c.Read(NewBatch())
		done <- err
	}()
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	require.ErrorIs(t, <-done, net.ErrClosed)
	_, err := c.Read(NewBatch())
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorIs(t, c.Write(netip.MustParseAddrPort("127.0.0.1:1"), []byte{1}, 1), net.ErrClosed)
}

func TestTooLargeIsAnError(t *testing.T) {
	a := open(t, Options{})
	require.ErrorIs(t, a.Write(a.LocalAddr(), make([]byte, 65530), 65530), unix.EMSGSIZE)
}

func TestNothingIsAllocated(t *testing.T) {
	a, b := open(t, Options{}), open(t, Options{})
	batch, data, to := NewBatch(), datagrams(40, 1400, 1400), b.LocalAddr()
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if err := a.Write(to, data, 1400); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(batch); err != nil {
			t.Fatal(err)
		}
	}))
}

func TestBuffer(t *testing.T) {
	const bytes = 212992
	c, err := Open(Options{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Buffer: bytes})
	require.NoError(t, err)
	defer c.Close()
	for _, opt := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		got, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, opt)
		require.NoError(t, err)
		require.Equal(t, 2*bytes, got, "the kernel doubles it for its own use") // socket(7)
	}
}

// A socket that has no room for what comes says so, once for each time.
func TestOverrun(t *testing.T) {
	to, err := Open(Options{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Buffer: 8 << 10})
	require.NoError(t, err)
	defer to.Close()
	from, err := Open(Options{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	require.NoError(t, err)
	defer from.Close()
	require.False(t, to.Overrun())
	for range 100 {
		require.NoError(t, from.Write(to.LocalAddr(), make([]byte, 1400), 1400))
	}
	require.True(t, to.Overrun())
	require.False(t, to.Overrun())
}
