package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// How much garbage the hub lets pile up beside what is live, in percent, before it collects it.
//
// On a small heap little: what a flood left behind goes sooner than by Go's 100, and with it what the NATS
// server and WireGuard keep in pools, which live for two collections. A flood of NATS has it collect once
// or twice a second, 15 ms of one processor each. With 720 agents and 120 MB live, stacks included, 15
// costs 0.09 of a processor beside 0.31, and takes the peak from 320 to 198 MB: a large hub has more
// agents whose garbage it is, and less to fear of one.
const (
	gcSmall = 15
	gcLarge = 50
	// largeHeap is what is live in a large hub, in bytes: heap and stacks.
	largeHeap = 96 << 20
	gcLook    = 10 * time.Second
)

// collect has the garbage collector follow the size of what is live until ctx ends, unless GOGC is set.
func collect(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	t := time.NewTicker(gcLook)
	defer t.Stop()
	now := gcSmall
	debug.SetGCPercent(now)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if want := gcPercent(live(), now); want != now {
			now = want
			debug.SetGCPercent(now)
		}
	}
}

// gcPercent is the percentage for so many bytes that are live; one that is near the border stays as
// it is.
func gcPercent(live uint64, now int) int {
	switch {
	case live >= largeHeap:
		return gcLarge
	case live < largeHeap/4*3:
		return gcSmall
	}
	return now
}

// live is what the last collection found in use: heap and stacks, in bytes.
func live() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64() + s[1].Value.Uint64()
}
