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
	Local   netip.Addr // that it came to; invalid without Options.Sticky
	Data    []byte
	Segment int
}

const (
	batchSize  = 8 // groups in one system call, unless said otherwise
	bufferLen  = 65536
	controlLen = 96
)

type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// Batch is what one Read fills. Data of its messages is valid until the next
// Read and may be written to.
type Batch struct {
	hdrs     []mmsghdr
	iovs     []unix.Iovec
	names    []unix.RawSockaddrInet6
	controls [][controlLen]byte
	bufs     [][]byte
	messages []Message
}

// NewBatch allocates a batch of the usual size.
func NewBatch() *Batch { return NewBatchOf(batchSize) }

// NewBatchOf allocates a batch of n groups: address space of n times 64 KB, of
// which the kernel gives what was ever filled.
func NewBatchOf(n int) *Batch {
	b := &Batch{hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), names: make([]unix.RawSockaddrInet6, n),
		controls: make([][controlLen]byte, n), bufs: make([][]byte, n), messages: make([]Message, n)}
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
		r, _, e := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&b.hdrs[0])), uintptr(len(b.hdrs)), unix.MSG_WAITFORONE, 0, 0)
		switch {
		case e == 0:
			n = int(r)
		case e != unix.EINTR && e != unix.EAGAIN && !c.isClosed(): // EAGAIN: a held socket looks whether it was closed
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
		m.parse(b.controls[i][:h.hdr.Controllen])
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

// parse takes segment size and local address out of the control messages.
func (m *Message) parse(c []byte) {
	const head = unix.SizeofCmsghdr
	for len(c) >= head {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&c[0]))
		l := int(h.Len)
		if l < head || l > len(c) {
			return
		}
		d := c[head:l]
		switch {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(d) >= 4:
			if s := int(int32(binary.NativeEndian.Uint32(d))); s > 0 && s < m.Segment {
				m.Segment = s
			}
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(d) >= unix.SizeofInet4Pktinfo:
			m.Local = netip.AddrFrom4([4]byte(d[4:8])) // ipi_spec_dst
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(d) >= unix.SizeofInet6Pktinfo:
			m.Local = netip.AddrFrom16([16]byte(d)).Unmap()
		}
		c = c[min(unix.CmsgSpace(l-head), len(c)):]
	}
}
