package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Flood is what flood prints: bytes that the server had read to the end, and
// the time that took.
type Flood struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// drain reads a connection to its end and answers with the number of bytes.
func drain(c net.Conn) {
	// Without the struct io.CopyBuffer would splice and pass the buffer by.
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
	if err == nil {
		c.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
	}
}

// flood sends by several TCP connections at once for a while, dealt out to the
// addresses between commas. What counts is what arrived: buffers of the sender
// are emptied within the time.
func flood(ctx context.Context, addrs string, streams int, d time.Duration) (Flood, error) {
	if streams < 1 {
		return Flood{}, fmt.Errorf("%d streams", streams)
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	defer context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Close()
		}
	})()
	to := strings.Split(addrs, ",")
	for i := range streams {
		c, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(to[i%len(to)], portFlood))
		if err != nil {
			return Flood{}, err
		}
		conns = append(conns, c)
	}
	start := time.Now()
	got := make([]int64, streams)
	var g errgroup.Group
	for i, c := range conns {
		g.Go(func() error {
			if err := c.SetDeadline(start.Add(d)); err != nil {
				return err
			}
			b := make([]byte, 256<<10)
			for {
				if _, err := c.Write(b); errors.Is(err, os.ErrDeadlineExceeded) {
					break
				} else if err != nil {
					return fmt.Errorf("send: %w", err)
				}
			}
			if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				return err
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				return err
			}
			var count [8]byte
			if _, err := io.ReadFull(c, count[:]); err != nil {
				return fmt.Errorf("read the server's count: %w", err)
			}
			got[i] = int64(binary.BigEndian.Uint64(count[:]))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return Flood{}, err
	}
	f := Flood{Seconds: time.Since(start).Seconds()}
	for _, n := range got {
		f.Bytes += n
	}
	return f, nil
}
