package stream

import (
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what waits to be written. A queue that is long in time makes the
// TCP inside slow to learn of losses, one that is short in bytes drops bursts:
// so both have bounds, and the kernel's own queue is kept short as well (tune).
const (
	maxQueued  = 1 << 20               // bytes of data
	maxUrgent  = 128 << 10             // bytes of control
	maxAge     = 25 * time.Millisecond // of the oldest data, when more comes
	chunkSize  = maxRun + maxHeader
	minBatch   = 32 << 10 // bytes for one system call
	maxBatch   = 256 << 10
	slowFlush  = 4 * time.Millisecond
	notSentLow = 128 << 10 // bytes that the kernel may hold unsent
)

// chunk is some messages, whole, behind each other.
type chunk struct {
	b  []byte
	at time.Time // of the first one
}

var chunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, 0, chunkSize)} }}

func (c *chunk) free() {
	c.b = c.b[:0]
	chunks.Put(c)
}

// lane is a queue of chunks, oldest first.
type lane struct {
	chunks []*chunk
	bytes  int
}

// last returns a chunk with room for n bytes.
func (l *lane) last(now time.Time, n int) *chunk {
	if k := len(l.chunks); k > 0 && len(l.chunks[k-1].b)+n <= chunkSize {
		return l.chunks[k-1]
	}
	c := chunks.Get().(*chunk)
	c.at = now
	l.chunks = append(l.chunks, c)
	return c
}

func (l *lane) pop() *chunk {
	if len(l.chunks) == 0 {
		return nil
	}
	c := l.chunks[0]
	copy(l.chunks, l.chunks[1:]) // few
	l.chunks = l.chunks[:len(l.chunks)-1]
	l.bytes -= len(c.b)
	return c
}

// queue holds what waits to be written. Its methods may be called concurrently.
type queue struct {
	masked  bool
	dropped atomic.Uint64

	mu     sync.Mutex
	more   sync.Cond
	urgent lane
	data   lane
	closed bool
}

func newQueue(masked bool) *queue {
	q := &queue{masked: masked}
	q.more.L = &q.mu
	return q
}

// push adds one run of n bytes.
func (q *queue) push(now time.Time, urgent bool, segment, n int, pieces ...[]byte) error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	l := &q.data
	full := l.bytes+n > maxQueued || len(l.chunks) > 0 && now.Sub(l.chunks[0].at) > maxAge
	if urgent {
		l = &q.urgent
		full = l.bytes+n > maxUrgent
	}
	if full {
		q.mu.Unlock()
		q.dropped.Add(uint64((n + segment - 1) / segment))
		return ErrFull
	}
	c := l.last(now, n+maxHeader)
	before := len(c.b)
	c.b = appendRunHeader(c.b, n, segment, q.masked)
	for _, p := range pieces {
		c.b = append(c.b, p...)
	}
	l.bytes += len(c.b) - before
	q.mu.Unlock()
	q.more.Signal()
	return nil
}

// pong queues the answer to a WebSocket ping, if there is room.
func (q *queue) pong(payload []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.urgent.bytes+len(payload)+maxHeader > maxUrgent {
		return
	}
	c := q.urgent.last(time.Now(), len(payload)+maxHeader)
	before := len(c.b)
	c.b = append(appendHeader(c.b, opPong, len(payload), q.masked), payload...)
	q.urgent.bytes += len(c.b) - before
	q.more.Signal()
}

// pop takes the next chunk, the urgent ones first; the caller frees it. Nil:
// there is none, or, where it waits, the queue was closed.
func (q *queue) pop(wait bool) *chunk {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.closed {
			return nil
		}
		if c := q.urgent.pop(); c != nil {
			return c
		}
		if c := q.data.pop(); c != nil {
			return c
		}
		if !wait {
			return nil
		}
		q.more.Wait()
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	for _, l := range []*lane{&q.urgent, &q.data} {
		for _, c := range l.chunks {
			c.free()
		}
		*l = lane{}
	}
	q.mu.Unlock()
	q.more.Broadcast()
}
