package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
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
