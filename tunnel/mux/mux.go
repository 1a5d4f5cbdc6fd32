// Package mux carries the control channel's streams: yamux over one TCP
// connection, each stream opened with a small header that names its kind.
// What is inside a stream is its user's business.
package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"causeway/protocol"
)

// headerTimeout bounds how long the opener of a stream may take to name it.
const headerTimeout = 10 * time.Second

// maxWrite keeps one stream from holding the connection: yamux writes a whole
// Write in one frame, and a large one starves its pings.
const maxWrite = 32 << 10

// maxLeanWrite is the same where a hub holds thousands of sessions: each keeps a buffer of
// its largest frame.
const maxLeanWrite = 4 << 10

// closeTimeout is how long a stream that was closed on one side waits for the
// other.
const closeTimeout = 5 * time.Minute

// Session is one multiplexed connection. Its methods may be called
// concurrently.
type Session struct {
	y    *yamux.Session
	lean bool // its streams keep no buffers while nothing comes
}

// Client runs the dialling side over conn, which Session.Close closes.
func Client(conn net.Conn) (*Session, error) {
	y, err := yamux.Client(conn, config())
	if err != nil {
		return nil, fmt.Errorf("start mux: %w", err)
	}
	return &Session{y: y}, nil
}

// Server runs the accepting side over conn, which Session.Close closes.
func Server(conn net.Conn) (*Session, error) {
	y, err := yamux.Server(conn, config())
	if err != nil {
		return nil, fmt.Errorf("start mux: %w", err)
	}
	return &Session{y: y}, nil
}

// ServeControl is Server for a far side that may be hostile: it can make this one hold
// no more than some megabytes, and not for long after the session has ended. A session that
// is quiet holds little memory, so that a hub can have thousands.
// Streams that were closed here, but not there, are of no use after 2 s; what comes on them
// is dropped, and more than 512 KiB of it ends the session.
func ServeControl(conn net.Conn) (*Session, error) {
	c := config()
	c.AcceptBacklog, c.MaxStreamWindowSize, c.StreamCloseTimeout = controlBacklog, controlWindow, controlCloseTimeout
	y, err := yamux.Server(conn, c)
	if err != nil {
		return nil, fmt.Errorf("start mux: %w", err)
	}
	return &Session{y: y, lean: true}, nil
}

// controlCloseTimeout: yamux keeps a session with all that came on its streams for so
// long, as long as one of them was closed on one side alone.
const controlCloseTimeout = 2 * time.Second

// What comes on a stream after it was closed here is dropped every emptyEvery, so that it does not
// lie in memory for controlCloseTimeout. To drop it lets the far side send more: an honest one
// has heard of the close long before, and the session of one that sends more than
// maxAfterClose ends.
const (
	emptyEvery    = 100 * time.Millisecond
	maxAfterClose = 2 * controlWindow
)

// controlBacklog is how many streams of ServeControl may wait to be accepted, each with a window:
// beyond it they are reset, and nothing of them is kept.
const controlBacklog = 2

// controlWindow is what may come on one stream of ServeControl before it is read: the least
// that yamux has.
const controlWindow = 256 << 10

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard               // errors reach the caller by the calls that fail
	c.KeepAliveInterval = 30 * time.Second // a long backstop: the tunnel's probes judge liveness
	c.ConnectionWriteTimeout = 60 * time.Second
	c.MaxStreamWindowSize = 4 << 20
	c.AcceptBacklog = 16    // each may hold what a window takes
	c.StreamOpenTimeout = 0 // it would end the whole session for one stream that waits; Open has its context
	c.StreamCloseTimeout = closeTimeout
	return c
}

// Open opens a stream and sends its header. It waits while the other side has
// many streams to accept. The stream is a *Stream.
func (s *Session) Open(ctx context.Context, h protocol.StreamHeader) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open %s stream: %w", h.Kind, err)
	}
	type result struct {
		st  *Stream
		err error
	}
	done := make(chan result, 1)
	go func() {
		st, err := s.open(h)
		done <- result{st, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("open %s stream: %w", h.Kind, r.err)
		}
		return r.st, nil
	case <-ctx.Done():
		// yamux cannot be told to give up: the stream is closed once it opens,
		// or the session ends.
		go func() {
			if r := <-done; r.err == nil {
				r.st.Close()
			}
		}()
		return nil, fmt.Errorf("open %s stream: %w", h.Kind, ctx.Err())
	}
}

func (s *Session) open(h protocol.StreamHeader) (*Stream, error) {
	y, err := s.y.OpenStream()
	if err != nil {
		return nil, err
	}
	st := &Stream{Stream: y, session: s}
	h.Version = protocol.Version
	st.SetWriteDeadline(time.Now().Add(headerTimeout))
	if err := protocol.WriteFrame(st, h, protocol.MaxStreamHeader); err != nil {
		st.Close()
		return nil, err
	}
	st.SetWriteDeadline(time.Time{})
	return st, nil
}

// Accept waits for the other side to open a stream and hands over the
// connection alone; the header is read by ReadHeader, so that one slow opener
// does not keep the others waiting. It returns io.EOF once the session was
// closed, and what the connection said if it ended otherwise; a far side that
// closes while data is under way looks like a reset connection.
func (s *Session) Accept(ctx context.Context) (net.Conn, error) {
	st, err := s.y.AcceptStreamWithContext(ctx)
	if errors.Is(err, yamux.ErrSessionShutdown) {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	return &Stream{Stream: st, session: s}, nil
}

// ReadHeader reads the header of an accepted stream. After an error the stream
// is of no use and is the caller's to close.
func ReadHeader(c net.Conn) (h protocol.StreamHeader, err error) {
	c.SetReadDeadline(time.Now().Add(headerTimeout))
	err = protocol.ReadFrame(c, &h, protocol.MaxStreamHeader)
	c.SetReadDeadline(time.Time{})
	return h, err
}

// Close ends the session and its connection.
func (s *Session) Close() error { return s.y.Close() }

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.y.CloseChan() }

// Stream is one stream: a net.Conn that can also end its sending side alone.
type Stream struct {
	*yamux.Stream
	session *Session
	closed  atomic.Bool
	reading sync.Mutex // two reads at once can wait for each other in yamux when the session ends
}

// Read returns io.EOF when the other side has ended its sending side, and
// net.ErrClosed after Close.
func (s *Stream) Read(b []byte) (int, error) {
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	s.reading.Lock()
	n, err := s.Stream.Read(b)
	s.reading.Unlock()
	if s.session.lean {
		s.Shrink() // if all was read
	}
	if err != nil && s.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

// Write writes b in pieces of at most 32 KiB (ServeControl: 4), between which other
// streams have their turn.
func (s *Stream) Write(b []byte) (n int, err error) {
	piece := maxWrite
	if s.session.lean {
		piece = maxLeanWrite
	}
	for len(b) > 0 {
		k, err := s.Stream.Write(b[:min(len(b), piece)])
		n += k
		if err != nil {
			if errors.Is(err, yamux.ErrConnectionWriteTimeout) {
				// Half a frame may be on the wire, and the other side's reader
				// may hang for ever (hashicorp/yamux#142).
				go s.session.Close()
			}
			return n, err
		}
		b = b[k:]
	}
	return n, nil
}

// CloseWrite ends the sending side; the other side reads io.EOF. It has five
// minutes to end its own.
func (s *Stream) CloseWrite() error { return s.Stream.Close() }

// SetDeadline sets both deadlines; not after Close.
func (s *Stream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetReadDeadline does nothing after Close.
func (s *Stream) SetReadDeadline(t time.Time) error {
	if s.closed.Load() {
		return net.ErrClosed
	}
	return s.Stream.SetReadDeadline(t)
}

// Close ends both sides and wakes a waiting Read. yamux alone would leave it
// waiting for the other side.
func (s *Stream) Close() error {
	again := s.closed.Swap(true)
	err := s.Stream.Close()
	s.Stream.SetReadDeadline(time.Unix(1, 0))
	switch {
	case s.session.lean:
		if !again {
			go s.emptyClosed()
		}
	case s.session.y.IsClosed():
		s.empty()
	}
	return err
}

// emptyClosed drops what comes on a stream that was closed here, until the other side has closed
// it, its session ends or nobody waits for that any more. A far side that goes on sending does
// not heed the close, and its session ends.
func (s *Stream) emptyClosed() {
	t := time.NewTimer(controlCloseTimeout)
	defer t.Stop()
	look := time.NewTicker(emptyEvery)
	defer look.Stop()
	ended := s.session.Done()
	for n := 0; ; {
		select {
		case <-ended:
			ended = nil
			look.Reset(10 * time.Millisecond) // what was on its way may come until yamux' reader has ended
		case <-look.C:
		case <-t.C:
			return
		}
		k, over := s.empty()
		if over {
			return
		}
		if k == 0 { // not each time: what comes fast would have a new buffer grow
			s.Shrink()
		}
		if n += k; n > maxAfterClose {
			s.session.Close()
		}
	}
}

// empty drops what was not read, until that is more than maxAfterClose, and returns how many bytes
// it was. Over: nothing can come any more. With the session closed nothing more comes, but yamux' timer keeps the stream, and with
// it as much as a window takes, until it has run down.
func (s *Stream) empty() (n int, over bool) {
	s.reading.Lock() // a read that waited is awake: Close has seen to it
	defer s.reading.Unlock()
	var b [4096]byte
	for {
		k, err := s.Stream.Read(b[:])
		if n += k; n > maxAfterClose {
			return n, false
		}
		if err != nil && k == 0 { // bytes may come with one
			over = !errors.Is(err, yamux.ErrTimeout)
			if over {
				s.Shrink()
			}
			return n, over
		}
	}
}
