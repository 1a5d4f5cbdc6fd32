package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"

	probing "github.com/prometheus-community/pro-bing"
	"golang.org/x/sync/errgroup"
)

// Ping is the result for one address.
type Ping struct {
	Addr string  `json:"addr"`
	OK   bool    `json:"ok"`
	RTT  float64 `json:"rtt_ms"`
}

// ping sends echo requests to all addresses at once until each answered or
// two seconds have passed.
func ping(ctx context.Context, addrs []string) error {
	out := make([]Ping, len(addrs))
	var g errgroup.Group
	g.SetLimit(32)
	for i, a := range addrs {
		g.Go(func() error {
			p, err := probing.NewPinger(a)
			if err != nil {
				return fmt.Errorf("ping %s: %w", a, err)
			}
			p.SetPrivileged(true)
			p.Interval, p.Timeout, p.Count = 200*time.Millisecond, 2*time.Second, 10
			p.OnRecv = func(*probing.Packet) { p.Stop() }
			if err := p.RunWithContext(ctx); err != nil {
				return fmt.Errorf("ping %s: %w", a, err)
			}
			s := p.Statistics()
			out[i] = Ping{Addr: a, OK: s.PacketsRecv > 0, RTT: float64(s.AvgRtt) / 1e6}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// RoundTrips is what rtt prints, in milliseconds. Lost echoes are left out of
// the percentiles.
type RoundTrips struct {
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
}

// roundTrips pings one address for a while, and waits that long for the last answers.
func roundTrips(ctx context.Context, addr string, every, d, wait time.Duration) (RoundTrips, error) {
	p, err := probing.NewPinger(addr)
	if err != nil {
		return RoundTrips{}, fmt.Errorf("ping %s: %w", addr, err)
	}
	p.SetPrivileged(true)
	p.Interval, p.Count, p.Timeout = every, max(1, int(d/every)), d+wait
	if err := p.RunWithContext(ctx); err != nil {
		return RoundTrips{}, fmt.Errorf("ping %s: %w", addr, err)
	}
	s := p.Statistics()
	r := RoundTrips{Sent: s.PacketsSent, Received: len(s.Rtts)}
	if r.Received == 0 {
		return r, fmt.Errorf("ping %s: no answer", addr)
	}
	slices.Sort(s.Rtts)
	at := func(percent int) float64 { return float64(s.Rtts[min(r.Received-1, r.Received*percent/100)]) / 1e6 }
	r.P50, r.P99 = at(50), at(99)
	return r, nil
}
