package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
)

// A datagram of rate is its run (8 bytes) and padding. How many of a run
// arrived is asked over HTTP, which gets through when datagrams do not.
const (
	rateHeader = 8
	ratePause  = 100 * time.Microsecond
	rateIdle   = 50 * time.Millisecond // a pause that long ends a run
	rateGiveUp = 10 * time.Second
	ratePath   = "/rate"
)

// Rate is what rate prints.
type Rate struct {
	Sent     int64   `json:"sent"`
	Received int64   `json:"received"`
	Seconds  float64 `json:"seconds"` // of sending
}

// Counted is the server's answer: datagrams of the newest run.
type Counted struct {
	Run   uint64 `json:"run"`
	Count int64  `json:"count"`
}

// counter counts datagrams of the newest run.
type counter struct {
	run   atomic.Uint64
	count atomic.Int64
}

// ServeHTTP answers with a Counted.
func (k *counter) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	json.NewEncoder(w).Encode(Counted{k.run.Load(), k.count.Load()})
}

func (k *counter) serve(ctx context.Context) error {
	m, err := newMmsg(func() []byte { return make([]byte, 2048) })
	if err != nil {
		return err
	}
	defer m.close()
	port, err := strconv.Atoi(portRate)
	if err != nil {
		return err
	}
	if err := m.listen(port); err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A receiver that waits would be woken for each datagram, on the sender's
	// time. During a run it looks now and then; the socket's buffer is deep.
	for idle := rateIdle; ctx.Err() == nil; {
		n, err := m.receive()
		switch {
		case err != nil:
			return err
		case n > 0:
			idle = 0
		case idle < rateIdle:
			idle += ratePause
		default:
			m.wait(100 * time.Millisecond)
		}
		if n < mmsgBatch && idle < rateIdle {
			nap(ratePause)
		}
		for i := range n {
			b := m.at(i)
			if len(b) < rateHeader {
				continue
			}
			if run := binary.BigEndian.Uint64(b); run != k.run.Load() {
				k.count.Store(0)
				k.run.Store(run)
			}
			k.count.Add(1)
		}
	}
	return nil
}

// sendRate offers pps datagrams of size bytes a second, each a packet of its
// own, and asks how many arrived.
func sendRate(ctx context.Context, addr string, pps float64, size int, d time.Duration) (Rate, error) {
	if size < rateHeader || size > 65000 || pps <= 0 {
		return Rate{}, fmt.Errorf("size %d or rate %v is out of range", size, pps)
	}
	b := make([]byte, size)
	run := uint64(os.Getpid())<<32 | uint64(time.Now().UnixNano())&0xffffffff
	binary.BigEndian.PutUint64(b, run)
	m, err := newMmsg(func() []byte { return b })
	if err != nil {
		return Rate{}, err
	}
	defer m.close()
	if err := m.dial(net.JoinHostPort(addr, portRate)); err != nil {
		return Rate{}, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var r Rate
	start := time.Now()
	for {
		e := time.Since(start)
		if e >= d || ctx.Err() != nil {
			break
		}
		due := int64(e.Seconds()*pps) - r.Sent
		if due > 0 {
			n, err := m.send(int(due))
			if err != nil {
				n = 1 // a full queue on the way: offered and lost
			}
			r.Sent += int64(n)
		}
		if due <= mmsgBatch {
			nap(ratePause)
		}
	}
	r.Seconds = time.Since(start).Seconds()
	r.Received, err = askCount(ctx, addr, run)
	return r, err
}

// askCount asks until two answers in a row are the same: by then the queues
// are empty.
func askCount(ctx context.Context, addr string, run uint64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, rateGiveUp)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(addr, portHTTP)+ratePath, nil)
	if err != nil {
		return 0, err
	}
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for last := int64(-1); ; {
		var k Counted
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			err = json.NewDecoder(resp.Body).Decode(&k)
			resp.Body.Close()
		}
		if err != nil {
			return 0, fmt.Errorf("ask for the count: %w", err)
		}
		if k.Run != run {
			k.Count = 0 // not one arrived
		}
		if k.Count == last {
			return last, nil
		}
		last = k.Count
		select {
		case <-ctx.Done():
			return 0, errors.New("the count does not come to rest")
		case <-tick.C:
		}
	}
}
