package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"causeway/netns/lab"
)

// Figures of one measurement. Those of processes have a role behind them.
const (
	figTCP1      = "tcp1 Gbit/s"
	figTCP8      = "tcp8 Gbit/s"
	figTCP10     = "tcp10 Gbit/s"
	figUDP       = "udp200 kpps"
	figIdleP50   = "ping idle p50 ms"
	figIdleP99   = "ping idle p99 ms"
	figLoadedP50 = "ping tcp1 p50 ms"
	figLoadedP99 = "ping tcp1 p99 ms"
	figCPU1      = "tcp1 CPU-s/GB "
	figCPU8      = "tcp8 CPU-s/GB "
	figCPU10     = "tcp10 CPU-s/GB "
	figIdleMB    = "idle MB "
	figLoadedMB  = "tcp8 MB "
)

// Roles of processes; the sender's side changes from round to round.
const (
	roleSender   = "sender"
	roleHub      = "hub"
	roleReceiver = "receiver"
)

var roles = []string{roleSender, roleHub, roleReceiver}

const (
	pingEvery    = 10 * time.Millisecond
	datagramSize = 200
	firstRate    = 40e3 // datagrams a second, in the first round
	maxLoss      = 0.01
	rateSteps    = 3 // of the bisection, once the rate is bracketed
	rateTries    = 12
)

// measure takes the figures of a world once.
func (w *world) measure(ctx context.Context, round int, o options) (map[string]float64, error) {
	if err := w.settle(ctx); err != nil {
		return nil, err
	}
	f := map[string]float64{}
	from, to := w.sites[0], w.sites[1:]
	var err error
	if w.measures == fanout {
		err = w.streams(ctx, f, from, to, active, o)
	} else {
		if round%2 == 1 {
			from, to = w.sites[1], w.sites[:1]
		}
		err = w.twoSites(ctx, f, from, to[0], o)
	}
	if err != nil {
		return nil, err
	}
	if err := w.onPath(ctx); err != nil {
		return nil, fmt.Errorf("after the load: %w", err)
	}
	return f, nil
}

// twoSites measures between two sites.
func (w *world) twoSites(ctx context.Context, f map[string]float64, from, to *site, o options) error {
	var idle roundTrips
	if err := w.tool(ctx, from.pod, &idle, "rtt", to.at, "-every", pingEvery.String(), "-for", seconds(o.Seconds)); err != nil {
		return err
	}
	f[figIdleP50], f[figIdleP99] = idle.P50, idle.P99
	counts := []int{1, 8}
	switch w.name { // to compare fan-outs with
	case colPlain, colWGDirect, colInlineDirect, colInlineRelay:
		counts = append(counts, active)
	}
	for _, n := range counts {
		if err := w.streams(ctx, f, from, []*site{to}, n, o); err != nil {
			return err
		}
	}
	for role, name := range map[string]string{roleSender: from.name, roleReceiver: to.name, roleHub: roleHub} {
		if mb, ok := w.idle[name]; ok {
			f[figIdleMB+role] = mb
		}
	}
	if w.measures != all {
		return nil
	}
	pps, err := w.datagrams(ctx, from, to, o)
	f[figUDP] = pps / 1e3
	return err
}

// Figures of a number of TCP streams.
var (
	rateOf = map[int]string{1: figTCP1, 8: figTCP8, active: figTCP10}
	cpuOf  = map[int]string{1: figCPU1, 8: figCPU8, active: figCPU10}
)

// streams measures n TCP streams to one site, or dealt out to several.
func (w *world) streams(ctx context.Context, f map[string]float64, from *site, to []*site, n int, o options) error {
	// Memory and processor time belong to roles, and roles to sides.
	procs := map[string]*lab.Process{roleSender: from.proc, roleHub: w.relay}
	if len(to) == 1 {
		procs[roleReceiver] = to[0].proc
	}
	before, err := usageOf(procs)
	if err != nil {
		return err
	}
	var addrs []string
	for _, s := range to {
		addrs = append(addrs, s.at)
	}
	var fl flood
	var g errgroup.Group
	g.Go(func() error {
		return w.tool(ctx, from.pod, &fl, "flood", strings.Join(addrs, ","), "-streams", fmt.Sprint(n), "-for", seconds(o.Seconds))
	})
	if n == 1 {
		var loaded roundTrips
		g.Go(func() error {
			err := w.tool(ctx, from.pod, &loaded, "rtt", addrs[0], "-every", pingEvery.String(), "-for", seconds(o.Seconds))
			f[figLoadedP50], f[figLoadedP99] = loaded.P50, loaded.P99
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if fl.Bytes == 0 || fl.Seconds <= 0 {
		return errors.New("nothing arrived")
	}
	after, err := usageOf(procs)
	if err != nil {
		return err
	}
	f[rateOf[n]] = float64(fl.Bytes) * 8 / fl.Seconds / 1e9
	for role := range after {
		if cpu := cpuOf[n]; cpu != "" {
			f[cpu+role] = (after[role].cpu - before[role].cpu) / (float64(fl.Bytes) / 1e9)
		}
		if n == 8 {
			f[figLoadedMB+role] = after[role].rss
		}
	}
	return nil
}

// datagrams looks for the highest offered rate with little loss and returns
// the rate received then; zero if every rate tried lost more.
func (w *world) datagrams(ctx context.Context, from, to *site, o options) (float64, error) {
	d := seconds(max(0.4, o.Seconds/3))
	best, err := highest(w.pps, func(pps float64) (probed, error) {
		var r rate
		err := w.tool(ctx, from.pod, &r, "rate", to.at, "-pps", fmt.Sprintf("%.0f", pps), "-size", fmt.Sprint(datagramSize), "-for", d)
		if err != nil || r.Sent == 0 {
			return probed{}, err
		}
		return probed{
			offered:  float64(r.Sent) / r.Seconds,
			received: float64(r.Received) / r.Seconds,
			loss:     1 - float64(r.Received)/float64(r.Sent),
		}, nil
	})
	if best > 0 {
		w.pps = best
	}
	return best, err
}

// probed is what came of offering one rate.
type probed struct{ offered, received, loss float64 }

// highest brackets the highest rate with a loss below maxLoss, beginning at
// start, then halves the bracket a few times. A sender that cannot offer more
// ends it.
func highest(start float64, probe func(pps float64) (probed, error)) (float64, error) {
	var best float64
	low, high := 0.0, math.Inf(1)
	pps := start
	steps := 0
	for range rateTries {
		p, err := probe(pps)
		if err != nil {
			return 0, err
		}
		if p.loss < maxLoss {
			low, best = pps, max(best, p.received)
			if p.offered < 0.95*pps {
				break
			}
		} else {
			high = pps
		}
		switch {
		case low == 0:
			pps /= 1.5
		case math.IsInf(high, 1):
			pps *= 1.5
		case steps == rateSteps:
			return best, nil
		default:
			steps++
			pps = (low + high) / 2
		}
	}
	return best, nil
}

func seconds(s float64) string { return time.Duration(s * float64(time.Second)).String() }

// What labtool prints.
type (
	flood struct {
		Bytes   int64   `json:"bytes"`
		Seconds float64 `json:"seconds"`
	}
	rate struct {
		Sent     int64   `json:"sent"`
		Received int64   `json:"received"`
		Seconds  float64 `json:"seconds"`
	}
	roundTrips struct {
		P50 float64 `json:"p50_ms"`
		P99 float64 `json:"p99_ms"`
	}
)

// tool runs labtool on a pod and reads what it prints.
func (w *world) tool(ctx context.Context, pod *lab.Host, v any, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out, err := pod.Run(ctx, append([]string{w.bin.Labtool}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("read result of %s: %w\n%s", args[0], err, out)
	}
	return nil
}
