package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// Bounds of what is asked. All programs of the host are one source, its resolver among them.
const (
	perSource    = 2000 // questions a second
	burst        = 4000 // at once
	maxSources   = 1024 // told apart; more are one together
	maxConns     = 64   // of TCP
	connsOf      = 16   // of them of one source
	questionWait = 5 * time.Second
	answerWait   = 5 * time.Second
)

// Config is what a Server is made of.
type Config struct {
	Counted func(code string) // hears of each question, with one of Codes; may be called concurrently
}

// Server answers by the view that was set last; before the first one there is nothing. Its methods may be called concurrently,
// Serve once at a time.
type Server struct {
	counted func(string)
	zone    atomic.Pointer[zone]
	sources sources
	conns   conns
}

// New opens nothing.
func New(cfg Config) *Server {
	s := &Server{counted: cfg.Counted}
	s.Set(View{})
	return s
}

// Set has what follows answered by v.
func (s *Server) Set(v View) { s.zone.Store(newZone(v)) }

// Sockets are where a Server is asked.
type Sockets struct {
	udp *net.UDPConn
	tcp *net.TCPListener
}

// Listen opens them at an address. It fails while that is not there, or somebody else's.
func Listen(ctx context.Context, at netip.AddrPort) (*Sockets, error) {
	var lc net.ListenConfig
	udp, err := lc.ListenPacket(ctx, "udp", at.String())
	if err != nil {
		return nil, fmt.Errorf("answer DNS: %w", err)
	}
	tcp, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		udp.Close()
		return nil, fmt.Errorf("answer DNS: %w", err)
	}
	return &Sockets{udp.(*net.UDPConn), tcp.(*net.TCPListener)}, nil
}

// Serve answers until ctx ends, which is no error, and closes the sockets.
func (s *Server) Serve(ctx context.Context, x *Sockets) error {
	g, gctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(gctx, func() {
		x.udp.Close()
		x.tcp.Close()
		s.conns.closeAll()
	})()
	g.Go(func() error { return s.serveUDP(x.udp) })
	g.Go(func() error { return s.serveTCP(x.tcp) })
	err := g.Wait()
	s.conns.closeAll() // one that came meanwhile
	s.conns.wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// serveUDP answers one question after the other: each takes microseconds.
func (s *Server) serveUDP(c *net.UDPConn) error {
	buf := make([]byte, maxQuery+1)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("answer DNS: %w", err)
		}
		if err != nil {
			continue // of a datagram before: nobody listens there
		}
		if out := s.answer(buf[:n], from.Addr(), false); out != nil {
			_, _ = c.WriteToUDPAddrPort(out, from) // who gets none asks again
		}
	}
}

// answer answers a message within the bounds; nil: not at all.
func (s *Server) answer(query []byte, from netip.Addr, tcp bool) []byte {
	if !s.sources.take(from.Unmap(), time.Now()) {
		s.counted(codeDropped)
		return nil
	}
	out, code := s.zone.Load().answer(query, tcp)
	s.counted(code)
	return out
}

func (s *Server) serveTCP(l *net.TCPListener) error {
	for {
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("answer DNS: %w", err)
		case err != nil: // too few open files: those that are open end soon
			time.Sleep(acceptPause)
			continue
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		s.conns.serve(c, from, func() { s.serveConn(c, from) })
	}
}

// acceptPause keeps a shortage of files from being a loop.
const acceptPause = 100 * time.Millisecond

// serveConn answers what comes by a connection, in order, until it is idle or has said what is no question.
func (s *Server) serveConn(c net.Conn, from netip.Addr) {
	var head [2]byte
	buf := make([]byte, maxQuery)
	for {
		_ = c.SetReadDeadline(time.Now().Add(questionWait))
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if n > maxQuery {
			return
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return
		}
		out := s.answer(buf[:n], from, true)
		if out == nil {
			return
		}
		_ = c.SetWriteDeadline(time.Now().Add(answerWait))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}

// sources bounds what each source asks.
type sources struct {
	mu     sync.Mutex
	of     map[netip.Addr]*rate.Limiter
	others *rate.Limiter
}

// take reports whether one more question of a source is answered.
func (s *sources) take(from netip.Addr, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of, s.others = map[netip.Addr]*rate.Limiter{}, rate.NewLimiter(perSource, burst)
	}
	l := s.of[from]
	if l == nil && len(s.of) >= maxSources {
		for a, x := range s.of { // who has asked nothing lately is as good as new
			if x.TokensAt(now) >= burst {
				delete(s.of, a)
			}
		}
	}
	switch {
	case l != nil:
	case len(s.of) >= maxSources:
		l = s.others
	default:
		l = rate.NewLimiter(perSource, burst)
		s.of[from] = l
	}
	return l.AllowN(now, 1)
}

// conns are the TCP connections that are open, the oldest first.
type conns struct {
	mu   sync.Mutex
	list []conn
	wg   sync.WaitGroup
}

type conn struct {
	net.Conn
	from netip.Addr
}

// serve runs f for a connection and closes it then. Where there are too many, the oldest of its source, or of whoever has
// most, is closed for it.
func (c *conns) serve(x net.Conn, from netip.Addr, f func()) {
	c.mu.Lock()
	if c.of(from) >= connsOf {
		c.closeOldest(from)
	} else if len(c.list) >= maxConns {
		most := c.list[0].from
		for _, y := range c.list {
			if c.of(y.from) > c.of(most) {
				most = y.from
			}
		}
		c.closeOldest(most)
	}
	c.list = append(c.list, conn{x, from})
	c.mu.Unlock()
	c.wg.Go(func() {
		defer c.forget(x)
		f()
	})
}

func (c *conns) of(from netip.Addr) (n int) {
	for _, x := range c.list {
		if x.from == from {
			n++
		}
	}
	return n
}

func (c *conns) closeOldest(from netip.Addr) {
	i := slices.IndexFunc(c.list, func(x conn) bool { return x.from == from })
	c.list[i].Close()
	c.list = slices.Delete(c.list, i, i+1)
}

func (c *conns) forget(x net.Conn) {
	x.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = slices.DeleteFunc(c.list, func(y conn) bool { return y.Conn == x })
}

func (c *conns) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.list {
		x.Close()
	}
}

func (c *conns) wait() { c.wg.Wait() }
