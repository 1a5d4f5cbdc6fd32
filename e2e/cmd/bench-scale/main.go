// Command bench-scale measures one hub with many agents, some of them with real
// WireGuard sessions, under steady load and when all reconnect (package
// e2e/scale). It prints a table, writes a result file, and exits 1 if a target
// is missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"causeway/e2e/scale"
)

func main() {
	scale.Main()
	real := flag.Int("real", 500, "agents with a WireGuard session")
	sims := flag.Int("simulated", 2000, "agents without a tunnel")
	seconds := flag.Int("seconds", 40, "seconds of steady load")
	results := flag.String("results", "results", "directory for the result file")
	profiles := flag.String("profiles", "", "directory for pprof profiles of the hub")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, *real, *sims, *seconds, *results, *profiles); err != nil {
		fmt.Fprintln(os.Stderr, "bench-scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, real, sims, seconds int, results, profiles string) error {
	if flag.NArg() > 0 || real < 1 || sims < 0 || seconds < 1 {
		return errors.New("want at least one real agent and one second, and no arguments but flags")
	}
	dir := profiles
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "causeway-scale-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r, err := scale.Run(ctx, scale.Config{Real: real, Simulated: sims, Steady: time.Duration(seconds) * time.Second, Dir: dir, Profile: profiles != "",
		Progress: func(format string, a ...any) {
			fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", a...)
		}})
	if err != nil {
		return err
	}
	fmt.Print(r.Table())
	path, err := r.Write(results)
	if err != nil {
		return err
	}
	fmt.Println("result file:", path)
	if len(r.Misses) > 0 {
		return errors.New("missed: " + strings.Join(r.Misses, "; "))
	}
	return nil
}
