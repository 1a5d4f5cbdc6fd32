package sock

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Group gathers datagrams for one addressee out of the buffers of a Batch,
// without copying, until they are written as one. The zero value is empty.
type Group struct {
	iovs    [maxSegments]unix.Iovec
	n       int // of iovs
	count   int // of datagrams
	bytes   int
	segment int
	short   bool // the last one is shorter: nothing may follow
}

// Len is the number of datagrams gathered; Bytes their length.
func (g *Group) Len() int { return g.count }

// Bytes is the length of what was gathered.
func (g *Group) Bytes() int { return g.bytes }

// Segment is the length of each datagram; the last one may be shorter.
func (g *Group) Segment() int { return g.segment }

// Kind is the first byte of what was gathered; 0: nothing was.
func (g *Group) Kind() byte {
	if g.n == 0 {
		return 0
	}
	return *g.iovs[0].Base
}

// Pieces appends what was gathered to dst, piece by piece. They are good until
// Reset.
func (g *Group) Pieces(dst [][]byte) [][]byte {
	for _, v := range g.iovs[:g.n] {
		dst = append(dst, unsafe.Slice(v.Base, int(v.Len)))
	}
	return dst
}

// Reset empties g.
func (g *Group) Reset() {
	clear(g.iovs[:g.n])
	g.n, g.count, g.bytes, g.segment, g.short = 0, 0, 0, 0, false
}

// Add takes d, which is not empty and stays untouched until the group is
// written. It reports false if d cannot go with what is there: write that first.
func (g *Group) Add(d []byte) bool {
	if g.count > 0 && (g.short || len(d) > g.segment || g.count == maxSegments || g.bytes+len(d) > maxGroup) {
		return false
	}
	if g.count == 0 {
		g.segment = len(d)
	}
	g.short = len(d) < g.segment
	g.count++
	g.bytes += len(d)
	if g.n > 0 {
		// As numbers: a pointer to the end of one buffer may be no pointer at all.
		if l := &g.iovs[g.n-1]; uintptr(unsafe.Pointer(l.Base))+uintptr(l.Len) == uintptr(unsafe.Pointer(&d[0])) {
			l.SetLen(int(l.Len) + len(d))
			return true
		}
	}
	g.iovs[g.n].Base = &d[0]
	g.iovs[g.n].SetLen(len(d))
	g.n++
	return true
}

// WriteGroup sends what was gathered, from the given address where that is
// valid, with the same fallbacks as Write. It does not wait for room: ErrFull.
func (c *Conn) WriteGroup(from netip.Addr, to netip.AddrPort, g *Group) error {
	if g.count == 0 {
		return nil
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return net.ErrClosed
	}
	if !c.six && !to.Addr().Unmap().Is4() || !to.IsValid() {
		return ErrFamily
	}
	if g.count == 1 {
		return c.sendv(from, to, g.iovs[:1], 0, 0)
	}
	if c.gso && !c.refused(to) {
		err := c.sendv(from, to, g.iovs[:g.n], g.segment, 0)
		if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EMSGSIZE) {
			return err
		}
		if err = c.groupSingly(from, to, g); err == nil {
			c.refuse(to)
		}
		return err
	}
	return c.groupSingly(from, to, g)
}

func (c *Conn) groupSingly(from netip.Addr, to netip.AddrPort, g *Group) error {
	var first error
	for _, v := range g.iovs[:g.n] {
		if err := c.writeSingly(from, to, unsafe.Slice(v.Base, int(v.Len)), g.segment, 0); err != nil && first == nil {
			first = err
		}
	}
	runtime.KeepAlive(g)
	return first
}
