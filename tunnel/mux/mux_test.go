package mux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"causeway/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// sessions returns both ends of a session over TCP on loopback, and the
// connection of the first.
func sessions(t *testing.T) (client, server *Session, conn net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	conn, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	far, err := l.Accept()
	require.NoError(t, err)
	client, err = Client(conn)
	require.NoError(t, err)
	server, err = Server(far)
	require.NoError(t, err)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server, conn
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, from, to *Session, h protocol.StreamHeader) (near, far net.Conn) {
	t.Helper()
	ctx := testContext(t)
	near, err := from.Open(ctx, h)
	require.NoError(t, err)
	far, err = to.Accept(ctx)
	require.NoError(t, err)
	got, err := ReadHeader(far)
	require.NoError(t, err)
	h.Version = protocol.Version
	require.Equal(t, h, got)
	return near, far
}

func TestEitherSideOpens(t *testing.T) {
	client, server, _ := sessions(t)
	open(t, client, server, protocol.StreamHeader{Kind: protocol.StreamControl})
	near, far := open(t, server, client, protocol.StreamHeader{Kind: protocol.StreamDebug})
	_, err := near.Write([]byte("there"))
	require.NoError(t, err)
	b := make([]byte, 5)
	_, err = io.ReadFull(far, b)
	require.NoError(t, err)
	assert.Equal(t, "there", string(b))
}

// Many streams at once, each larger than a window, arrive whole.
func TestManyStreams(t *testing.T) {
	client, server, _ := sessions(t)
	ctx := testContext(t)
	const n, size = 100, 300 << 10 // more than the accept backlog
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for range n {
			c, err := server.Accept(ctx)
			if !assert.NoError(t, err) {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if _, err := ReadHeader(c); assert.NoError(t, err) {
					io.Copy(c, c)
				}
			})
		}
	})
	for i := range n {
		wg.Go(func() {
			c, err := client.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamDebug})
			if !assert.NoError(t, err) {
				return
			}
			defer c.Close()
			data := bytes.Repeat([]byte{byte(i)}, size)
			go func() {
				c.Write(data)
				c.(*Stream).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(data, got))
		})
	}
}

func TestHalfClose(t *testing.T) {
	client, server, _ := sessions(t)
	near, far := open(t, client, server, protocol.StreamHeader{Kind: protocol.StreamDebug})
	_, err := near.Write([]byte("question"))
	require.NoError(t, err)
	require.NoError(t, near.(*Stream).CloseWrite())
	b, err := io.ReadAll(far)
	require.NoError(t, err)
	assert.Equal(t, "question", string(b))
	_, err = far.Write([]byte("answer"))
	require.NoError(t, err)
	require.NoError(t, far.Close())
	b, err = io.ReadAll(near)
	require.NoError(t, err)
	assert.Equal(t, "answer", string(b))
	_, err = near.Write([]byte("more"))
	assert.Error(t, err, "the sending side has ended")
}

func TestCloseWakesRead(t *testing.T) {
	client, server, _ := sessions(t)
	near, _ := open(t, client, server, protocol.StreamHeader{Kind: protocol.StreamDebug})
	got := make(chan error, 1)
	go func() {
		_, err := near.Read(make([]byte, 1))
		got <- err
	}()
	require.NoError(t, near.Close())
	select {
	case err := <-got:
		assert.ErrorIs(t, err, net.ErrClosed)
	case <-time.After(patience):
		require.Fail(t, "read still waits")
	}
	_, err := near.Read(make([]byte, 1))
	assert.ErrorIs(t, err, net.ErrClosed)
	assert.ErrorIs(t, near.SetReadDeadline(time.Time{}), net.ErrClosed)
	assert.NoError(t, near.Close())
}

func TestDeadline(t *testing.T) {
	client, server, _ := sessions(t)
	near, far := open(t, client, server, protocol.StreamHeader{Kind: protocol.StreamDebug})
	require.NoError(t, near.SetDeadline(time.Now().Add(time.Millisecond)))
	_, err := near.Read(make([]byte, 1))
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	assert.True(t, ne.Timeout())
	require.NoError(t, near.SetDeadline(time.Time{}))
	_, err = far.Write([]byte("x"))
	require.NoError(t, err)
	_, err = near.Read(make([]byte, 1))
	assert.NoError(t, err)
}

// A stream whose opener never names it keeps nobody else waiting.
func TestSlowOpener(t *testing.T) {
	client, server, _ := sessions(t)
	slow, err := client.y.OpenStream()
	require.NoError(t, err)
	waiting, err := server.Accept(testContext(t))
	require.NoError(t, err)
	got := make(chan error, 1)
	go func() {
		_, err := ReadHeader(waiting)
		got <- err
	}()
	open(t, client, server, protocol.StreamHeader{Kind: protocol.StreamControl})
	require.NoError(t, slow.Close())
	select {
	case err := <-got:
		assert.ErrorIs(t, err, io.EOF)
	case <-time.After(patience):
		require.Fail(t, "header still waited for")
	}
}

// Threat model: a peer that has authenticated and misbehaves.
func TestBadHeaders(t *testing.T) {
	client, server, _ := sessions(t)
	frame := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	for name, b := range map[string][]byte{
		"too large":        binary.BigEndian.AppendUint32(nil, protocol.MaxStreamHeader+1),
		"huge":             binary.BigEndian.AppendUint32(nil, 1<<32-1),
		"cut in length":    {0, 0},
		"cut in body":      binary.BigEndian.AppendUint32(nil, 10),
		"no json":          frame("control"),
		"no json object":   frame(`"control"`),
		"empty":            frame(""),
		"wrong type":       frame(`{"v":1,"kind":7}`),
		"too large inside": binary.BigEndian.AppendUint32(nil, 1<<31),
	} {
		st, err := client.y.OpenStream()
		require.NoError(t, err)
		_, err = st.Write(b)
		require.NoError(t, err)
		require.NoError(t, st.Close())
		far, err := server.Accept(testContext(t))
		require.NoError(t, err)
		_, err = ReadHeader(far)
		assert.Error(t, err, name)
		far.Close()
	}
	_, err := client.Open(testContext(t), protocol.StreamHeader{Kind: protocol.StreamKind(strings.Repeat("x", protocol.MaxStreamHeader))})
	assert.ErrorIs(t, err, protocol.ErrFrameTooLarge)
	far, err := server.Accept(testContext(t)) // the one that could not be named
	require.NoError(t, err)
	_, err = ReadHeader(far)
	assert.ErrorIs(t, err, io.EOF)
	open(t, client, server, protocol.StreamHeader{Kind: protocol.StreamControl}) // the session lives
}

// Open ends with its context while the other side accepts nothing, and the
// session lives on.
func TestOpenEnds(t *testing.T) {
	client, server, _ := sessions(t)
	for range config().AcceptBacklog {
		_, err := client.Open(testContext(t), protocol.StreamHeader{Kind: protocol.StreamDebug})
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := client.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamDebug})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	for range config().AcceptBacklog + 1 {
		_, err := server.Accept(testContext(t))
		require.NoError(t, err)
	}
	open(t, client, server, protocol.StreamHeader{Kind: protocol.StreamControl})
}

func TestAcceptEnds(t *testing.T) {
	_, server, _ := sessions(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := server.Accept(ctx)
	assert.ErrorIs(t, err, context.Canceled)
	_, err = server.Open(ctx, protocol.StreamHeader{})
	assert.ErrorIs(t, err, context.Canceled)
}

// When the session dies every call on it ends.
func TestSessionDeath(t *testing.T) {
	for name, kill := range map[string]func(client, server *Session, conn net.Conn){
		"closed here":     func(c, _ *Session, _ net.Conn) { c.Close() },
		"closed there":    func(_, s *Session, _ net.Conn) { s.Close() },
		"connection lost": func(_, _ *Session, conn net.Conn) { conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			client, server, conn := sessions(t)
			near, far := open(t, client, server, protocol.StreamHeader{Kind: protocol.StreamControl})
			ended := make(chan error, 4)
			for _, c := range []net.Conn{near, far} {
				go func() {
					_, err := c.Read(make([]byte, 1))
					ended <- err
				}()
			}
			for _, s := range []*Session{client, server} {
				go func() {
					_, err := s.Accept(context.Background())
					ended <- err
				}()
			}
			kill(client, server, conn)
			for range 4 {
				select {
				case err := <-ended:
					assert.Error(t, err)
				case <-time.After(patience):
					require.Fail(t, "a call still waits")
				}
			}
			for _, s := range []*Session{client, server} {
				select {
				case <-s.Done():
				case <-time.After(patience):
					require.Fail(t, "session is not done")
				}
			}
			_, err := client.Open(context.Background(), protocol.StreamHeader{Kind: protocol.StreamControl})
			assert.Error(t, err)
			_, err = near.Write([]byte("x"))
			assert.Error(t, err)
			_, err = server.Accept(context.Background())
			assert.Error(t, err)
			_, err = client.Accept(context.Background())
			if name == "closed here" {
				assert.ErrorIs(t, err, io.EOF)
			} else {
				assert.Error(t, err)
			}
		})
	}
}

// Nothing is kept of what came on a stream once its session has ended, whether it was closed
// before or after: yamux' timer of a stream that one side closed would keep all.
func TestEndedSessionKeepsNothing(t *testing.T) {
	for _, first := range []string{"stream", "session"} {
		t.Run(first, func(t *testing.T) {
			a, b := net.Pipe()
			client, err := Client(a)
			require.NoError(t, err)
			defer client.Close()
			hub, err := ServeControl(b)
			require.NoError(t, err)
			defer hub.Close()
			out, err := client.Open(t.Context(), protocol.StreamHeader{Kind: protocol.StreamNATS})
			require.NoError(t, err)
			in, err := hub.Accept(t.Context())
			require.NoError(t, err)
			_, err = ReadHeader(in)
			require.NoError(t, err)
			_, err = out.Write(make([]byte, 200<<10)) // all of it is at the hub then
			require.NoError(t, err)
			if first == "stream" {
				require.NoError(t, in.Close())
				hub.Close()
			} else {
				hub.Close()
				in.Close()
			}
			require.Eventually(t, func() bool {
				return takeByte(in) != nil
			}, 10*time.Second, time.Millisecond*10, "a byte each time would be there")
		})
	}
}

// takeByte reads a byte that came on a closed stream; an error: there is none.
func takeByte(c net.Conn) error {
	s := c.(*Stream)
	s.reading.Lock()
	defer s.reading.Unlock()
	_, err := s.Stream.Read(make([]byte, 1))
	return err
}

// What comes on a stream that was closed at the hub is not kept while the session goes on; a far
// side that sends on and on loses its session.
func TestClosedStreamKeepsNothing(t *testing.T) {
	a, b := net.Pipe()
	client, err := Client(a)
	require.NoError(t, err)
	defer client.Close()
	hub, err := ServeControl(b)
	require.NoError(t, err)
	defer hub.Close()
	open := func() (out, in net.Conn) {
		out, err := client.Open(t.Context(), protocol.StreamHeader{Kind: protocol.StreamNATS})
		require.NoError(t, err)
		in, err = hub.Accept(t.Context())
		require.NoError(t, err)
		_, err = ReadHeader(in)
		require.NoError(t, err)
		return out, in
	}
	out, in := open()
	require.NoError(t, in.Close())
	_, err = out.Write(make([]byte, 200<<10)) // less than a window: it waits for nobody
	require.NoError(t, err)
	begin := time.Now()
	require.Eventually(t, func() bool {
		return errors.Is(takeByte(in), yamux.ErrTimeout) // nothing is there, and more may come
	}, controlCloseTimeout, 10*time.Millisecond, "a byte each time would be there")
	require.Less(t, time.Since(begin), controlCloseTimeout)
	select {
	case <-hub.Done():
		t.Fatal("the session of an honest far side ended")
	default:
	}

	out, in = open()
	require.NoError(t, in.Close())
	sent := 0
	for piece := make([]byte, 32<<10); err == nil && sent <= 2*maxAfterClose; sent += len(piece) {
		_, err = out.Write(piece)
	}
	require.Error(t, err)
	select {
	case <-hub.Done():
	case <-time.After(controlCloseTimeout):
		t.Fatal("the session goes on")
	}
}

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/LIMITS.md")
	require.NoError(t, err)
	require.Contains(t, string(b), fmt.Sprintf("| a stream that the hub has closed | each stream | %d KiB after that,", maxAfterClose>>10))
}
