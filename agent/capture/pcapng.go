package capture

import (
	"encoding/binary"
	"io"
	"time"
)

// What is written is pcapng: draft-ietf-opsawg-pcapng, sections 3 and 4, little endian.
const (
	blockSection   = 0x0A0D0D0A
	blockInterface = 1
	blockStats     = 5
	blockPacket    = 6
	linkRaw        = 101 // IPv4 or IPv6 without a link's header
)

// writer writes blocks; it does not buffer.
type writer struct {
	w   io.Writer
	buf []byte
	n   int64 // written
}

func option(b []byte, code uint16, v []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(v)))
	return pad(append(b, v...))
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// block writes a block around body, whose length is a multiple of 4.
func (w *writer) block(kind uint32, body []byte) error {
	n := uint32(len(body) + 12)
	w.buf = binary.LittleEndian.AppendUint32(w.buf[:0], kind)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, n)
	w.buf = append(w.buf, body...)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, n)
	m, err := w.w.Write(w.buf)
	w.n += int64(m)
	return err
}

// begin writes the section's header and its one interface.
func (w *writer) begin(iface, filter, comment string, snap uint32) error {
	b := binary.LittleEndian.AppendUint32(nil, 0x1A2B3C4D)
	b = binary.LittleEndian.AppendUint16(b, 1)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint64(b, ^uint64(0)) // of unknown length
	b = option(b, 1, []byte(comment))
	b = option(b, 4, []byte("causeway-agent"))
	if err := w.block(blockSection, option(b, 0, nil)); err != nil {
		return err
	}
	b = binary.LittleEndian.AppendUint16(nil, linkRaw)
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint32(b, snap)
	b = option(b, 2, []byte(iface))
	b = option(b, 9, []byte{9}) // nanoseconds
	if filter != "" {
		b = option(b, 11, append([]byte{0}, filter...))
	}
	return w.block(blockInterface, option(b, 0, nil))
}

// packet writes what was kept of a packet of length bytes.
func (w *writer) packet(at time.Time, data []byte, length int, out bool) error {
	ns := uint64(at.UnixNano())
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, len(data)+48), 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(ns>>32))
	b = binary.LittleEndian.AppendUint32(b, uint32(ns))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	b = binary.LittleEndian.AppendUint32(b, uint32(length))
	b = pad(append(b, data...))
	flags := uint32(1)
	if out {
		flags = 2
	}
	b = option(b, 2, binary.LittleEndian.AppendUint32(nil, flags))
	return w.block(blockPacket, option(b, 0, nil))
}

// end writes how many packets there were and how many were left out.
func (w *writer) end(at time.Time, seen, dropped uint64) error {
	ns := uint64(at.UnixNano())
	b := binary.LittleEndian.AppendUint32(nil, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(ns>>32))
	b = binary.LittleEndian.AppendUint32(b, uint32(ns))
	b = option(b, 4, binary.LittleEndian.AppendUint64(nil, seen))
	b = option(b, 5, binary.LittleEndian.AppendUint64(nil, dropped))
	return w.block(blockStats, option(b, 0, nil))
}

// headers is how many bytes of an IP packet are headers: what is behind them is payload.
func headers(p []byte) int {
	at, next := 0, -1
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		at = int(p[0]&0xf) * 4
		if binary.BigEndian.Uint16(p[6:])&0x1fff == 0 {
			next = int(p[9])
		}
	case len(p) >= 40 && p[0]>>4 == 6:
		at, next = 40, int(p[6])
		for range 8 { // extension headers
			if next != 0 && next != 43 && next != 44 && next != 60 || at+8 > len(p) {
				break
			}
			size := 8
			if next != 44 {
				size += int(p[at+1]) * 8
			} else if binary.BigEndian.Uint16(p[at+2:])&0xfff8 != 0 {
				return min(at+8, len(p)) // a later fragment
			}
			next, at = int(p[at]), at+size
		}
	default:
		return 0
	}
	switch next {
	case 6:
		if at+13 <= len(p) {
			at += max(20, int(p[at+12]>>4)*4)
		}
	case 17, 1, 58:
		at += 8
	}
	return min(at, len(p))
}
