// Package stream carries datagrams where UDP does not pass: over a WebSocket
// in TLS on a hub's HTTPS port, through load balancers and HTTP proxies. It is
// no reliable channel: what does not fit a short queue is dropped, as a link
// would do it, for the TCP inside the tunnel has to find its rate.
//
//	agent: Dialer.Dial → Conn        hub: Server (an http.Handler) → Conn
//	Conn.Run hands what arrives to a function; Conn.Send never blocks
//
// Nothing here authenticates anybody. TLS ends wherever an operator or a
// company's proxy ends it; probes prove who is at the other end, and WireGuard
// encrypts. Until its owner calls SetBound a Conn takes small messages alone.
package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"causeway/protocol"
	"causeway/tunnel/underlay/sock"
)

// Timing of a connection. Agents probe a stream every second or so.
const (
	readTimeout  = 30 * time.Second
	writeTimeout = 10 * time.Second
)

// Errors that end a Conn.
var (
	// ErrFull says that Send dropped what it was given.
	ErrFull   = errors.New("stream: the queue is full")
	ErrClosed = errors.New("stream: closed")
	// ErrFrame wraps what is wrong with a message that was received.
	ErrFrame = errors.New("stream: bad message")

	errEnded = errors.New("stream: the other side has closed it")
)

// Conn is a stream that is connected. Send and Close may be called concurrently.
type Conn struct {
	tls    *tls.Conn
	raw    *Raw
	addr   netip.AddrPort
	remote netip.AddrPort
	client bool
	queue  *queue
	in     reader
	bound  atomic.Bool

	readTimeout, writeTimeout time.Duration

	// onBound is told, once, that the stream is bound; may be nil.
	onBound func()

	once  sync.Once
	cause error // before closed is
	ended chan struct{}
}

func newConn(t *tls.Conn, raw *Raw, addr netip.AddrPort, client bool, initial []byte) *Conn {
	c := &Conn{tls: t, raw: raw, addr: addr, client: client, queue: newQueue(client), ended: make(chan struct{}),
		readTimeout: readTimeout, writeTimeout: writeTimeout}
	c.remote, _ = netip.ParseAddrPort(t.RemoteAddr().String())
	c.remote = netip.AddrPortFrom(c.remote.Addr().Unmap(), c.remote.Port())
	c.in = reader{masked: !client, from: addr, limit: unboundLimit, buf: append(make([]byte, 0, max(smallBuffer, len(initial))), initial...)}
	raw.buffer()
	tune(raw)
	return c
}

// Addr is what the stream is called in this process.
func (c *Conn) Addr() netip.AddrPort { return c.addr }

// Remote is the address of the socket at the other end, perhaps a proxy's.
func (c *Conn) Remote() netip.AddrPort { return c.remote }

// SetBound takes messages of any size from now on. Call it from Run's function.
func (c *Conn) SetBound() {
	if c.bound.CompareAndSwap(false, true) {
		c.in.limit = maxRun
		if c.onBound != nil {
			c.onBound()
		}
	}
}

// Bound reports whether SetBound was called.
func (c *Conn) Bound() bool { return c.bound.Load() }

// Send queues datagrams that lie behind each other in b, each segment bytes
// long, the last one possibly shorter. It keeps nothing of b and never blocks:
// what does not fit is dropped with ErrFull.
func (c *Conn) Send(b []byte, segment int) error {
	if segment <= 0 || segment > len(b) {
		segment = len(b)
	}
	most := min(maxSegments, max(maxRun/max(segment, 1), 1)) * segment
	var err error
	for len(b) > 0 {
		n := min(most, len(b))
		if n > maxRun {
			return fmt.Errorf("stream: a datagram of %d bytes is too long", n)
		}
		if e := c.queue.push(time.Now(), urgent(b), min(segment, n), n, b[:n]); e != nil {
			err = e
		}
		b = b[n:]
	}
	return err
}

// SendPieces is Send for one run of at most n bytes in several pieces.
func (c *Conn) SendPieces(pieces [][]byte, n, segment int) error {
	if n == 0 || len(pieces) == 0 {
		return nil
	}
	if n > maxRun || segment <= 0 || (n+segment-1)/segment > maxSegments {
		return fmt.Errorf("stream: a run of %d bytes in datagrams of %d is too long", n, segment)
	}
	return c.queue.push(time.Now(), urgent(pieces[0]), min(segment, n), n, pieces...)
}

// urgent reports whether datagrams go before others: probes, handshakes and
// what is between a node and its hub.
func urgent(b []byte) bool {
	return len(b) >= 4 && (protocol.MessageType(b[0]) != protocol.MessageTransport || protocol.MessageNumber(b) == 0)
}

// Dropped counts the datagrams that Send dropped.
func (c *Conn) Dropped() uint64 { return c.queue.dropped.Load() }

// Close ends the stream; Run then returns cause.
func (c *Conn) Close(cause error) {
	c.once.Do(func() {
		c.cause = cause
		close(c.ended)
		c.queue.close()
		// The socket itself: TLS would wait to say goodbye.
		c.raw.Conn.Close()
	})
}

// Run hands what arrives to handle until the stream ends, and returns why. The
// messages and their data are handle's until it returns; it may write to them.
// Call it once; it owns every goroutine.
func (c *Conn) Run(ctx context.Context, handle func([]sock.Message)) error {
	stop := context.AfterFunc(ctx, func() { c.Close(ErrClosed) })
	defer stop()
	written := make(chan struct{})
	go func() {
		defer close(written)
		if err := c.write(); err != nil {
			c.Close(err)
		}
	}()
	err := c.read(handle)
	c.Close(err)
	<-written
	c.in = reader{}
	return c.cause
}

func (c *Conn) read(handle func([]sock.Message)) error {
	var deadline time.Time
	for {
		if now := time.Now(); deadline.Sub(now) < c.readTimeout*9/10 {
			deadline = now.Add(c.readTimeout)
			if err := c.raw.SetReadDeadline(deadline); err != nil {
				return fmt.Errorf("stream: %w", err)
			}
		}
		messages, err := c.in.next(c.tls, c.raw, c.control)
		if err != nil {
			return err
		}
		handle(messages)
	}
}

// control answers a WebSocket ping, which something between may send.
func (c *Conn) control(op byte, payload []byte) error {
	switch op {
	case opClose:
		return errEnded
	case opPing:
		c.queue.pong(payload)
	}
	return nil
}

// write writes what is queued until the stream is closed. Several TLS records
// go out in one system call, fewer where the connection is slow: what is
// written can be overtaken no more.
func (c *Conn) write() error {
	batch := minBatch
	for {
		chunk := c.queue.pop(true)
		if chunk == nil {
			return nil
		}
		for n := 0; chunk != nil; {
			n += len(chunk.b)
			_, err := c.tls.Write(chunk.b)
			chunk.free()
			if err != nil {
				return fmt.Errorf("stream: %w", err)
			}
			if n >= batch {
				break
			}
			chunk = c.queue.pop(false)
		}
		start := time.Now()
		c.raw.SetWriteDeadline(start.Add(c.writeTimeout))
		if err := c.raw.flush(); err != nil {
			return fmt.Errorf("stream: %w", err)
		}
		switch d := time.Since(start); {
		case d > slowFlush:
			batch = max(batch/2, minBatch)
		case d < slowFlush/4:
			batch = min(batch*2, maxBatch)
		}
	}
}
