package stream

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
)

// sendAll sends runs of all shapes, no faster than they are taken.
func sendAll(t *testing.T, c *Conn, received func() int) []byte {
	var sent bytes.Buffer
	r := rand.New(rand.NewPCG(1, 2))
	for sent.Len() < 4<<20 {
		segment := 1 + r.IntN(1500)
		switch r.IntN(20) {
		case 0:
			segment = 1 + r.IntN(maxRun)
		case 1:
			segment = 1 + r.IntN(130)
		}
		n := min(segment*(1+r.IntN(64)), maxRun)
		b := transport(n, segment)
		if err := c.Send(b, segment); err != nil {
			require.ErrorIs(t, err, ErrFull) // what waits is too old: the machine is busy
			at := received()
			eventually(t, "room", func() bool { return received() > at || received() == sent.Len() })
			continue
		}
		sent.Write(b)
		eventually(t, "taken", func() bool { return sent.Len()-received() < 512<<10 })
	}
	eventually(t, "all taken", func() bool { return sent.Len() == received() })
	return sent.Bytes()
}

func TestBothWays(t *testing.T) {
	h := newHub(t)
	a, s := dial(t, h, Dialer{})
	eventually(t, "first", func() bool { return a.Send(transport(100, 100), 100) == nil && h.received() > 0 && s.Bound() })
	eventually(t, "still", func() bool { n := h.received(); time.Sleep(5 * time.Millisecond); return n == h.received() })
	h.mu.Lock()
	h.got.Reset()
	h.mu.Unlock()
	require.True(t, bytes.Equal(sendAll(t, a.Conn, h.received), h.got.Bytes()))
	require.True(t, bytes.Equal(sendAll(t, s, a.received), a.got.Bytes()))
	require.True(t, protocol.IsStream(s.Addr()))
	require.Equal(t, h.addr, a.Remote().String())
	a.Close(ErrClosed)
	require.Error(t, <-h.ends)
	require.ErrorIs(t, a.Send(transport(100, 100), 100), ErrClosed)
}

// Who does not read costs the sender a bounded queue and no time.
func TestSlowReader(t *testing.T) {
	h := newHub(t)
	block := make(chan struct{})
	h.handle = func(c *Conn, m []sock.Message) { c.SetBound(); <-block }
	a, s := dial(t, h, Dialer{})
	require.NoError(t, a.Send(transport(100, 100), 100))
	eventually(t, "bound", s.Bound)
	b := transport(60000, 1400)
	start, longest := time.Now(), time.Duration(0)
	for a.Dropped() == 0 || time.Since(start) < 300*time.Millisecond {
		require.Less(t, time.Since(start), 20*time.Second)
		before := time.Now()
		a.Send(b, 1400)
		longest = max(longest, time.Since(before))
	}
	require.Less(t, longest, 200*time.Millisecond, "Send does not block")
	a.queue.mu.Lock()
	require.LessOrEqual(t, a.queue.data.bytes, maxQueued+chunkSize)
	a.queue.mu.Unlock()
	close(block)
	eventually(t, "it goes on", func() bool { return a.Send(b, 1400) == nil })
}

// What goes first overtakes what waits, and does not push it out.
func TestUrgentOvertakes(t *testing.T) {
	q := newQueue(true)
	now := time.Now()
	data := transport(1400, 1400)
	for range 100 {
		require.NoError(t, q.push(now, urgent(data), 1400, 1400, data))
	}
	probe := make([]byte, protocol.ProbeSize)
	probe[0] = byte(protocol.MessageProbe)
	plain := transport(200, 200)
	protocol.SetMessageNumber(plain, 0)
	for _, b := range [][]byte{probe, plain} {
		require.True(t, urgent(b))
		require.NoError(t, q.push(now, urgent(b), len(b), len(b), b))
	}
	first := q.pop(false).b
	require.True(t, bytes.Contains(first, probe) && bytes.Contains(first, plain) && !bytes.Contains(first, data))
	require.True(t, bytes.Contains(q.pop(false).b, data))
	require.ErrorIs(t, q.push(now.Add(2*maxAge), false, 1400, 1400, data), ErrFull, "what is there has waited too long")
	require.NoError(t, q.push(now.Add(2*maxAge), true, 112, 112, probe))
	for q.push(now, true, len(probe), len(probe), probe) == nil {
	}
	require.LessOrEqual(t, q.urgent.bytes, maxUrgent+chunkSize)
	q.close()
	require.Nil(t, q.pop(true))
	require.ErrorIs(t, q.push(now, true, 112, 112, probe), ErrClosed)
}

// The other side's host is gone without a word.
func TestHalfOpen(t *testing.T) {
	h := newHub(t)
	block := make(chan struct{})
	defer close(block)
	h.handle = func(c *Conn, m []sock.Message) { c.SetBound(); <-block }
	c, err := Dialer{}.Dial(t.Context(), h.addr, protocol.StreamAddr(1))
	require.NoError(t, err)
	c.readTimeout = 300 * time.Millisecond
	ended := make(chan error, 1)
	go func() { ended <- c.Run(t.Context(), func([]sock.Message) {}) }()
	var ne net.Error
	select {
	case err := <-ended:
		require.True(t, errors.As(err, &ne) && ne.Timeout(), err)
	case <-time.After(5 * time.Second):
		t.Fatal("a silent stream does not end")
	}

	c, err = Dialer{}.Dial(t.Context(), h.addr, protocol.StreamAddr(1))
	require.NoError(t, err)
	c.writeTimeout = 300 * time.Millisecond
	go func() { ended <- c.Run(t.Context(), func([]sock.Message) {}) }()
	require.NoError(t, c.Send(transport(100, 100), 100))
	<-h.conns
	s := <-h.conns
	eventually(t, "bound", s.Bound)
	b := transport(60000, 1400)
	for {
		select {
		case err := <-ended:
			require.True(t, errors.As(err, &ne) && ne.Timeout(), err)
			return
		case <-t.Context().Done():
			t.Fatal("a stuck stream does not end")
		case <-time.After(time.Millisecond):
			c.Send(b, 1400)
		}
	}
}

// bytesOnly opens a stream and sends raw bytes over it.
func sendRaw(t *testing.T, h *hub, b []byte) error {
	t.Helper()
	c, err := Dialer{}.Dial(t.Context(), h.addr, protocol.StreamAddr(1))
	require.NoError(t, err)
	defer c.raw.Conn.Close()
	_, err = c.tls.Write(b)
	require.NoError(t, err)
	require.NoError(t, c.raw.flush())
	select {
	case err := <-h.ends:
		return err
	case <-time.After(5 * time.Second):
		t.Fatal("the hub keeps a stream of garbage")
		return nil
	}
}

func TestGarbageEndsTheStream(t *testing.T) {
	h := newHub(t)
	h.handle = func(*Conn, []sock.Message) {}
	long := transport(unboundLimit+1, unboundLimit+1)
	for name, b := range map[string][]byte{
		"text":             []byte("GET / HTTP/1.1\r\n\r\n"),
		"not masked":       appendRunHeader(nil, 100, 100, false),
		"fragment":         {0x02, 0x83, 0, 0, 0, 0, 0, 1, 1},
		"extension":        {0xc2, 0x83, 0, 0, 0, 0, 0, 1, 1},
		"64 bit length":    {0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"length too wide":  {0x82, 0xfe, 0, 5, 0, 0, 0, 0},
		"text message":     {0x81, 0x83, 0, 0, 0, 0, 'a', 'b', 'c'},
		"empty":            {0x82, 0x80, 0, 0, 0, 0},
		"no datagram":      {0x82, 0x82, 0, 0, 0, 0, 0, 1},
		"segment zero":     {0x82, 0x83, 0, 0, 0, 0, 0, 0, 1},
		"segment too long": {0x82, 0x83, 0, 0, 0, 0, 0, 2, 1},
		"many segments":    append(appendRunHeader(nil, maxSegments+1, 1, true), make([]byte, maxSegments+1)...),
		"long control":     {0x89, 0xfe, 0, 200, 0, 0, 0, 0},
		"not bound yet":    append(appendRunHeader(nil, len(long), len(long), true), long...),
	} {
		require.ErrorIs(t, sendRaw(t, h, b), ErrFrame, name)
	}
	require.ErrorIs(t, sendRaw(t, h, []byte{0x88, 0x82, 0, 0, 0, 0, 3, 0xe8}), errEnded)
	eventually(t, "all gone", func() bool { return h.Open() == 0 })
}

func TestPingIsAnswered(t *testing.T) {
	h := newHub(t)
	c, err := Dialer{}.Dial(t.Context(), h.addr, protocol.StreamAddr(1))
	require.NoError(t, err)
	defer c.raw.Conn.Close()
	_, err = c.tls.Write([]byte{0x89, 0x83, 0, 0, 0, 0, 'a', 'b', 'c'})
	require.NoError(t, err)
	require.NoError(t, c.raw.flush())
	var got [5]byte
	_, err = io.ReadFull(c.tls, got[:])
	require.NoError(t, err)
	require.Equal(t, []byte{0x8a, 3, 'a', 'b', 'c'}, got[:])
}

func TestUnboundStreamsAreBounded(t *testing.T) {
	h := newHub(t)
	bind := false
	h.handle = func(c *Conn, _ []sock.Message) {
		if bind {
			c.SetBound()
		}
	}
	h.unboundFor, h.maxUnboundOfOne = 400*time.Millisecond, 2
	dial(t, h, Dialer{})
	a, _ := dial(t, h, Dialer{})
	dial(t, h, Dialer{}) // in place of the first
	require.ErrorIs(t, <-h.ends, errUnbound)
	require.Equal(t, 1, h.counted(RefusedBusy))
	require.NoError(t, a.Send(transport(100, 100), 100))
	require.ErrorIs(t, <-h.ends, errUnbound)
	require.ErrorIs(t, <-h.ends, errUnbound)
	require.Equal(t, 2, h.counted(ClosedUnbound))
	eventually(t, "room again", func() bool { return h.Open() == 0 })

	bind = true
	for range 4 { // bound ones do not count
		a, s := dial(t, h, Dialer{})
		require.NoError(t, a.Send(transport(100, 100), 100))
		eventually(t, "bound", s.Bound)
	}
	select {
	case err := <-h.ends:
		t.Fatal("a bound stream ended:", err)
	case <-time.After(2 * h.unboundFor):
	}
	require.Equal(t, 4, h.Open())
	require.Empty(t, h.sources)
}
