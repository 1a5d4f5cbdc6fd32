package stream

import (
	"container/list"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"causeway/protocol"
)

// Bounds of a hub's streams. One that is bound belongs to a node, of which
// each has a few; the others are anybody's.
const (
	maxStreams        = 8192
	maxUnbound        = 1024
	maxUnboundOfOne   = 256 // from one address: a load balancer's, or a whole company's
	unboundFor        = 10 * time.Second
	serverHandshakeIn = 5 * time.Second // to write the answer
)

// Reasons for which streams are refused or closed.
const (
	RefusedMalformed = "stream_malformed_request"
	RefusedBusy      = "stream_too_many"
	ClosedUnbound    = "stream_not_bound"
)

var errUnbound = errors.New("stream: nobody has proven who is there")

// Server answers agents' requests for streams. Its methods may be called
// concurrently; the zero value is not ready: see NewServer.
type Server struct {
	serve func(*Conn)
	count func(reason string)
	next  atomic.Uint64

	maxUnboundOfOne int
	unboundFor      time.Duration

	mu      sync.Mutex
	all     int
	unbound int
	sources map[netip.Addr]*list.List // of *unbound, oldest first
}

// NewServer returns a server that gives each stream to serve, which returns
// when the stream has ended and calls SetBound when it knows whose it is, and
// counts by reason what it refuses or gives up.
func NewServer(serve func(*Conn), count func(reason string)) *Server {
	return &Server{serve: serve, count: count, sources: map[netip.Addr]*list.List{}, maxUnboundOfOne: maxUnboundOfOne, unboundFor: unboundFor}
}

// Listener makes l's connections such that Server can serve them: it has to
// lie beneath TLS.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

// Inner is the listener beneath.
func (l listener) Inner() net.Listener { return l.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &Raw{Conn: c}, nil
}

// ServeHTTP upgrades a request and returns when the stream has ended.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-Websocket-Key")
	nonce, err := base64.StdEncoding.DecodeString(key)
	if r.Method != http.MethodGet || r.ProtoMajor != 1 || !hasToken(r.Header, "Connection", "upgrade") || !hasToken(r.Header, "Upgrade", "websocket") ||
		!hasToken(r.Header, "Sec-Websocket-Protocol", protocol.StreamProtocol) || err != nil || len(nonce) != 16 {
		s.count(RefusedMalformed)
		w.Header().Set("Upgrade", "websocket")
		http.Error(w, "want a WebSocket of "+protocol.StreamProtocol, http.StatusUpgradeRequired)
		return
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	var p *unbound
	if err == nil {
		p = s.take(SourceOf(from.Addr()))
	}
	if p == nil {
		s.count(RefusedBusy)
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many streams, try again", http.StatusServiceUnavailable)
		return
	}
	defer s.leave()
	defer s.prove(p)
	c, detach, err := s.hijack(w, key)
	if err != nil {
		s.count(RefusedMalformed)
		return
	}
	// Until it is known whose it is, a stream counts among the listener's connections of
	// strangers, and may have to go for another.
	defer detach()
	c.onBound = func() { detach(); s.prove(p) }
	if !s.opened(p, c) {
		c.Close(errUnbound)
	}
	timer := time.AfterFunc(s.unboundFor, func() {
		if !c.Bound() {
			s.count(ClosedUnbound)
			c.Close(errUnbound)
		}
	})
	defer timer.Stop()
	s.serve(c)
}

// hijack takes the connection over and answers. detach takes it out of the listener's count.
func (s *Server) hijack(w http.ResponseWriter, key string) (c *Conn, detach func(), err error) {
	hj, ok := w.(http.Hijacker)
	if !ok {
		http.Error(w, "no WebSocket here", http.StatusNotImplemented)
		return nil, nil, errors.New("stream: the server cannot hijack")
	}
	conn, rw, err := hj.Hijack()
	if err != nil {
		return nil, nil, err
	}
	t, _ := conn.(*tls.Conn)
	raw, detach := beneath(t)
	if raw == nil {
		conn.Close()
		return nil, nil, errors.New("stream: no TLS over a Raw connection")
	}
	conn.SetDeadline(time.Now().Add(serverHandshakeIn))
	rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
		acceptKey(key) + "\r\nSec-WebSocket-Protocol: " + protocol.StreamProtocol + "\r\n\r\n")
	if err := rw.Flush(); err != nil {
		conn.Close()
		return nil, nil, err
	}
	initial, err := rw.Peek(rw.Reader.Buffered())
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	conn.SetDeadline(time.Time{})
	return newConn(t, raw, protocol.StreamAddr(s.next.Add(1)), false, initial), detach, nil
}

// beneath finds the Raw under TLS, and what takes the connection out of the count of a listener
// that bounds it.
func beneath(t *tls.Conn) (raw *Raw, detach func()) {
	detach = func() {}
	if t == nil {
		return nil, detach
	}
	for n := t.NetConn(); n != nil; {
		if d, ok := n.(interface{ Detach() }); ok {
			detach = d.Detach
		}
		if raw, ok := n.(*Raw); ok {
			return raw, detach
		}
		u, ok := n.(interface{ NetConn() net.Conn })
		if !ok {
			return nil, detach
		}
		n = u.NetConn()
	}
	return nil, detach
}

// unbound is a stream of which nobody has proven whose it is. Server.mu guards it.
type unbound struct {
	source netip.Addr
	in     *list.Element // of its source's; nil: bound, or gone
	c      *Conn         // nil: not opened yet
}

// take makes room for a stream of source, in place of the oldest one of the source that has
// most if there are too many: an agent proves itself at once. nil: there is no room.
func (s *Server) take(source netip.Addr) *unbound {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= maxStreams {
		return nil
	}
	mine := s.sources[source]
	switch {
	case mine != nil && mine.Len() >= s.maxUnboundOfOne:
		s.push(mine)
	case s.unbound >= maxUnbound:
		var most *list.List
		for _, l := range s.sources {
			if most == nil || l.Len() > most.Len() {
				most = l
			}
		}
		s.push(most)
	}
	if mine = s.sources[source]; mine == nil {
		mine = list.New()
		s.sources[source] = mine
	}
	p := &unbound{source: source}
	p.in = mine.PushBack(p)
	s.all++
	s.unbound++
	return p
}

// push closes the oldest of l. s.mu is held.
func (s *Server) push(l *list.List) {
	p := l.Front().Value.(*unbound)
	s.forget(p)
	s.count(RefusedBusy)
	if p.c != nil {
		go p.c.Close(errUnbound)
	}
}

// opened gives p its stream; false: it had to go meanwhile.
func (s *Server) opened(p *unbound, c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.c = c
	return p.in != nil
}

// prove says that p is bound, or gone.
func (s *Server) prove(p *unbound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(p)
}

// forget takes p out of the unbound. s.mu is held.
func (s *Server) forget(p *unbound) {
	if p.in == nil {
		return
	}
	l := s.sources[p.source]
	if l.Remove(p.in); l.Len() == 0 {
		delete(s.sources, p.source)
	}
	p.in = nil
	s.unbound--
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
}

// SourceOf is what counts as one source for limits: an IPv4 address, an IPv6 /64.
func SourceOf(a netip.Addr) netip.Addr {
	if a = a.Unmap(); a.Is6() {
		p, _ := a.WithZone("").Prefix(64) // fails for no IPv6 address
		a = p.Addr()
	}
	return a
}

// Open is the number of streams that are connected.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all
}
