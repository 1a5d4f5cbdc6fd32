package stream

import (
	"encoding/binary"
	"net"
	"sync"
)

// Raw is a connection beneath TLS. Package tls writes each record of 16 KB by
// itself, and reads about as much at a time; Raw, once told to, gathers what is
// written until flush and reads as much as there is. Read and Write may be
// called by one goroutine each.
type Raw struct {
	net.Conn
	on bool

	in   []byte // read, up to inEnd
	next int
	end  int

	mu  sync.Mutex // the reader writes too, when the other side changes TLS keys
	out *[]byte    // gathered; nil: nothing
}

// Buffers beneath TLS.
const (
	firstRead = 16 << 10
	maxRead   = 256 << 10
	outSize   = maxBatch + chunkSize + 16<<10
)

var outs = sync.Pool{New: func() any { b := make([]byte, 0, outSize); return &b }}

// buffer switches gathering on. Nothing may read or write meanwhile.
func (c *Raw) buffer() { c.on = true }

// NetConn is the connection itself.
func (c *Raw) NetConn() net.Conn { return c.Conn }

// Read implements net.Conn.
func (c *Raw) Read(p []byte) (int, error) {
	if c.next == c.end {
		if !c.on || len(p) >= maxRead {
			return c.Conn.Read(p)
		}
		if c.in == nil {
			c.in = make([]byte, firstRead)
		} else if c.end == len(c.in) && len(c.in) < maxRead { // it was full: much is coming
			c.in = make([]byte, 4*len(c.in))
		}
		n, err := c.Conn.Read(c.in)
		if n <= 0 {
			return n, err
		}
		c.next, c.end = 0, n
	}
	n := copy(p, c.in[c.next:c.end])
	c.next += n
	return n, nil
}

// wholeRecord reports whether a whole TLS record lies here: reading it does not wait.
func (c *Raw) wholeRecord() bool {
	const head = 5 // type, version, length: RFC 8446, section 5.1
	b := c.in[c.next:c.end]
	return len(b) >= head && len(b) >= head+int(binary.BigEndian.Uint16(b[3:]))
}

// Write implements net.Conn.
func (c *Raw) Write(p []byte) (int, error) {
	if !c.on {
		return c.Conn.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out == nil {
		c.out = outs.Get().(*[]byte)
	}
	*c.out = append(*c.out, p...)
	return len(p), nil
}

// flush writes what was gathered.
func (c *Raw) flush() error {
	c.mu.Lock()
	out := c.out
	c.out = nil
	c.mu.Unlock()
	if out == nil {
		return nil
	}
	_, err := c.Conn.Write(*out)
	*out = (*out)[:0]
	outs.Put(out)
	return err
}
