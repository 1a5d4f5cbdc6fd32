package stream

import (
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
	sources map[netip.Addr]int // unbound ones
}

// NewServer returns a server that gives each stream to serve, which returns
// when the stream has ended and calls SetBound when it knows whose it is, and
// counts by reason what it refuses or gives up.
func NewServer(serve func(*Conn), count func(reason string)) *Server {
	return &Server{serve: serve, count: count, sources: map[netip.Addr]int{}, maxUnboundOfOne: maxUnboundOfOne, unboundFor: unboundFor}
}

// Listener makes l's connections such that Server can serve them: it has to
// lie beneath TLS.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

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
	source := SourceOf(from.Addr())
	if err != nil || !s.take(source) {
		s.count(RefusedBusy)
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many streams, try again", http.StatusServiceUnavailable)
		return
	}
	defer s.leave()
	proven := sync.OnceFunc(func() { s.prove(source) })
	defer proven()
	c, err := s.hijack(w, key)
	if err != nil {
		s.count(RefusedMalformed)
		return
	}
	c.onBound = proven
	timer := time.AfterFunc(s.unboundFor, func() {
		if !c.Bound() {
			s.count(ClosedUnbound)
			c.Close(errUnbound)
		}
	})
	defer timer.Stop()
	s.serve(c)
}

// hijack takes the connection over and answers.
func (s *Server) hijack(w http.ResponseWriter, key string) (*Conn, error) {
	hj, ok := w.(http.Hijacker)
	if !ok {
		http.Error(w, "no WebSocket here", http.StatusNotImplemented)
		return nil, errors.New("stream: the server cannot hijack")
	}
	conn, rw, err := hj.Hijack()
	if err != nil {
		return nil, err
	}
	t, _ := conn.(*tls.Conn)
	raw := beneath(t)
	if raw == nil {
		conn.Close()
		return nil, errors.New("stream: no TLS over a Raw connection")
	}
	conn.SetDeadline(time.Now().Add(serverHandshakeIn))
	rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " +
		acceptKey(key) + "\r\nSec-WebSocket-Protocol: " + protocol.StreamProtocol + "\r\n\r\n")
	if err := rw.Flush(); err != nil {
		conn.Close()
		return nil, err
	}
	initial, err := rw.Peek(rw.Reader.Buffered())
	if err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return newConn(t, raw, protocol.StreamAddr(s.next.Add(1)), false, initial), nil
}

// beneath finds the Raw under TLS. A listener's bound on requests ends here: a
// stream has its own.
func beneath(t *tls.Conn) *Raw {
	if t == nil {
		return nil
	}
	for n := t.NetConn(); n != nil; {
		if d, ok := n.(interface{ Detach() }); ok {
			d.Detach()
		}
		if raw, ok := n.(*Raw); ok {
			return raw
		}
		u, ok := n.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		n = u.NetConn()
	}
	return nil
}

func (s *Server) take(source netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= maxStreams || s.unbound >= maxUnbound || s.sources[source] >= s.maxUnboundOfOne {
		return false
	}
	s.all++
	s.unbound++
	s.sources[source]++
	return true
}

// prove says that a stream of source is bound, or gone.
func (s *Server) prove(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unbound--
	if s.sources[source]--; s.sources[source] == 0 {
		delete(s.sources, source)
	}
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
