package sock

import (
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What comes while nobody reads waits in sockets that somebody else holds, and
// the next process reads it; one that is closed meanwhile works on.
func TestHeldSocketsOutliveTheirReader(t *testing.T) {
	o := Options{Addr: netip.MustParseAddrPort("127.0.0.1:0")}
	first, err := OpenShared(o, 3)
	require.NoError(t, err)
	addr := first[0].LocalAddr()
	var files []*os.File
	for _, c := range first {
		f, err := c.File()
		require.NoError(t, err)
		files = append(files, f)
		require.NoError(t, c.Held())
		done := make(chan error, 1)
		go func() { _, err := c.Read(NewBatch()); done <- err }()
		start := time.Now()
		time.AfterFunc(10*time.Millisecond, func() { c.Close() })
		require.ErrorIs(t, <-done, net.ErrClosed)
		require.Less(t, time.Since(start), 5*time.Second)
	}
	// Many senders, so that each socket gets some.
	const senders = 60
	for range senders {
		c, err := net.Dial("udp", addr.String())
		require.NoError(t, err)
		_, err = c.Write([]byte("waits"))
		require.NoError(t, err)
		c.Close()
	}
	o.Addr, o.Inherited = addr, files
	second, err := OpenShared(o, 2)
	require.NoError(t, err)
	require.Len(t, second, 3, "all that are held have to be read")
	got := make(chan int)
	for _, c := range second {
		require.NoError(t, c.Held())
		go func() {
			b := NewBatchOf(24)
			for {
				ms, err := c.Read(b)
				if err != nil {
					return
				}
				got <- len(ms)
			}
		}()
	}
	n := 0
	for n < senders {
		select {
		case m := <-got:
			n += m
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of %d datagrams", n, senders)
		}
	}
	for _, c := range second {
		require.NoError(t, c.Close())
	}
}

// Sockets of another address are none of ours.
func TestInheritedSocketsOfAnotherAddress(t *testing.T) {
	c, err := Open(Options{Addr: netip.MustParseAddrPort("127.0.0.1:0")})
	require.NoError(t, err)
	defer c.Close()
	f, err := c.File()
	require.NoError(t, err)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer tcp.Close()
	g, err := tcp.(*net.TCPListener).File()
	require.NoError(t, err)
	cs, err := OpenShared(Options{Addr: netip.MustParseAddrPort("127.0.0.2:0"), Inherited: []*os.File{f, g}}, 1)
	require.NoError(t, err)
	require.Len(t, cs, 1)
	require.NotEqual(t, c.LocalAddr(), cs[0].LocalAddr())
	require.NoError(t, cs[0].Close())
	require.Error(t, f.Close(), "it was closed")
}
