package scale

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Targets of a run.
const (
	TargetDelta   = 2 * time.Second   // p99: a fact changes, and the hub shows it
	TargetNetmap  = 3 * time.Second   // p99: state changes, and every agent has acknowledged it
	TargetSession = uint64(100 << 10) // bytes of the hub's live heap for each session over WireGuard
)

// Times are quantiles.
type Times struct {
	Count int           `json:"count"`
	P50   time.Duration `json:"p50_ns"`
	P95   time.Duration `json:"p95_ns"`
	P99   time.Duration `json:"p99_ns"`
	Max   time.Duration `json:"max_ns"`
}

func timesOf(l []time.Duration) Times {
	if len(l) == 0 {
		return Times{}
	}
	slices.Sort(l)
	at := func(q int) time.Duration { return l[min(len(l)-1, len(l)*q/100)] }
	return Times{len(l), at(50), at(95), at(99), l[len(l)-1]}
}

func (t Times) String() string {
	ms := func(d time.Duration) string { return d.Round(time.Millisecond).String() }
	return fmt.Sprintf("p50 %s, p95 %s, p99 %s, max %s (%d)", ms(t.P50), ms(t.P95), ms(t.P99), ms(t.Max), t.Count)
}

// Result is what a run measured.
type Result struct {
	Time       time.Time     `json:"time"`
	Real       int           `json:"real"`
	Simulated  int           `json:"simulated"`
	Processors int           `json:"processors"` // of the machine; hub and agents share them
	Joined     time.Duration `json:"joined_ns"`  // all of them, one after another on 8 connections
	Connected  time.Duration `json:"connected_ns"`

	HeapEmpty   uint64 `json:"heap_empty_bytes"`     // live, before the first node
	HeapSims    uint64 `json:"heap_simulated_bytes"` // live, with the simulated agents connected
	HeapAll     uint64 `json:"heap_all_bytes"`       // live, with all
	HeapSession uint64 `json:"heap_session_bytes"`   // (HeapAll - HeapSims) / Real
	Stacks      uint64 `json:"stacks_bytes"`
	Goroutines  int    `json:"goroutines"`

	Steady     time.Duration `json:"steady_ns"`
	SteadyCPU  float64       `json:"steady_cpu"` // processors that the hub uses
	SteadyPeak uint64        `json:"steady_peak_rss_bytes"`
	Delta      Times         `json:"delta"`
	NetmapEach Times         `json:"netmap_each"` // of every agent and change
	NetmapAll  Times         `json:"netmap_all"`  // of every change, until the last agent

	Reconnect Reconnect `json:"reconnect"`
	Misses    []string  `json:"misses"`
}

// Reconnect is how a hub comes back after it was killed. All times are since its new
// process was started.
type Reconnect struct {
	Ready     time.Duration `json:"ready_ns"`     // it answers
	Connected time.Duration `json:"connected_ns"` // every agent was welcomed
	Netmaps   time.Duration `json:"netmaps_ns"`   // every agent acknowledged a netmap
	Inventory time.Duration `json:"inventory_ns"` // every agent's facts were acknowledged
	AllReady  time.Duration `json:"all_ready_ns"` // the hub calls every node ready
	Dials     int           `json:"failed_sessions"`
	CPU       time.Duration `json:"cpu_ns"`
	PeakRSS   uint64        `json:"peak_rss_bytes"`
	Heap      uint64        `json:"heap_bytes"` // live, afterwards
}

// judge notes what misses its target.
func (r *Result) judge() {
	r.Misses = []string{}
	if r.Delta.P99 > TargetDelta {
		r.Misses = append(r.Misses, fmt.Sprintf("delta p99 %s, want %s", r.Delta.P99, TargetDelta))
	}
	if r.NetmapAll.P99 > TargetNetmap {
		r.Misses = append(r.Misses, fmt.Sprintf("netmap acknowledged by all p99 %s, want %s", r.NetmapAll.P99, TargetNetmap))
	}
	if r.HeapSession > TargetSession {
		r.Misses = append(r.Misses, fmt.Sprintf("%d KB of heap for each session, want %d", r.HeapSession>>10, TargetSession>>10))
	}
}

// Table is the result for a person.
func (r *Result) Table() string {
	var b strings.Builder
	row := func(name, format string, a ...any) { fmt.Fprintf(&b, "  %-34s %s\n", name, fmt.Sprintf(format, a...)) }
	mb := func(n uint64) string { return fmt.Sprintf("%.1f MB", float64(n)/(1<<20)) }
	s := func(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
	fmt.Fprintf(&b, "%d agents over WireGuard and %d simulated ones on one hub; %d processors for all\n", r.Real, r.Simulated, r.Processors)
	row("joined, connected for the first time", "%s, %s", s(r.Joined), s(r.Connected))
	row("live heap: empty, simulated, all", "%s, %s, %s", mb(r.HeapEmpty), mb(r.HeapSims), mb(r.HeapAll))
	row("live heap a WireGuard session", "%d KB (at most %d); %d goroutines with %s of stacks in all", r.HeapSession>>10, TargetSession>>10, r.Goroutines, mb(r.Stacks))
	row("steady load", "%s: %.2f processors, peak resident %s", s(r.Steady), r.SteadyCPU, mb(r.SteadyPeak))
	row("fact to the hub's answer", "%s (p99 at most %s)", r.Delta, TargetDelta)
	row("netmap change to each agent's ack", "%s", r.NetmapEach)
	row("netmap change to the last ack", "%s (p99 at most %s)", r.NetmapAll, TargetNetmap)
	c := r.Reconnect
	row("hub killed and started: answers", "%s", s(c.Ready))
	row("  all welcomed", "%s (%d sessions failed on the way)", s(c.Connected), c.Dials)
	row("  all acknowledged a netmap", "%s", s(c.Netmaps))
	row("  all facts acknowledged", "%s", s(c.Inventory))
	row("  all nodes ready", "%s", s(c.AllReady))
	row("  hub's processor time, memory", "%s, peak resident %s, live heap after %s", s(c.CPU), mb(c.PeakRSS), mb(c.Heap))
	for _, m := range r.Misses {
		fmt.Fprintf(&b, "  MISSED: %s\n", m)
	}
	return b.String()
}

// Write writes the result as JSON into dir and returns the file's path.
func (r *Result) Write(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "scale-"+r.Time.Format("20060102T150405Z")+".json")
	return path, os.WriteFile(path, append(b, '\n'), 0o644)
}
