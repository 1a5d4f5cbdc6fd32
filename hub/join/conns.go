package join

import (
	"container/list"
	"net"
	"net/netip"
	"sync"

	"causeway/tunnel/underlay/stream"
)

// Limits of connections that are no streams. Nobody needs one for longer than a
// request, so whoever holds one longest loses it when there are too many, of his
// source first: slow connections never keep a new one out. A source may be a load
// balancer, with many agents behind it.
const (
	maxConns          = 4096
	maxConnsPerSource = 1024
)

// conns bounds the connections of a listener.
type conns struct {
	net.Listener
	max, perSource int

	mu       sync.Mutex
	all      *list.List                // of *conn, oldest first
	bySource map[netip.Addr]*list.List // likewise
}

func newConns(l net.Listener, max, perSource int) *conns {
	return &conns{Listener: l, max: max, perSource: perSource, all: list.New(), bySource: map[netip.Addr]*list.List{}}
}

// Accept returns the next connection, after closing one that is too many.
func (l *conns) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, l: l}
	if a, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
		c.source = stream.SourceOf(a.Addr())
	}
	var victim *conn
	l.mu.Lock()
	mine := l.bySource[c.source]
	if mine == nil {
		mine = list.New()
		l.bySource[c.source] = mine
	}
	switch {
	case mine.Len() >= l.perSource:
		victim = mine.Front().Value.(*conn)
	case l.all.Len() >= l.max:
		victim = l.all.Front().Value.(*conn)
	}
	c.inSource, c.inAll = mine.PushBack(c), l.all.PushBack(c)
	l.mu.Unlock()
	if victim != nil {
		victim.Close()
	}
	return c, nil
}

type conn struct {
	net.Conn
	l               *conns
	source          netip.Addr
	inAll, inSource *list.Element // nil: counted no longer
}

// NetConn is the connection itself.
func (c *conn) NetConn() net.Conn { return c.Conn }

// Detach takes the connection out of the count: a stream has a bound of its own.
func (c *conn) Detach() {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.inAll == nil {
		return
	}
	l.all.Remove(c.inAll)
	mine := l.bySource[c.source]
	mine.Remove(c.inSource)
	if mine.Len() == 0 {
		delete(l.bySource, c.source)
	}
	c.inAll, c.inSource = nil, nil
}

func (c *conn) Close() error {
	c.Detach()
	return c.Conn.Close()
}
