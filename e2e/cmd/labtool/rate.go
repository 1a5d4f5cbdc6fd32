package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A datagram of rate: run (8 bytes), then 0 and padding. A question has 1
// there and nothing after it; the answer is run and the number of datagrams
// that arrived of it (8).
const (
	rateQuestion = 9
	rateAnswer   = 16
	ratePause    = 100 * time.Microsecond
	rateBurst    = 64
	rateGiveUp   = 5 * time.Second
)

// Rate is what rate prints.
type Rate struct {
	Sent     int64   `json:"sent"`
	Received int64   `json:"received"`
	Seconds  float64 `json:"seconds"` // of sending
}

// serveRate counts datagrams of the newest run.
func serveRate(ctx context.Context) error {
	c, err := net.ListenPacket("udp", ":"+portRate)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	u := c.(*net.UDPConn)
	u.SetReadBuffer(4 << 20)
	var run uint64
	var count uint64
	b := make([]byte, 65536)
	for {
		n, from, err := u.ReadFromUDPAddrPort(b)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if n < rateQuestion {
			continue
		}
		if id := binary.BigEndian.Uint64(b); id != run {
			run, count = id, 0
		}
		if n > rateQuestion || b[8] != 1 {
			count++
			continue
		}
		a := binary.BigEndian.AppendUint64(nil, run)
		u.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(a, count), from) // a lost answer is asked for again
	}
}

// sendRate offers pps datagrams of size bytes a second, each by a system call
// of its own, and asks how many arrived.
func sendRate(ctx context.Context, addr string, pps float64, size int, d time.Duration) (Rate, error) {
	if size <= rateQuestion || size > 65000 || pps <= 0 {
		return Rate{}, fmt.Errorf("size %d or rate %v is out of range", size, pps)
	}
	conn, err := net.Dial("udp", net.JoinHostPort(addr, portRate))
	if err != nil {
		return Rate{}, err
	}
	c := conn.(*net.UDPConn)
	defer c.Close()
	b := make([]byte, size)
	binary.BigEndian.PutUint64(b, uint64(os.Getpid())<<32|uint64(time.Now().UnixNano())&0xffffffff)
	// Go's timers are too coarse for even spacing: a thread that sleeps by
	// itself.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var r Rate
	start := time.Now()
	for {
		e := time.Since(start)
		if e >= d || ctx.Err() != nil {
			break
		}
		due := int64(e.Seconds() * pps)
		for k := 0; r.Sent < due && k < rateBurst; k++ {
			// A full queue answers with an error: it counts as offered.
			c.Write(b)
			r.Sent++
		}
		if r.Sent >= due {
			pause := unix.NsecToTimespec(int64(ratePause))
			unix.Nanosleep(&pause, nil)
		}
	}
	r.Seconds = time.Since(start).Seconds()
	r.Received, err = askCount(ctx, c, b[:8])
	return r, err
}

// askCount asks until two answers in a row are the same: by then the queues
// are empty.
func askCount(ctx context.Context, c *net.UDPConn, run []byte) (int64, error) {
	last := int64(-1)
	question := append(append([]byte(nil), run...), 1)
	in := make([]byte, 64)
	for end := time.Now().Add(rateGiveUp); time.Now().Before(end) && ctx.Err() == nil; {
		c.Write(question)
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Read(in)
		if err != nil || n != rateAnswer || string(in[:8]) != string(run) {
			continue
		}
		got := int64(binary.BigEndian.Uint64(in[8:]))
		if got == last {
			return got, nil
		}
		last = got
		pause := unix.NsecToTimespec(int64(20 * time.Millisecond))
		unix.Nanosleep(&pause, nil)
	}
	return 0, errors.Join(errors.New("no count came back"), ctx.Err())
}
