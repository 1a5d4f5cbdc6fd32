package conns

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Too many connections cost the oldest its own, never the newest; what became a
// stream counts no longer.
func TestConnsCloseTheOldest(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := New(inner, 8, 3)
	defer l.Close()
	open := func() (client, server net.Conn) {
		client, err := net.Dial("tcp", inner.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { client.Close() })
		server, err = l.Accept()
		require.NoError(t, err)
		return client, server
	}
	closed := func(c net.Conn) bool {
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		ne, ok := err.(net.Error)
		return !ok || !ne.Timeout()
	}
	first, stream := open()
	stream.(*Conn).Detach()
	var clients, servers []net.Conn
	for range 5 {
		c, s := open()
		clients, servers = append(clients, c), append(servers, s)
	}
	require.False(t, closed(first), "a stream is not counted")
	for i, c := range clients {
		require.Equal(t, i < 2, closed(c), "connection %d", i)
	}
	for _, s := range append(servers, stream) {
		s.Close()
		s.Close()
	}
	require.Zero(t, l.all)
	require.Empty(t, l.bySource)
}

// A source with many connections loses one of its own for another's, whoever was there first.
func TestConnsOfOthersStay(t *testing.T) {
	l := New(nil, 4, 4)
	put := func(source string, n int) (out []*Conn) {
		for range n {
			l.Listener = one{&fake{addr: source}}
			c, err := l.Accept()
			require.NoError(t, err)
			out = append(out, c.(*Conn))
		}
		return out
	}
	quiet := put("192.0.2.1:1", 1)
	loud := put("192.0.2.2:1", 3)
	put("192.0.2.3:1", 2)
	require.False(t, quiet[0].Conn.(*fake).closed)
	require.True(t, loud[0].Conn.(*fake).closed)
	require.True(t, loud[1].Conn.(*fake).closed)
	require.False(t, loud[2].Conn.(*fake).closed)
}

type one struct{ c net.Conn }

func (o one) Accept() (net.Conn, error) { return o.c, nil }
func (one) Close() error                { return nil }
func (one) Addr() net.Addr              { return nil }

type fake struct {
	net.Conn
	addr   string
	closed bool
}

func (f *fake) RemoteAddr() net.Addr { a, _ := net.ResolveTCPAddr("tcp", f.addr); return a }
func (f *fake) Close() error         { f.closed = true; return nil }
