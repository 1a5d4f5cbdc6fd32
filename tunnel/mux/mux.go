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
	"time"

	"github.com/hashicorp/yamux"

	"causeway/protocol"
)

// headerTimeout bounds how long the opener of a stream may take to name it.
const headerTimeout = 10 * time.Second

// maxWrite keeps one stream from holding the connection: yamux writes a whole
// Write in one frame, and a large one starves its pings.
const maxWrite = 32 << 10

// Session is one multiplexed connection. Its methods may be called
// concurrently.
type Session struct{ y *yamux.Session }

// Client runs the dialling side over conn, which Session.Close closes.
func Client(conn net.Conn) (*Session, error) {
	y, err := yamux.Client(conn, config())
	if err != nil {
		return nil, fmt.Errorf("start mux: %w", err)
	}
	return &Session{y}, nil
}

// Server runs the accepting side over conn, which Session.Close closes.
func Server(conn net.Conn) (*Session, error) {
	y, err := yamux.Server(conn, config())
	if err != nil {
		return nil, fmt.Errorf("start mux: %w", err)
	}
	return &Session{y}, nil
}

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard               // errors reach the caller by the calls that fail
	c.KeepAliveInterval = 30 * time.Second // a long backstop: the tunnel's probes judge liveness
	c.ConnectionWriteTimeout = 60 * time.Second
	c.MaxStreamWindowSize = 4 << 20
	c.AcceptBacklog = 64
	return c
}

// Open opens a stream and sends its header.
func (s *Session) Open(ctx context.Context, h protocol.StreamHeader) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	st, err := s.y.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("open %s stream: %w", h.Kind, err)
	}
	h.Version = protocol.Version
	st.SetWriteDeadline(time.Now().Add(headerTimeout))
	if err := protocol.WriteFrame(st, h, protocol.MaxStreamHeader); err != nil {
		st.Close()
		return nil, fmt.Errorf("open %s stream: %w", h.Kind, err)
	}
	st.SetWriteDeadline(time.Time{})
	return stream{st}, nil
}

// Accept waits for the other side to open a stream and hands over the
// connection alone; the header is read by ReadHeader, so that one slow opener
// does not keep the others waiting. It returns io.EOF once the session ended.
func (s *Session) Accept(ctx context.Context) (net.Conn, error) {
	st, err := s.y.AcceptStreamWithContext(ctx)
	if errors.Is(err, yamux.ErrSessionShutdown) {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	return stream{st}, nil
}

// ReadHeader reads the header of an accepted stream.
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

// stream cuts writes to maxWrite.
type stream struct{ *yamux.Stream }

func (s stream) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k, err := s.Stream.Write(b[:min(len(b), maxWrite)])
		n += k
		if err != nil {
			return n, err
		}
		b = b[k:]
	}
	return n, nil
}
