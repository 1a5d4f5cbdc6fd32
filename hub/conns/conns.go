// Package conns bounds the connections of a listener whose callers nobody knows
// yet. Whoever holds one longest loses it when there are too many, of his source
// first: slow connections never keep a new one out.
package conns

import (
	"container/list"
	"net"
	"net/netip"
	"sync"

	"causeway/tunnel/underlay/stream"
)

// Listener bounds the connections of the one in it.
type Listener struct {
	net.Listener
	max, perSource int

	mu       sync.Mutex
	all      *list.List                // of *Conn, oldest first
	bySource map[netip.Addr]*list.List // likewise
}

// New bounds the connections that l accepts, in all and for each source.
func New(l net.Listener, max, perSource int) *Listener {
	return &Listener{Listener: l, max: max, perSource: perSource, all: list.New(), bySource: map[netip.Addr]*list.List{}}
}

// Accept returns the next connection, after closing one that is too many.
func (l *Listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: nc, l: l}
	if a, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err == nil {
		c.source = stream.SourceOf(a.Addr())
	}
	var victim *Conn
	l.mu.Lock()
	mine := l.bySource[c.source]
	if mine == nil {
		mine = list.New()
		l.bySource[c.source] = mine
	}
	switch {
	case mine.Len() >= l.perSource:
		victim = mine.Front().Value.(*Conn)
	case l.all.Len() >= l.max:
		victim = l.all.Front().Value.(*Conn)
	}
	c.inSource, c.inAll = mine.PushBack(c), l.all.PushBack(c)
	l.mu.Unlock()
	if victim != nil {
		victim.Close()
	}
	return c, nil
}

// Conn is a connection that is counted until it is closed or detached.
type Conn struct {
	net.Conn
	l               *Listener
	source          netip.Addr
	inAll, inSource *list.Element // nil: counted no longer
}

// NetConn is the connection itself.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Detach takes the connection out of the count, for one that is bounded otherwise.
func (c *Conn) Detach() {
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

// Close closes the connection.
func (c *Conn) Close() error {
	c.Detach()
	return c.Conn.Close()
}
