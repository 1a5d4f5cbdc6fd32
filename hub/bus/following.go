package bus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats-server/v2/server"
)

// maxReaderSubs is how many subscriptions one connection of a reader has.
const maxReaderSubs = 256

// following is what one reader follows by the fan-out. Its methods may be called concurrently,
// but take and pump by one goroutine each.
type following struct {
	nowhere string // a subject of his own on which nothing comes
	headers bool   // he takes them
	end     func() // cuts him off; it does not wait
	slow    func() // the same, because he is too far behind
	wake    chan struct{}

	mu       sync.Mutex
	sids     map[string]*follow // those that the server has; nil: the server's alone
	queue    []delivery
	bytes    int      // of the queue, and of what is being written
	cut      bool     // nothing comes any more
	released []string // sids that have had all that they wanted
}

// follow is one subscription.
type follow struct {
	pattern   string
	had, most int // messages; most 0: without end
}

// delivery is a message for one subscription.
type delivery struct {
	*news
	sid string
}

// weight is what a delivery counts for, in bytes: what it is in memory and on the wire, as if it were
// this reader's alone.
func (d delivery) weight() int {
	const other = 64
	return len(d.body) + len(d.subject) + len(d.reply) + len(d.sid) + other
}

// newFollowing returns nil for who asks for what only the server says: then it has all
// subscriptions.
func newFollowing(inbox string, connect []byte, end, slow func()) *following {
	_, arg, _ := bytes.Cut(connect, []byte(" "))
	var o connectOptions
	if json.Unmarshal(arg, &o) != nil || o.Verbose || o.Pedantic {
		return nil
	}
	return &following{nowhere: inbox + "followed", headers: o.Headers, end: end, slow: slow, wake: make(chan struct{}, 1), sids: map[string]*follow{}}
}

// followed reports whether a pattern is below one of Followed, so that whoever may follow these
// may follow it.
func followed(pattern string) bool {
	for _, f := range Followed {
		if strings.HasPrefix(pattern, strings.TrimSuffix(f, ">")) {
			return server.IsValidSubject(pattern)
		}
	}
	return false
}

// take has a line of the reader, and returns what the server is to have of it; nil: nothing. A subscription to
// what the fan-out has is one to nowhere there: it counts, and nothing comes.
func (r *following) take(w []string, line []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := line
	switch {
	case len(w) >= 3 && w[0] == "SUB":
		sid := w[len(w)-1]
		if _, known := r.sids[sid]; known || len(r.sids) >= maxReaderSubs {
			break
		}
		if len(w) > 3 || !followed(w[1]) {
			if len(w) <= 4 {
				r.sids[sid] = nil
			}
			break
		}
		r.sids[sid] = &follow{pattern: w[1]}
		out = fmt.Appendf(nil, "SUB %s %s\r\n", r.nowhere, sid)
	case len(w) == 2 && w[0] == "UNSUB":
		delete(r.sids, w[1])
	case len(w) == 3 && w[0] == "UNSUB":
		f := r.sids[w[1]]
		if f == nil {
			break
		}
		if most, err := strconv.Atoi(w[2]); err == nil && most > f.had {
			f.most = most
			out = nil
			break
		}
		delete(r.sids, w[1])
		out = fmt.Appendf(nil, "UNSUB %s\r\n", w[1])
	}
	if len(r.released) > 0 {
		var first []byte
		for _, sid := range r.released {
			first = fmt.Appendf(first, "UNSUB %s\r\n", sid)
		}
		r.released = nil
		out = append(first, out...)
	}
	return out
}

// offer puts a message into the queue, once for each subscription that it is for. It never
// blocks: a reader with a full queue is cut off.
func (r *following) offer(n *news) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut {
		return
	}
	was := len(r.queue)
	for sid, f := range r.sids {
		if f == nil || !server.SubjectMatchesFilter(n.subject, f.pattern) {
			continue
		}
		d := delivery{n, sid}
		if r.bytes+d.weight() > maxPending {
			r.queue, r.cut = nil, true
			r.slow()
			return
		}
		r.queue = append(r.queue, d)
		r.bytes += d.weight()
		if f.had++; f.most > 0 && f.had >= f.most {
			delete(r.sids, sid)
			r.released = append(r.released, sid)
		}
	}
	if len(r.queue) > was {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// next takes the oldest message out of the queue. Its bytes count until done.
func (r *following) next() (delivery, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		return delivery{}, false
	}
	d := r.queue[0]
	r.queue[0] = delivery{}
	if r.queue = r.queue[1:]; len(r.queue) == 0 {
		r.queue = nil
	}
	return d, true
}

func (r *following) done(d delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes -= d.weight()
}

// behind returns how many bytes wait.
func (r *following) behind() int {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// writeTo writes the message as the server would.
func (d delivery) writeTo(w io.Writer, headers bool) error {
	line := fmt.Appendf(nil, "%s %s", d.subject, d.sid)
	if d.reply != "" {
		line = fmt.Appendf(line, " %s", d.reply)
	}
	body := d.body
	if d.header > 0 && headers {
		line = fmt.Appendf(append([]byte("HMSG "), line...), " %d %d\r\n", d.header, len(body))
	} else {
		body = body[d.header:]
		line = fmt.Appendf(append([]byte("MSG "), line...), " %d\r\n", len(body))
	}
	for _, b := range [][]byte{line, body, []byte("\r\n")} {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// pump writes to the reader what the server sends, of down, and what he follows, each message
// whole, until either cannot go on; then it calls cancel, which ends ctx and closes both.
func (r *following) pump(ctx context.Context, cancel func(), w io.Writer, down *bufio.Reader) error {
	var mu sync.Mutex
	bw := bufio.NewWriterSize(portions{w}, downBuffer)
	news := make(chan error, 1)
	go func() {
		err := r.pumpNews(ctx, &mu, bw)
		cancel()
		news <- err
	}()
	err := pumpServer(&mu, bw, down)
	cancel()
	if first := <-news; first != nil && !errors.Is(first, net.ErrClosed) {
		return first
	}
	return err
}

// pumpNews writes what the reader follows until ctx ends (nil) or that fails.
func (r *following) pumpNews(ctx context.Context, mu *sync.Mutex, bw *bufio.Writer) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		for ctx.Err() == nil {
			d, ok := r.next()
			if !ok {
				break
			}
			mu.Lock()
			err := d.writeTo(bw, r.headers)
			mu.Unlock()
			if r.done(d); err != nil {
				return err
			}
		}
		mu.Lock()
		err := bw.Flush()
		mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// pumpServer writes what the server sends until that fails.
func pumpServer(mu *sync.Mutex, bw *bufio.Writer, down *bufio.Reader) error {
	for {
		line, err := readLine(down)
		if err != nil {
			return err
		}
		n, size, err := parseMsg(words(line))
		if err != nil {
			return err
		}
		mu.Lock()
		_, err = bw.Write(line)
		if err == nil && n != nil {
			_, err = io.CopyN(bw, down, int64(size)+2)
		}
		if err == nil && down.Buffered() == 0 {
			err = bw.Flush()
		}
		mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// portions writes at most downBuffer at once, each of which has its time (deadlineWriter).
type portions struct{ io.Writer }

func (p portions) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k, err := p.Writer.Write(b[:min(len(b), downBuffer)])
		if n += k; err != nil {
			return n, err
		}
		b = b[k:]
	}
	return n, nil
}
