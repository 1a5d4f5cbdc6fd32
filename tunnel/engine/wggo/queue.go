package wggo

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"causeway/tunnel/underlay"
)

// maxChunks bounds the queue to 4 MB: some 2,900 full-size datagrams.
const maxChunks = 64

const chunkSize = 64 << 10

// group is a run of datagrams inside a chunk.
type group struct {
	ep       *endpoint
	off, end int
	segment  int
}

type chunk struct {
	used   int
	groups []group
	buf    [chunkSize]byte
}

// queue carries datagrams from the readers of the underlay to the device's
// receive function. Readers never wait: what does not fit is dropped. Under
// light load a chunk holds one datagram, under heavy load a chunk fills while
// the device works on the one before.
type queue struct {
	mu      sync.Mutex
	more    sync.Cond
	full    []*chunk // oldest first; readers append to the last one
	free    []*chunk // last used first: its memory is warm
	made    int
	closed  bool
	dropped atomic.Uint64 // datagrams
}

func newQueue() *queue {
	q := &queue{closed: true}
	q.more.L = &q.mu
	return q
}

// push adds a run of datagrams for the device. flush has to follow.
func (q *queue) push(ep *endpoint, buf []byte, segment int) {
	if len(buf) == 0 || len(buf) > chunkSize || segment <= 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	var c *chunk
	if n := len(q.full); n > 0 && chunkSize-q.full[n-1].used >= len(buf) {
		c = q.full[n-1]
	} else if c = q.takeFree(); c != nil {
		q.full = append(q.full, c)
	} else {
		q.dropped.Add(uint64((len(buf) + segment - 1) / segment))
		return
	}
	end := c.used + copy(c.buf[c.used:], buf)
	c.groups = append(c.groups, group{ep, c.used, end, segment})
	c.used = end
}

func (q *queue) takeFree() *chunk {
	if n := len(q.free); n > 0 {
		c := q.free[n-1]
		q.free = q.free[:n-1]
		return c
	}
	if q.made == maxChunks {
		return nil
	}
	q.made++
	return new(chunk)
}

// flush lets the device see what was pushed.
func (q *queue) flush() { q.more.Signal() }

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.more.Broadcast()
}

// open makes a receive function; the device waits for the one before to end.
func (q *queue) open() conn.ReceiveFunc {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = false
	return (&receive{q: q}).datagrams
}

// next gives back a finished chunk and waits for the next one. It returns nil
// when the queue is closed.
func (q *queue) next(done *chunk) *chunk {
	q.mu.Lock()
	defer q.mu.Unlock()
	if done != nil {
		done.used, done.groups = 0, done.groups[:0]
		q.free = append(q.free, done)
	}
	for len(q.full) == 0 && !q.closed {
		q.more.Wait()
	}
	if q.closed {
		return nil
	}
	c := q.full[0]
	n := copy(q.full, q.full[1:])
	q.full[n] = nil
	q.full = q.full[:n]
	return c
}

// receive is the state of one receive function: the chunk it is in.
type receive struct {
	q     *queue
	c     *chunk
	group int
	off   int // inside the group
}

// datagrams is the conn.ReceiveFunc. It copies as many datagrams as are there
// and fit; after close it returns net.ErrClosed.
func (r *receive) datagrams(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	if r.c == nil || r.group == len(r.c.groups) {
		r.c, r.group, r.off = r.q.next(r.c), 0, 0
		if r.c == nil {
			return 0, net.ErrClosed
		}
	}
	n := 0
	for n < len(packets) && r.group < len(r.c.groups) {
		g := r.c.groups[r.group]
		from := g.off + r.off
		to := min(from+g.segment, g.end)
		sizes[n] = copy(packets[n], r.c.buf[from:to])
		eps[n] = g.ep
		n++
		if r.off += g.segment; g.off+r.off >= g.end {
			r.group, r.off = r.group+1, 0
		}
	}
	return n, nil
}

// reader is the receiver of one reader of the underlay.
type reader struct{ e *Engine }

var _ underlay.Receiver = (*reader)(nil)

// anonymous is the endpoint of datagrams that come from nobody in particular,
// which happens in the underlay's plain mode alone. Nothing can be sent to it.
var anonymous = newEndpoint(0)

// Receive queues a run of datagrams. Handshake messages are looked at: they may cross with
// others (see cross), and an initiation may need its peer to be made first.
func (r *reader) Receive(from underlay.Source, buf []byte, segment int) {
	if segment <= 0 {
		return
	}
	q := r.e.bind.queue
	if from.Peer == 0 {
		q.push(anonymous, buf, segment)
		return
	}
	p := r.e.table.Load().byNumber[from.Peer]
	if p == nil {
		return
	}
	start := 0
	for off := 0; off < len(buf); off += segment {
		m := buf[off:min(off+segment, len(buf))]
		kind := messageType(m)
		if kind != device.MessageInitiationType && kind != device.MessageResponseType {
			continue
		}
		if start < off {
			q.push(p.ep, buf[start:off], segment)
		}
		start = off + len(m)
		switch v := p.cross.comes(time.Now(), m, r.e.cfg.Number < p.ep.number); {
		case v == renew:
			r.ask(wakeRequest{number: from.Peer, anew: true})
		case v == ignore:
		case p.present.Load() || kind == device.MessageResponseType:
			q.push(p.ep, m, len(m))
		default:
			r.ask(wakeRequest{number: from.Peer, datagram: append([]byte(nil), m...)})
		}
	}
	if start < len(buf) {
		q.push(p.ep, buf[start:], segment)
	}
}

// ask asks the engine's own goroutine, if that is not too busy.
func (r *reader) ask(w wakeRequest) {
	select {
	case r.e.wake <- w:
	default:
		r.e.bind.queue.dropped.Add(1)
	}
}

// Flush hands what was gathered to the device.
func (r *reader) Flush() { r.e.bind.queue.flush() }
