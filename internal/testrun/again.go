package main

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
)

// Tests here wait for real programs, kernels and clocks, and a machine that stops
// for seconds makes some of them fail. Such a test runs once more, while all
// processors are kept busy: what passes on a quiet machine alone is not mended. It
// counts as passed only then, and the report names it: whoever reads the report
// has it to mend. What a second run cannot make good is never run again: a data
// race, a panic, a leak, a package that failed by itself, and a test that counts
// what was lost, leaked, accepted or answered wrongly: it says so by a line of its
// log that begins with onceOnly.
const onceOnly = "no second run: "

// hard says that this line of a test's output is no matter of time.
func hard(line string) bool {
	for _, s := range []string{"WARNING: DATA RACE", "race detected during execution", "panic: ", "fatal error: ", "found unexpected goroutines"} {
		if strings.Contains(line, s) {
			return true
		}
	}
	return false
}

// again returns the top-level tests to run once more, by package; nothing if more
// than limit failed or one of them must not.
func (s *summary) again(limit int) map[string][]string {
	out, n := map[string][]string{}, 0
	for _, id := range slices.SortedFunc(maps.Keys(s.tallies), byName) {
		if strings.Contains(id.test, "/") || s.tallies[id].fail == 0 {
			continue
		}
		if s.hard[id.pkg] || s.once[id] {
			return nil
		}
		out[id.pkg] = append(out[id.pkg], id.test)
		n++
	}
	for p := range s.badPkgs {
		if len(out[p]) == 0 {
			return nil // no test to blame
		}
	}
	if n > limit {
		return nil
	}
	return out
}

// pardon takes the failures of a package's tests back, which have passed in their second run.
func (s *summary) pardon(pkg string, tests []string) {
	for id, t := range s.tallies {
		top, _, _ := strings.Cut(id.test, "/")
		if id.pkg == pkg && slices.Contains(tests, top) {
			t.fail = 0
		}
	}
	delete(s.badPkgs, pkg)
	for _, test := range tests {
		s.second = append(s.second, pkg+"."+test)
	}
}

// runAgain runs tests that failed once more, each package by itself, and
// forgives those packages of which all passed.
func runAgain(s *summary, args []string, limit int) {
	todo := s.again(limit)
	if len(todo) == 0 {
		return
	}
	defer busy(runtime.NumCPU())()
	for pkg, tests := range todo {
		fmt.Fprintf(s.out, "== %s: %s failed and runs once more\n", pkg, strings.Join(tests, ", "))
		second := newSummary(s.out, true)
		if err := goTest(second, onlyThese(args, pkg, tests)); err != nil || second.failed() > 0 || len(second.tallies) == 0 || len(second.skips) > 0 {
			continue
		}
		s.pardon(pkg, tests)
	}
}

// busy keeps n processors busy until the function that it returns is called.
func busy(n int) (calm func()) {
	var done atomic.Bool
	for range n {
		go func() {
			for !done.Load() {
			}
		}()
	}
	return func() { done.Store(true) }
}

// onlyThese are the arguments of go test with other tests in place of its own.
func onlyThese(args []string, pkg string, tests []string) []string {
	n := len(args)
	for n > 0 && (strings.HasPrefix(args[n-1], "./") || strings.HasPrefix(args[n-1], "causeway/")) {
		n--
	}
	return append(slices.Clone(args[:n]), "-run", "^("+strings.Join(tests, "|")+")$", pkg)
}
