// Package control speaks the agent's side of the control channel over one
// connection to a hub: it says hello, takes netmaps, sends status, keeps the
// nats stream open and serves the debug streams that the hub opens. What a
// netmap means, and when to dial again, is its caller's business.
package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"causeway/protocol"
	"causeway/tunnel/mux"
)

// Config is what a Client needs of its agent. All functions may be called from
// several goroutines, for one session at a time.
type Config struct {
	Number protocol.NodeNumber
	// Hello is asked for at the start of every session.
	Hello func() protocol.Hello
	// Prove answers a hub's challenge to this hello, whose body it is; an error ends the
	// session.
	Prove func(c protocol.Challenge, hello []byte) (protocol.Proof, error)
	// Welcome hears that the hub knows us.
	Welcome func(protocol.Welcome)
	// Ended hears that a session that was welcomed is over, before Connected says so.
	Ended func()
	// Netmap takes a netmap, and returns when it is applied and stored.
	Netmap func(context.Context, protocol.Netmap) protocol.NetmapAck
	// HubList hears the answer to AskHubList.
	HubList func(context.Context, protocol.HubListAnswer)
	// Mark hears how far the hub's state has come.
	Mark func(protocol.StateMark)
	// Contact hears of each time at which this agent said something that a hub has heard since. The time is Clock's.
	Contact func(time.Duration)
	// Clock goes on while the host sleeps; nil: nobody asks for Contact.
	Clock func() time.Duration
	// Status is asked for every StatusInterval and after Changed.
	Status func() protocol.Status
	// NATS runs beside the session until ctx ends; open opens a nats stream.
	NATS func(ctx context.Context, open func(context.Context) (net.Conn, error))
	// Bulk opens a connection for a long answer and serves it until it or ctx ends; nil: hubs
	// are not told that they may ask.
	Bulk func(ctx context.Context, c protocol.Challenge, serve func(net.Conn))
	// Due has a status sent when it gets something; Changed is another way to say so. nil: nobody else says so.
	Due chan struct{}
	Log zerolog.Logger
}

// Limits in time of a session.
const (
	welcomeTimeout = 10 * time.Second
	writeTimeout   = 15 * time.Second
	leaveTimeout   = 3 * time.Second
	// minStatus keeps a flapping condition from flooding the hub.
	minStatus = 200 * time.Millisecond
)

// Errors that callers tell apart.
var (
	// ErrRevoked says that the hub does not know this node any more.
	ErrRevoked = errors.New("this node was revoked")
	// ErrNoSession says that there is no hub to tell.
	ErrNoSession = errors.New("no control session with a hub")
	// ErrRefused begins what the hub said before it ended the session.
	ErrRefused = errors.New("the hub says")
	// errLeft ends a session after the hub confirmed the leave.
	errLeft = errors.New("left")
)

// Client runs one session after the other.
type Client struct {
	cfg     Config
	changed chan struct{}

	mu  sync.Mutex
	cur *session
}

// Redial is how long to wait from one session to the next: short at first, for most
// hubs are back at once, and jittered, for all agents of a hub lose it together.
func Redial() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(backoff.WithInitialInterval(100*time.Millisecond), backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(0))
}

// New opens nothing.
func New(cfg Config) *Client {
	if cfg.Due == nil {
		cfg.Due = make(chan struct{}, 1)
	}
	return &Client{cfg: cfg, changed: cfg.Due}
}

type session struct {
	c      *Client
	stream net.Conn
	serve  func(net.Conn)
	ready  bool // welcomed; guarded by c.mu

	bulk chan struct{} // connections for long answers

	beats beats

	wmu  sync.Mutex // writes
	left chan struct{}
	once sync.Once
}

// Changed asks for a status now, rather than at the next interval.
func (c *Client) Changed() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Serve runs one session over conn, which it closes. serve takes over each stream on which the hub
// speaks HTTP. It returns when the
// session ended, with the reason: ErrRevoked, ctx's error, or what failed.
func (c *Client) Serve(ctx context.Context, conn net.Conn, serve func(net.Conn)) error {
	m, err := mux.Client(conn)
	if err != nil {
		conn.Close()
		return err
	}
	defer m.Close()
	stream, err := m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamControl})
	if err != nil {
		return err
	}
	s := &session{c: c, stream: stream, serve: serve, left: make(chan struct{}), bulk: make(chan struct{}, maxBulk)}
	hello, err := protocol.NewMessage(protocol.KindHello, c.cfg.Hello())
	if err != nil {
		return err
	}
	if err := s.sendMessage(hello); err != nil {
		return err
	}
	// Closing is what ends a read in any case: while a frame is half here, one of
	// its stream waits for the rest and looks at no deadline.
	stop := context.AfterFunc(ctx, func() { m.Close() })
	err = s.welcome(ctx, hello.Body)
	stop()
	if err != nil {
		c.cfg.Ended() // it may have been welcomed
		return err
	}
	c.mu.Lock()
	s.ready, c.cur = true, s
	c.mu.Unlock()
	defer func() {
		c.cfg.Ended()
		c.mu.Lock()
		c.cur = nil
		c.mu.Unlock()
	}()

	g, ctx := errgroup.WithContext(ctx)
	// The reader alone says why the session ended, so that the hub's last
	// words are heard even if a write failed first. The others only end it.
	g.Go(func() error { return s.read(ctx, g) })
	g.Go(func() error {
		defer m.Close()
		select {
		case <-ctx.Done():
		case <-m.Done():
		}
		return nil
	})
	g.Go(func() error {
		defer m.Close()
		if err := s.status(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.Debug().Err(err).Msg("status was not sent")
		}
		return nil
	})
	g.Go(func() error {
		c.accept(ctx, m, serve)
		return nil
	})
	g.Go(func() error {
		c.cfg.NATS(ctx, func(ctx context.Context) (net.Conn, error) {
			return m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamNATS})
		})
		return nil
	})
	if err := g.Wait(); !errors.Is(err, errLeft) {
		return err
	}
	return nil
}

func (s *session) send(kind protocol.MessageKind, body any) error {
	m, err := protocol.NewMessage(kind, body)
	if err != nil {
		return err
	}
	return s.sendMessage(m)
}

func (s *session) sendMessage(m protocol.Message) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.stream.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := protocol.WriteFrame(s.stream, m, protocol.MaxToHub); err != nil {
		return fmt.Errorf("send %s: %w", m.Kind, err)
	}
	return nil
}

// prove answers the hub's challenge.
func (s *session) prove(m protocol.Message, hello []byte) error {
	c, err := protocol.ParseChallenge(m.Body)
	if err != nil {
		return err
	}
	p, err := s.c.cfg.Prove(c, hello)
	if err != nil {
		return err
	}
	return s.send(protocol.KindProof, p)
}

// welcome proves who we are, where the hub asks, and waits for its welcome. A hub of the
// version before welcomes at once.
func (s *session) welcome(ctx context.Context, hello []byte) error {
	s.stream.SetReadDeadline(time.Now().Add(welcomeTimeout))
	var m protocol.Message
	if err := protocol.ReadFrame(s.stream, &m, protocol.MaxToAgent); err != nil {
		return fmt.Errorf("wait for the hub's welcome: %w", err)
	}
	if m.Kind == protocol.KindChallenge { // once: another one is no welcome
		if err := s.prove(m, hello); err != nil {
			return err
		}
		m = protocol.Message{}
		if err := protocol.ReadFrame(s.stream, &m, protocol.MaxToAgent); err != nil {
			return fmt.Errorf("wait for the hub's welcome: %w", err)
		}
	}
	switch m.Kind {
	case protocol.KindWelcome:
	case protocol.KindError:
		return s.hubError(m)
	default:
		return fmt.Errorf("wait for the hub's welcome: it sent %q first", m.Kind)
	}
	var w protocol.Welcome
	if err := m.Decode(&w); err != nil {
		return err
	}
	if w.Number != s.c.cfg.Number {
		return fmt.Errorf("the hub takes this node for number %d", w.Number)
	}
	s.c.cfg.Welcome(w)
	s.stream.SetReadDeadline(time.Time{})
	return ctx.Err()
}

// read handles what the hub sends until the session ends. What goes on beside that is g's.
func (s *session) read(ctx context.Context, g *errgroup.Group) error {
	for {
		var m protocol.Message
		if err := protocol.ReadFrame(s.stream, &m, protocol.MaxToAgent); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				return errors.New("the hub closed the control stream")
			}
			return fmt.Errorf("read control stream: %w", err)
		}
		switch m.Kind {
		case protocol.KindNetmap:
			var n protocol.Netmap
			if err := m.Decode(&n); err != nil {
				if err := s.send(protocol.KindError, protocol.Error{Code: protocol.ErrorBadMessage, Message: err.Error()}); err != nil {
					return err
				}
				continue
			}
			if err := s.send(protocol.KindNetmapAck, s.c.cfg.Netmap(ctx, n)); err != nil {
				return err
			}
			s.c.Changed()
		case protocol.KindHubList:
			var l protocol.HubListAnswer
			if err := m.Decode(&l); err != nil {
				if err := s.send(protocol.KindError, protocol.Error{Code: protocol.ErrorBadMessage, Message: err.Error()}); err != nil {
					return err
				}
				continue
			}
			s.c.cfg.HubList(ctx, l)
		case protocol.KindMark:
			var v protocol.StateMark
			if err := m.Decode(&v); err != nil {
				if err := s.send(protocol.KindError, protocol.Error{Code: protocol.ErrorBadMessage, Message: err.Error()}); err != nil {
					return err
				}
				continue
			}
			s.c.cfg.Mark(v)
		case protocol.KindBeat:
			var v protocol.Beat
			if err := m.Decode(&v); err != nil {
				return err
			}
			if at, ok := s.beats.answered(v.Beat); ok {
				s.c.cfg.Contact(at)
			}
		case protocol.KindBulk:
			if err := s.openBulk(ctx, g, m); err != nil {
				return err
			}
		case protocol.KindLeft:
			s.once.Do(func() { close(s.left) })
			return errLeft
		case protocol.KindError:
			if err := s.hubError(m); err != nil {
				return err
			}
		case protocol.KindWelcome:
			// Once is enough; a second one says nothing new.
		default:
			e := protocol.Error{Code: protocol.ErrorUnknownKind, Message: fmt.Sprintf("this agent does not know messages of kind %.40q", m.Kind)}
			if err := s.send(protocol.KindError, e); err != nil {
				return err
			}
		}
	}
}

// maxBulk is how many long answers a hub may have from this agent at once.
const maxBulk = 8

// openBulk answers a hub that asks for a connection for a long answer.
func (s *session) openBulk(ctx context.Context, g *errgroup.Group, m protocol.Message) error {
	c, err := protocol.ParseChallenge(m.Body)
	if err == nil && s.c.cfg.Bulk == nil {
		err = errors.New("this agent opens no connections for long answers")
	}
	if err == nil {
		select {
		case s.bulk <- struct{}{}:
			g.Go(func() error {
				defer func() { <-s.bulk }()
				s.c.cfg.Bulk(ctx, c, s.serve)
				return nil
			})
			return nil
		default:
			err = fmt.Errorf("more than %d long answers at once", maxBulk)
		}
	}
	return s.send(protocol.KindError, protocol.Error{Code: protocol.ErrorBadMessage, Message: err.Error()})
}

// hubError returns the error that ends the session, or nil for one that is
// only worth a line.
func (s *session) hubError(m protocol.Message) error {
	var e protocol.Error
	if err := m.Decode(&e); err != nil {
		return err
	}
	switch e.Code {
	case protocol.ErrorRevoked:
		return ErrRevoked
	case protocol.ErrorUnknownKind:
		s.c.cfg.Log.Debug().Str("err", e.Message).Msg("the hub does not know a message of ours")
		return nil
	}
	return fmt.Errorf("%w: %.300q", ErrRefused, e.Message)
}

func (s *session) status(ctx context.Context) error {
	t := time.NewTicker(protocol.StatusInterval)
	defer t.Stop()
	for {
		v := s.c.cfg.Status()
		if s.c.cfg.Clock != nil {
			v.Beat = s.beats.next(s.c.cfg.Clock())
		}
		if err := s.send(protocol.KindStatus, v); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(minStatus):
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		case <-s.c.changed:
		}
	}
}

// maxStreams is how many streams a hub may have open toward this agent at once,
// so that one that was taken over does not fill the host's memory.
const maxStreams = 64

// accept hands over the streams that the hub opens, and closes those beyond
// maxStreams at once.
func (c *Client) accept(ctx context.Context, m *mux.Session, serve func(net.Conn)) {
	defer m.Close()
	slots := make(chan struct{}, maxStreams)
	for {
		conn, err := m.Accept(ctx)
		if err != nil {
			return
		}
		select {
		case slots <- struct{}{}:
		default:
			c.cfg.Log.Debug().Int("streams", maxStreams).Msg("refused a stream of the hub, too many are open")
			conn.Close()
			continue
		}
		st := &stream{Conn: conn, closed: sync.OnceFunc(func() { <-slots })}
		go func() { // ends with the stream, and that with the session
			h, err := mux.ReadHeader(st)
			if err == nil && h.Kind == protocol.StreamDebug {
				serve(st)
				return
			}
			if err == nil {
				c.cfg.Log.Debug().Str("kind", fmt.Sprintf("%.40q", h.Kind)).Msg("refused a stream of the hub")
			}
			st.Close()
		}()
	}
}

// stream tells when it is closed.
type stream struct {
	net.Conn
	closed func()
}

func (s *stream) Close() error {
	defer s.closed()
	return s.Conn.Close()
}

// Connected reports whether a hub has welcomed us.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cur != nil
}

// Ack tells the hub that what was taken of a netmap has changed since it was
// acknowledged. Without a session it does nothing: the next one begins afresh.
func (c *Client) Ack(a protocol.NetmapAck) error {
	c.mu.Lock()
	s := c.cur
	c.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.send(protocol.KindNetmapAck, a)
}

// AskHubList asks the hub to show that its hub list is the newest. A hub of before does
// not answer.
func (c *Client) AskHubList(n protocol.ListNonce) error {
	c.mu.Lock()
	s := c.cur
	c.mu.Unlock()
	if s == nil {
		return ErrNoSession
	}
	return s.send(protocol.KindHubListAsk, protocol.HubListAsk{Nonce: n})
}

// Leave tells the hub that this node goes for good, and waits until the hub
// confirms, for 3 s at most.
func (c *Client) Leave(ctx context.Context) error {
	c.mu.Lock()
	s := c.cur
	c.mu.Unlock()
	if s == nil {
		return ErrNoSession
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	if err := s.send(protocol.KindLeave, struct{}{}); err != nil {
		select {
		case <-s.left: // the answer overtook the end of the write
			return nil
		default:
			return err
		}
	}
	select {
	case <-s.left:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the hub did not confirm within %s", leaveTimeout)
	}
}
