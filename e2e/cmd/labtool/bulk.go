package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// bulk sends at an even pace, or as fast as it can if that is 0, until it is told to
// end, and compares checksums: a transfer that has to live through whatever happens
// meanwhile. It prints 'connected' when it has begun.
func bulk(ctx context.Context, addr string, pace int64) (Transfer, error) {
	c, err := net.DialTimeout("tcp", net.JoinHostPort(addr, portTCP), 10*time.Second)
	if err != nil {
		return Transfer{}, err
	}
	defer c.Close()
	fmt.Fprintln(os.Stderr, "connected")
	const every = 20 * time.Millisecond
	t := time.NewTicker(every)
	defer t.Stop()
	h, src, start := sha256.New(), payload(""), time.Now()
	var sent int64
	for w := io.MultiWriter(c, h); ctx.Err() == nil; {
		// What was missed while the connection stood still is made good.
		due := int64(time.Since(start).Seconds()*float64(pace)) - sent
		if pace == 0 {
			due = 1 << 20
		}
		n, err := io.CopyN(w, src, min(due, 1<<20))
		sent += n
		if err != nil {
			return Transfer{}, fmt.Errorf("send after %d bytes: %w", sent, err)
		}
		if pace == 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	return concluded(c, h, sent, start)
}
