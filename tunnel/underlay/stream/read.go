package stream

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"causeway/tunnel/underlay/sock"
)

// Bounds of what is received and not handled yet.
const (
	smallBuffer = 4 << 10
	bigBuffer   = 256 << 10
	record      = 16 << 10 // the most that one TLS record brings
	maxMessages = 1024     // in one batch
)

// reader cuts what a connection brings into messages. It holds little until
// much arrives.
type reader struct {
	masked bool // what is received is from a client
	from   netip.AddrPort
	limit  int // of a run's bytes

	buf      []byte // received; handled up to done
	done     int
	messages []sock.Message
}

// more is the part of Raw that tells whether reading on would wait.
type more interface{ wholeRecord() bool }

// next waits for messages and returns all that is there, up to a batch. They
// are good until the next call. control gets WebSocket's own messages.
func (r *reader) next(from io.Reader, beneath more, control func(op byte, payload []byte) error) ([]sock.Message, error) {
	r.messages = r.messages[:0]
	for {
		if err := r.parse(control); err != nil {
			return nil, err
		}
		if len(r.messages) > 0 {
			return r.messages, nil
		}
		if err := r.fill(from, beneath); err != nil {
			return nil, err
		}
	}
}

// fill reads what there is behind what is not handled yet.
func (r *reader) fill(from io.Reader, beneath more) error {
	if r.done > 0 {
		r.buf = r.buf[:copy(r.buf, r.buf[r.done:])]
		r.done = 0
	}
	for first := true; first || cap(r.buf)-len(r.buf) >= record && beneath.wholeRecord(); first = false {
		if cap(r.buf)-len(r.buf) < min(record, cap(r.buf)/2) {
			r.grow(min(2*cap(r.buf), bigBuffer))
		}
		n, err := from.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+n]
		if n > 0 {
			continue // an error comes again
		}
		if errors.Is(err, io.EOF) {
			return errEnded
		}
		if err != nil {
			return fmt.Errorf("stream: %w", err)
		}
	}
	// Much is coming: make room for it.
	if len(r.buf) == cap(r.buf) && r.limit == maxRun {
		r.grow(min(4*cap(r.buf), bigBuffer))
	}
	return nil
}

func (r *reader) grow(size int) {
	if size > cap(r.buf) {
		r.buf = append(make([]byte, 0, size), r.buf...)
	}
}

// parse cuts off the messages that are there whole.
func (r *reader) parse(control func(byte, []byte) error) error {
	for len(r.messages) < maxMessages {
		b := r.buf[r.done:]
		h, ok, err := parseHeader(b, r.masked)
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		if h.op == opBinary && h.length > r.limit+2 {
			return fmt.Errorf("%w: %d bytes are more than the %d allowed now", ErrFrame, h.length, r.limit)
		}
		if len(b) < h.size+h.length {
			if need := h.size + h.length; need > cap(r.buf) {
				r.grow(min(max(need, 2*cap(r.buf)), bigBuffer))
			}
			return nil
		}
		payload := b[h.size : h.size+h.length : h.size+h.length]
		h.unmask(payload)
		r.done += h.size + h.length
		if h.op != opBinary {
			if err := control(h.op, payload); err != nil {
				return err
			}
			continue
		}
		data, segment, err := run(payload)
		if err != nil {
			return err
		}
		r.messages = append(r.messages, sock.Message{From: r.from, Data: data, Segment: segment})
		if r.limit < maxRun {
			return nil // what follows may be allowed once this one is handled
		}
	}
	return nil
}
