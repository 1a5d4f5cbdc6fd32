// Command testrun runs 'go test', prints its ordinary closing lines and the
// output of what failed, and then says what plain 'go test' does not: which
// tests were skipped and why. In CI as root a skip is a failure, because
// nothing may be left out there.
//
//	testrun [flags] -- ARGUMENTS OF go test
//
// With -again N, up to N tests that failed run once more (see again.go), and
// with -ledger a test that needs that often fails the run (see ledger.go). With
// -repeat it runs the same tests again and again, each time in a process
// of its own, and with -results it writes the counts as JSON.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"time"
)

func main() {
	noSkips := flag.Bool("no-skips", os.Getenv("CI") != "" && os.Geteuid() == 0, "a skipped test is a failure (default: in CI as root)")
	progress := flag.Bool("progress", false, "print each top-level test as it passes")
	again := flag.Int("again", 0, "if no more than this many tests failed, run them once more")
	repeat := flag.Int("repeat", 1, "run the tests this many times")
	ledger := flag.String("ledger", "", "remember which tests of this `SUITE` needed a second run (see ledger.go)")
	results := flag.String("results", "", "write counts as JSON to `FILE`")
	flag.Parse()
	if *repeat < 1 || flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "testrun: usage: testrun [flags] -- ARGUMENTS OF go test")
		os.Exit(2)
	}
	// An interrupt reaches go test too, which then ends by itself: what it
	// started has to be taken down before we go.
	signal.Ignore(os.Interrupt)

	s := newSummary(os.Stdout, *progress)
	started := time.Now()
	var err error
	for i := 1; i <= *repeat; i++ {
		if *repeat > 1 {
			fmt.Printf("== run %d of %d\n", i, *repeat)
		}
		err = errors.Join(err, goTest(s, flag.Args()))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 { // go test itself came to its end
		if runAgain(s, flag.Args(), *again); s.failed() == 0 && len(s.second) > 0 {
			err = nil
		}
	}
	s.report()
	if *ledger != "" {
		if lerr := s.remember(*ledger, started); lerr != nil {
			fmt.Fprintln(os.Stderr, "testrun:", lerr)
			err = errors.Join(err, lerr)
		}
	}
	if *results != "" {
		if werr := writeResults(*results, s.results(flag.Args(), *repeat, started)); werr != nil {
			fmt.Fprintln(os.Stderr, "testrun:", werr)
			os.Exit(1)
		}
		fmt.Println("results:", *results)
	}
	switch {
	case err != nil || s.failed() > 0:
		fmt.Fprintln(os.Stderr, "testrun: FAIL")
		os.Exit(1)
	case *noSkips && len(s.skips) > 0:
		fmt.Fprintln(os.Stderr, "testrun: FAIL: tests were skipped, and here none may be")
		os.Exit(1)
	}
}

// goTest runs go test once and feeds its events to s.
func goTest(s *summary, args []string) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start go test: %w", err)
	}
	r := bufio.NewReader(out)
	for {
		line, rerr := r.ReadBytes('\n')
		if len(line) > 0 {
			s.line(line)
		}
		if rerr != nil {
			if rerr != io.EOF {
				err = rerr
			}
			break
		}
	}
	s.flush()
	return errors.Join(err, cmd.Wait())
}
