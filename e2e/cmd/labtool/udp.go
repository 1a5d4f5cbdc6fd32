package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The UDP transfer is go-back-N. A datagram: transfer (8 bytes), sequence (4),
// total (4), data. An answer: transfer (8), next expected sequence (4), and
// once all arrived the SHA-256 of the data (32).
const (
	udpHeader = 16
	udpWindow = 256
	// udpAckEvery keeps answers from being half of the traffic.
	udpAckEvery = 32
	udpTimeout  = 100 * time.Millisecond
	udpGiveUp   = 30 * time.Second
)

func serveUDP(ctx context.Context) error {
	c, err := net.ListenPacket("udp", ":"+portUDP)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	u := c.(*net.UDPConn)
	u.SetReadBuffer(4 << 20)
	type transfer struct {
		next uint32
		sum  hash.Hash
	}
	type key struct {
		from netip.AddrPort
		id   uint64
	}
	open := map[key]*transfer{}
	b := make([]byte, 65536)
	for {
		n, from, err := u.ReadFromUDPAddrPort(b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if n < udpHeader {
			continue
		}
		k := key{from, binary.BigEndian.Uint64(b)}
		seq, total := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
		t := open[k]
		if t == nil {
			if len(open) > 64 {
				clear(open)
			}
			t = &transfer{sum: sha256.New()}
			open[k] = t
		}
		fresh := seq == t.next
		if fresh {
			t.sum.Write(b[udpHeader:n])
			t.next++
		}
		if fresh && t.next%udpAckEvery != 0 && t.next != total {
			continue
		}
		a := binary.BigEndian.AppendUint64(nil, k.id)
		a = binary.BigEndian.AppendUint32(a, t.next)
		if t.next == total {
			a = t.sum.Sum(a)
		}
		u.WriteToUDPAddrPort(a, from) // a lost answer is asked for again
	}
}

// setSegment makes the kernel cut every write into datagrams of that size
// (UDP_SEGMENT, udp(7)), as QUIC stacks do.
func setSegment(c *net.UDPConn, size int) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	if err := rc.Control(func(fd uintptr) { e = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size) }); err != nil {
		return err
	}
	return e
}

// sendUDP sends n bytes in datagrams of size; with group, up to that many of
// them in one system call.
func sendUDP(ctx context.Context, addr string, n int64, size, group int, marker string) (Transfer, error) {
	if size <= udpHeader || size > 65000 {
		return Transfer{}, fmt.Errorf("datagram size %d", size)
	}
	conn, err := net.Dial("udp", net.JoinHostPort(addr, portUDP))
	if err != nil {
		return Transfer{}, err
	}
	c := conn.(*net.UDPConn)
	defer c.Close()
	if group = max(1, min(group, 64, 65000/size)); group > 1 {
		if err := setSegment(c, size); err != nil {
			return Transfer{}, fmt.Errorf("set segment size: %w", err)
		}
	}
	data := size - udpHeader
	total := uint32((n + int64(data) - 1) / int64(data))
	id := uint64(os.Getpid())<<32 | uint64(time.Now().UnixNano())&0xffffffff
	src, sum := payload(marker), sha256.New()
	start, progress := time.Now(), time.Now()
	var base, next, made uint32
	var resent int64
	window := make([][]byte, udpWindow) // datagrams base to made-1, by sequence modulo the window
	left := n
	in := make([]byte, 128)
	batch := make([]byte, 0, group*size)
	// An error of a write is one like port unreachable: the loss timer
	// decides.
	flush := func() {
		if len(batch) > 0 {
			c.Write(batch)
			batch = batch[:0]
		}
	}
	for base < total {
		for ; next < total && next < base+udpWindow; next++ {
			i := next % udpWindow
			if next == made {
				k := int(min(left, int64(data)))
				p := make([]byte, udpHeader+k)
				binary.BigEndian.PutUint64(p, id)
				binary.BigEndian.PutUint32(p[8:], next)
				binary.BigEndian.PutUint32(p[12:], total)
				src.Read(p[udpHeader:])
				sum.Write(p[udpHeader:])
				window[i], left, made = p, left-int64(k), made+1
			} else {
				resent++
			}
			if batch = append(batch, window[i]...); len(batch)+size > cap(batch) {
				flush()
			}
		}
		flush()
		c.SetReadDeadline(time.Now().Add(udpTimeout))
		k, err := c.Read(in)
		switch {
		case ctx.Err() != nil:
			return Transfer{}, ctx.Err()
		case time.Since(progress) > udpGiveUp:
			return Transfer{}, fmt.Errorf("no progress for %s at datagram %d of %d", udpGiveUp, base, total)
		case errors.Is(err, os.ErrDeadlineExceeded):
			next = base
			continue
		case err != nil || k < 12 || binary.BigEndian.Uint64(in) != id:
			continue
		}
		ack := binary.BigEndian.Uint32(in[8:])
		if ack > base && ack <= made {
			base, progress = ack, time.Now()
			next = max(next, base)
		}
		if ack == total && k == 12+sha256.Size {
			want := hex.EncodeToString(sum.Sum(nil))
			if got := hex.EncodeToString(in[12:k]); got != want {
				return Transfer{}, fmt.Errorf("checksum %s was sent, %s arrived", want, got)
			}
			s := time.Since(start).Seconds()
			return Transfer{Bytes: n, Seconds: s, Mbits: float64(n) * 8 / s / 1e6, SHA256: want, Resent: resent}, nil
		}
	}
	return Transfer{}, errors.New("no checksum came back")
}
