package relay

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"causeway/protocol"
	"causeway/tunnel/underlay"
	"causeway/tunnel/underlay/probe"
	"causeway/tunnel/underlay/sock"
	"causeway/tunnel/underlay/stream"
)

// DropStreamFull counts what a stream's short queue did not take.
const DropStreamFull = "stream_queue_full"

var errUnbound = errors.New("no node is bound to it any more")

// streams are the agents' streams that are connected.
type streams struct {
	conns table[stream.Conn]

	mu      sync.Mutex      // orders changes
	ctx     context.Context // of Run; nil: it does not run
	running sync.WaitGroup
}

func (s *streams) open(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
}

// close waits for streams to end; the context of Run has.
func (s *streams) close() {
	s.mu.Lock()
	s.ctx = nil
	s.mu.Unlock()
	s.running.Wait()
}

func (s *streams) add(c *stream.Conn) (context.Context, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil {
		return nil, false
	}
	s.conns.set(c.Addr(), c)
	s.running.Add(1)
	return s.ctx, true
}

func (s *streams) remove(c *stream.Conn) {
	s.mu.Lock()
	s.conns.set(c.Addr(), nil)
	s.mu.Unlock()
	s.running.Done()
}

// StreamHandler takes agents' requests for streams, at protocol.PathStreams of an
// HTTPS server over stream.Listener.
func (r *Relay) StreamHandler() http.Handler {
	return stream.NewServer(r.serveStream, func(reason string) { r.drops.Add(reason, 1) })
}

// serveStream forwards what comes over a stream until it ends. To the
// switchboard it is one more address.
func (r *Relay) serveStream(c *stream.Conn) {
	ctx, ok := r.streams.add(c)
	if !ok {
		c.Close(stream.ErrClosed)
		return
	}
	defer r.streams.remove(c)
	d := r.newReader(nil, nil)
	err := c.Run(ctx, func(messages []sock.Message) {
		d.batch(messages)
		if !c.Bound() && r.byAddr.get(c.Addr()) != nil {
			c.SetBound()
			r.cfg.Log.Debug().Stringer("addr", c.Remote()).Msg("stream is bound")
		}
	})
	r.cfg.Log.Debug().Stringer("addr", c.Remote()).AnErr("cause", err).Uint64("dropped", c.Dropped()).Msg("stream has ended")
	r.mu.Lock()
	r.binder.Unbind(c.Addr(), &r.out)
	r.publish()
	r.mu.Unlock()
}

// judgeStreams ends streams whose node is bound to them no more: it was
// removed, or has newer ones.
func (r *Relay) judgeStreams() {
	for a, c := range r.streams.conns.all {
		if c.Bound() && r.byAddr.get(a) == nil {
			c.Close(errUnbound)
		}
	}
}

// write sends datagrams to an address, a socket's or a stream's.
func (r *Relay) write(to probe.Place, b []byte, segment int) error {
	err := r.writeTo(to, b, segment)
	if err == nil {
		to.Tally.Sent(protocol.MessageType(b[0]), len(b), segment)
	}
	return err
}

func (r *Relay) writeTo(to probe.Place, b []byte, segment int) error {
	if protocol.IsStream(to.To) {
		if c := r.streams.conns.get(to.To); c != nil {
			return c.Send(b, segment)
		}
		return underlay.ErrNoPath
	}
	c := r.conn.Load()
	if c == nil {
		return underlay.ErrNotRunning
	}
	return c.WriteFrom(to.From, to.To, b, segment)
}

// sendProbes sends what the binder decided.
func (r *Relay) sendProbes(sends []probe.Send) {
	for _, s := range sends {
		if err := r.write(probe.Place{To: s.To, From: s.From}, s.Data, len(s.Data)); err != nil {
			r.cfg.Log.Debug().Stringer("addr", s.To).Err(err).Msg("probe not answered")
		}
	}
}

// writeGroup is write for a group. It returns why the group was dropped, if it was.
func (d *reader) writeGroup(to probe.Place, g *sock.Group, urgent bool) (reason string) {
	if protocol.IsStream(to.To) {
		c := d.r.streams.conns.get(to.To)
		if c == nil {
			return DropNowhere
		}
		d.pieces = g.Pieces(d.pieces[:0])
		err := c.SendPieces(d.pieces, g.Bytes(), g.Segment())
		clear(d.pieces)
		switch {
		case errors.Is(err, stream.ErrFull):
			return DropStreamFull
		case err != nil:
			return DropSend
		}
		return ""
	}
	c := d.data
	switch {
	case urgent:
		c = d.r.conn.Load()
	case c == nil:
		c = d.r.data.Load()
	}
	if c == nil {
		return DropSend
	}
	switch err := c.WriteGroup(to.From, to.To, g); {
	case errors.Is(err, sock.ErrFull):
		return DropFull
	case err != nil:
		return DropSend
	}
	return ""
}
