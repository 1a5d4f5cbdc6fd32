package sock

import (
	"encoding/binary"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Message is a group of datagrams of one sender: they lie behind each other in
// Data, each Segment bytes long, the last one possibly shorter.
type Message struct {
	From    netip.AddrPort
	Data    []byte
	Segment int
}

const (
	batchSize  = 8 // groups in one system call
	bufferLen  = 65536
	controlLen = 64
)

type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// Batch is what one Read fills. Data of its messages is valid until the next
// Read and may be written to.
type Batch struct {
	hdrs     [batchSize]mmsghdr
	iovs     [batchSize]unix.Iovec
	names    [batchSize]unix.RawSockaddrInet6
	controls [batchSize][controlLen]byte
	bufs     [batchSize][]byte
	messages [batchSize]Message
}

// NewBatch allocates a batch.
func NewBatch() *Batch {
	b := &Batch{}
	for i := range b.hdrs {
		b.bufs[i] = make([]byte, bufferLen)
		b.iovs[i].Base = &b.bufs[i][0]
		b.iovs[i].SetLen(bufferLen)
		h := &b.hdrs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		h.Iov = &b.iovs[i]
		h.SetIovlen(1)
		h.Control = &b.controls[i][0]
	}
	return b
}

// Read waits for datagrams and takes what is there, up to a batch. After Close
// it returns net.ErrClosed. Any other error may be of one datagram alone.
func (c *Conn) Read(b *Batch) ([]Message, error) {
	for i := range b.hdrs {
		h := &b.hdrs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlLen)
	}
	c.reading.Lock()
	defer c.reading.Unlock()
	var n int
	for n == 0 {
		if c.isClosed() {
			return nil, net.ErrClosed
		}
		r, _, e := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&b.hdrs[0])), batchSize, unix.MSG_WAITFORONE, 0, 0)
		switch {
		case e == 0:
			n = int(r)
		case e != unix.EINTR && !c.isClosed():
			return nil, e
		}
	}
	if c.isClosed() { // an empty datagram comes of Close
		return nil, net.ErrClosed
	}
	out := b.messages[:0]
	for i := range n {
		h := &b.hdrs[i]
		if h.hdr.Flags&unix.MSG_TRUNC != 0 || h.len == 0 {
			continue
		}
		m := Message{From: addrPort(&b.names[i]), Data: b.bufs[i][:h.len], Segment: int(h.len)}
		if s := groSize(b.controls[i][:h.hdr.Controllen]); s > 0 && s < m.Segment {
			m.Segment = s
		}
		out = append(out, m)
	}
	return out, nil
}

func addrPort(sa *unix.RawSockaddrInet6) netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
}

// groSize finds the segment size in the control messages; 0: one datagram.
func groSize(c []byte) int {
	const head = unix.SizeofCmsghdr
	for len(c) >= head {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&c[0]))
		l := int(h.Len)
		if l < head || l > len(c) {
			return 0
		}
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && l >= head+4 {
			return int(int32(binary.NativeEndian.Uint32(c[head:])))
		}
		c = c[min(unix.CmsgSpace(l-head), len(c)):]
	}
	return 0
}
