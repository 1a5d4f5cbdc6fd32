package wggo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"causeway/protocol"
)

// Limits of one group given to the carrier: those of UDP_SEGMENT.
const (
	maxSegments = 64
	maxGroup    = 65507
)

// batchSize is how many datagrams the device takes in one call. A received
// datagram holds one of the device's 64 KB buffers, so this bounds memory too.
const batchSize = 16

var errNoPeer = errors.New("endpoint names no peer")

// endpoint stands for a peer whatever path leads to it.
type endpoint struct {
	number protocol.NodeNumber
	bytes  [4]byte
}

func newEndpoint(n protocol.NodeNumber) *endpoint {
	ep := &endpoint{number: n}
	binary.BigEndian.PutUint32(ep.bytes[:], uint32(n))
	return ep
}

func (ep *endpoint) ClearSrc()           {}
func (ep *endpoint) SrcToString() string { return "" }
func (ep *endpoint) SrcIP() netip.Addr   { return netip.Addr{} }
func (ep *endpoint) DstToString() string { return strconv.FormatUint(uint64(ep.number), 10) }

// DstToBytes goes into the cookie that proves a path under load.
func (ep *endpoint) DstToBytes() []byte { return ep.bytes[:] }

// DstIP is the key of the handshake rate limit, so it differs between peers.
// It is no address that anything is sent to.
func (ep *endpoint) DstIP() netip.Addr {
	var a [16]byte
	a[0] = 0xfd
	copy(a[12:], ep.bytes[:])
	return netip.AddrFrom16(a)
}

// bind is conn.Bind over the engine's carrier and the readers' queue.
type bind struct {
	e      *Engine
	queue  *queue
	groups sync.Pool     // *[maxGroup]byte
	failed atomic.Uint64 // groups that the carrier refused
}

var _ conn.Bind = (*bind)(nil)

func newBind(e *Engine) *bind {
	return &bind{e: e, queue: newQueue(), groups: sync.Pool{New: func() any { return new([maxGroup]byte) }}}
}

// Open may be called again after Close. There is one receive function: it only
// sorts, and the device decrypts on other goroutines.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{b.queue.open()}, port, nil
}

func (b *bind) Close() error {
	b.queue.close()
	return nil
}

// SetMark does nothing: the underlay marks its own sockets.
func (b *bind) SetMark(uint32) error { return nil }

func (b *bind) BatchSize() int { return batchSize }

// ParseEndpoint finds the endpoint of a peer's number.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q is not a node number", s)
	}
	p := b.e.table.Load().byNumber[protocol.NodeNumber(n)]
	if p == nil {
		return nil, fmt.Errorf("endpoint %q: %w", s, errNoPeer)
	}
	return p.ep, nil
}

// blank stands in for what was sent. Nobody writes to it.
var blank [device.MaxMessageSize]byte

// Send sends bufs in order, in as few groups as their sizes allow. It returns
// the first error and tries the rest. It leaves nothing of bufs but the lengths,
// which the device counts: the device keeps the list for each peer, and with it
// buffers of 64 KB that are in its pool already.
func (b *bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	defer func(bufs [][]byte) {
		for i, m := range bufs {
			bufs[i] = blank[:len(m)]
		}
	}(bufs)
	to, ok := ep.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	if to.number == 0 {
		return errNoPeer
	}
	if len(bufs) == 1 && messageType(bufs[0]) != device.MessageTransportType {
		if p := b.e.table.Load().byNumber[to.number]; p != nil {
			p.cross.leaves(time.Now(), bufs[0])
		}
	}
	var first error
	var scratch *[maxGroup]byte
	for len(bufs) > 0 {
		n := run(bufs)
		group := bufs[0]
		if n > 1 {
			if scratch == nil {
				scratch = b.groups.Get().(*[maxGroup]byte)
			}
			group = scratch[:0]
			for _, m := range bufs[:n] {
				group = append(group, m...)
			}
		}
		if err := b.e.cfg.Carrier.Send(to.number, group, len(bufs[0])); err != nil {
			b.failed.Add(1)
			if first == nil {
				first = err
			}
		}
		bufs = bufs[n:]
	}
	if scratch != nil {
		b.groups.Put(scratch)
	}
	return first
}

// run is how many of bufs make one group: messages of one size, the last one
// possibly shorter.
func run(bufs [][]byte) int {
	size := len(bufs[0])
	n, total := 1, size
	for n < len(bufs) && n < maxSegments {
		l := len(bufs[n])
		if l > size || total+l > maxGroup {
			break
		}
		n, total = n+1, total+l
		if l < size {
			break
		}
	}
	return n
}

// messageType is the type of a WireGuard message whose reserved bytes are
// zero; 0 if it is too short to have one.
func messageType(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.LittleEndian.Uint32(b)
}
