// Command bench measures Causeway beside plain forwarding and wireguard-go:
// two sites with a pod each and a hub between, one such world for each column,
// all of them in one run and measured in turn. It prints figures and ratios
// with the targets beside them, judges nothing and leaves nothing behind but
// its result file.
//
//	bench -rounds 10 -seconds 2 -mode veth      packets as large as they come
//	bench -mode frames                          1500-byte frames on the underlay, as on a wire
//	bench -only wg-direct,inline-direct         fewer columns
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"causeway/e2e"
	"causeway/netns/lab"
)

// options are the command line.
type options struct {
	Rounds  int      `json:"rounds"`
	Seconds float64  `json:"seconds"`
	Mode    string   `json:"mode"`
	Columns []string `json:"columns"`
	dir     string
}

// Modes: super-packets cross the underlay's veths whole, or real frames do.
const (
	modeVeth   = "veth"
	modeFrames = "frames"
)

func main() {
	o := options{}
	flag.IntVar(&o.Rounds, "rounds", 10, "rounds; each measures every column once")
	flag.Float64Var(&o.Seconds, "seconds", 2, "seconds for each measurement")
	flag.StringVar(&o.Mode, "mode", modeVeth, "veth: super-packets cross the underlay whole; frames: 1500-byte frames")
	flag.StringVar(&o.dir, "results", "results", "directory for the result file")
	only := flag.String("only", strings.Join(columnNames(), ","), "columns, separated by commas")
	flag.Parse()
	o.Columns = strings.Split(*only, ",")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (o options) check(args []string) error {
	switch {
	case len(args) > 0:
		return fmt.Errorf("unexpected argument %q", args[0])
	case o.Rounds < 1 || o.Seconds < 0.5:
		return errors.New("want at least 1 round of 0.5 seconds")
	case o.Mode != modeVeth && o.Mode != modeFrames:
		return fmt.Errorf("mode %q is none; use %s or %s", o.Mode, modeVeth, modeFrames)
	case os.Geteuid() != 0:
		return errors.New("needs root: makes network namespaces")
	}
	for i, c := range o.Columns {
		if !slices.Contains(columnNames(), c) {
			return fmt.Errorf("column %q is none; there are %s", c, strings.Join(columnNames(), ", "))
		}
		if slices.Contains(o.Columns[:i], c) {
			return fmt.Errorf("column %q is there twice", c)
		}
	}
	return nil
}

func run(ctx context.Context, o options) error {
	if err := o.check(flag.Args()); err != nil {
		return err
	}
	v, err := readVersions(ctx)
	if err != nil {
		return err
	}
	r := &result{Time: time.Now().UTC(), Options: o, Versions: v}
	prefix := ""
	err = lab.Main(progress, func(l *lab.Lab) error {
		// After a signal the lab takes everything away and ends the process;
		// returning would end it before that is done.
		defer func() {
			if ctx.Err() != nil {
				select {}
			}
		}()
		prefix = l.Prefix()
		return measureAll(ctx, l, o, r)
	})
	if err != nil {
		return err
	}
	if left := lab.Leftovers(prefix); len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, "; "))
	}
	r.summarise()
	fmt.Print(r.table())
	path, err := r.write(o.dir)
	if err != nil {
		return err
	}
	fmt.Println("result file:", path)
	return nil
}

func progress(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }

// measureAll builds every column's world and goes round them.
func measureAll(ctx context.Context, l *lab.Lab, o options, r *result) error {
	dir := filepath.Join(l.Dir, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	bin, err := e2e.Build(ctx, dir)
	if err != nil {
		return err
	}
	if err := buildWireGuard(ctx, bin.Dir); err != nil {
		return err
	}
	var worlds []*world
	for _, name := range o.Columns {
		progress("build %s", name)
		w, err := newWorld(ctx, l, bin, o.Mode, columns[slices.Index(columnNames(), name)])
		if err != nil {
			return fmt.Errorf("build %s: %w", name, err)
		}
		worlds = append(worlds, w)
	}
	for round := range o.Rounds {
		// Each column comes first, second and so on in turn, and the sender
		// changes sides: neither place nor direction favours one.
		for i := range worlds {
			w := worlds[(i+round)%len(worlds)]
			f, err := w.measure(ctx, round, o)
			if err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, w.name, err)
			}
			said := ""
			for _, name := range []string{figTCP1, figTCP8, figTCP10, figUDP} {
				if v, ok := f[name]; ok {
					said += fmt.Sprintf("  %s %.2f", name, v)
				}
			}
			progress("round %d/%d %-14s%s", round+1, o.Rounds, w.name, said)
			r.Samples = append(r.Samples, sample{Round: round, Column: w.name, Place: i, Figures: f})
		}
	}
	return nil
}
