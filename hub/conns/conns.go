// Package conns bounds the connections of strangers. Whoever holds one longest loses it when there are too many, of the source that has
// most: slow connections never keep a new one out, and no source keeps out another.
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
	all      int
	last     uint64                    // number of the newest
	bySource map[netip.Addr]*list.List // of *Conn, oldest first
}

// New bounds the connections that l accepts, in all and for each source. If a Files guards l,
// they are the ones that go when descriptors get few.
func New(l net.Listener, max, perSource int) *Listener {
	b := &Listener{Listener: l, max: max, perSource: perSource, bySource: map[netip.Addr]*list.List{}}
	if f := find(l); f != nil {
		f.add(b)
	}
	return b
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
	case l.all >= l.max:
		victim = l.oldestOfMost()
	}
	l.last++
	c.number = l.last
	c.in = mine.PushBack(c)
	l.all++
	l.mu.Unlock()
	if victim != nil {
		victim.abort()
	}
	return c, nil
}

// oldestOfMost is the oldest connection of the source that has most; nil: there is none. l.mu
// is held.
func (l *Listener) oldestOfMost() *Conn {
	var most *list.List
	for _, s := range l.bySource {
		if s.Len() > 0 && (most == nil || s.Len() > most.Len() || s.Len() == most.Len() && s.Front().Value.(*Conn).older(most.Front().Value.(*Conn))) {
			most = s
		}
	}
	if most == nil {
		return nil
	}
	return most.Front().Value.(*Conn)
}

func (l *Listener) victim() *Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.oldestOfMost()
}

func (l *Listener) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all
}

// Conn is a connection that is counted until it is closed or detached.
type Conn struct {
	net.Conn
	l      *Listener
	source netip.Addr
	number uint64        // of the listener's, in order
	in     *list.Element // nil: counted no longer
}

func (c *Conn) older(o *Conn) bool { return c.number < o.number }

// NetConn is the connection itself.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// Detach takes the connection out of the count, for one that is bounded otherwise.
func (c *Conn) Detach() {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.in == nil {
		return
	}
	mine := l.bySource[c.source]
	mine.Remove(c.in)
	if mine.Len() == 0 {
		delete(l.bySource, c.source)
	}
	l.all--
	c.in = nil
}

// abort closes a connection that has to make room, so that nothing of it is kept where the
// connection can do so.
func (c *Conn) abort() {
	c.Detach()
	if a, ok := c.Conn.(interface{ Abort() }); ok {
		a.Abort()
	}
	c.Conn.Close()
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.Detach()
	return c.Conn.Close()
}
