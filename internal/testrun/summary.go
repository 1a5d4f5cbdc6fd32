package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is a line of 'go test -json' (cmd/test2json, cmd/go 'build-output').
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Elapsed    float64
	Output     string
}

// testID is one test of one package.
type testID struct{ pkg, test string }

// tally counts the runs of one test.
type tally struct {
	pass, fail, skip int
	slowest          float64 // seconds
}

// summary follows the events of one or several runs of go test.
type summary struct {
	out      io.Writer
	progress bool
	running  map[testID][]string // output of tests that have not ended
	tallies  map[testID]*tally
	skips    map[testID]string // why
	measured map[string][]float64
	packages map[string]bool
	badPkgs  map[string]bool // failed outside of any test: build, panic, TestMain
	hard     map[string]bool // said what no second run makes good
	once     map[testID]bool // top-level tests that are never run again
	second   []string        // passed in a second run only
}

func newSummary(out io.Writer, progress bool) *summary {
	return &summary{
		out: out, progress: progress,
		running: map[testID][]string{}, tallies: map[testID]*tally{}, skips: map[testID]string{}, measured: map[string][]float64{},
		packages: map[string]bool{}, badPkgs: map[string]bool{}, hard: map[string]bool{}, once: map[testID]bool{},
	}
}

// line takes one line of go test. What is no event is printed as it is.
func (s *summary) line(b []byte) {
	var e event
	if json.Unmarshal(b, &e) != nil || e.Action == "" {
		s.out.Write(b)
		return
	}
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(s.out, e.Output)
	case "build-fail":
		s.badPkgs[e.ImportPath] = true
	case "output":
		s.output(id, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.packageEnd(e)
		} else {
			s.testEnd(id, e)
		}
	}
}

// output prints what packages say and keeps what tests say until they end.
func (s *summary) output(id testID, text string) {
	if hard(text) {
		s.hard[id.pkg] = true
	}
	switch {
	case id.test != "":
		if strings.Contains(text, onceOnly) {
			top, _, _ := strings.Cut(id.test, "/")
			s.once[testID{id.pkg, top}] = true
		}
		s.running[id] = append(s.running[id], text)
		s.measure(text)
	case text == "PASS\n" || strings.HasPrefix(text, "=== "):
	default:
		fmt.Fprint(s.out, text)
	}
}

func (s *summary) testEnd(id testID, e event) {
	t := s.tallies[id]
	if t == nil {
		t = &tally{}
		s.tallies[id] = t
	}
	t.slowest = max(t.slowest, e.Elapsed)
	lines := s.running[id]
	delete(s.running, id)
	switch e.Action {
	case "pass":
		t.pass++
		if s.progress && !strings.Contains(id.test, "/") {
			fmt.Fprintf(s.out, "--- PASS: %s (%.2fs)\n", id.test, e.Elapsed)
		}
	case "skip":
		t.skip++
		s.skips[id] = reason(lines)
	case "fail":
		t.fail++
		fmt.Fprint(s.out, strings.Join(lines, ""))
	}
}

// packageEnd counts a package. Tests that never ended explain its failure: a
// panic, a time limit, os.Exit.
func (s *summary) packageEnd(e event) {
	if e.Action != "skip" { // no test files
		s.packages[e.Package] = true
	}
	for _, id := range slices.SortedFunc(maps.Keys(s.running), byName) {
		if id.pkg != e.Package {
			continue
		}
		if e.Action == "fail" {
			fmt.Fprint(s.out, strings.Join(s.running[id], ""))
		}
		delete(s.running, id)
	}
	if e.Action == "fail" {
		s.badPkgs[e.Package] = true
	}
}

// flush prints what is left when go test itself ended early.
func (s *summary) flush() {
	for _, id := range slices.SortedFunc(maps.Keys(s.running), byName) {
		fmt.Fprint(s.out, strings.Join(s.running[id], ""))
	}
	clear(s.running)
}

// reason takes what a test said before it was skipped out of its output.
func reason(lines []string) string {
	var why []string
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if l == "" || strings.HasPrefix(l, "=== ") || strings.HasPrefix(l, "--- ") {
			continue
		}
		if file, rest, ok := strings.Cut(l, ": "); ok && strings.Contains(file, ".go:") {
			l = rest
		}
		why = append(why, l)
	}
	if len(why) == 0 {
		return "no reason given"
	}
	return strings.Join(why, " ")
}

func byName(a, b testID) int {
	if c := strings.Compare(a.pkg, b.pkg); c != 0 {
		return c
	}
	return strings.Compare(a.test, b.test)
}

// failed is the number of failed runs of tests, and of packages that failed
// with no test to blame.
func (s *summary) failed() int {
	n := 0
	blamed := map[string]bool{}
	for id, t := range s.tallies {
		n += t.fail
		blamed[id.pkg] = blamed[id.pkg] || t.fail > 0
	}
	for p := range s.badPkgs {
		if !blamed[p] {
			n++
		}
	}
	return n
}

// report prints skipped tests by their reason, failed ones by name, and counts.
func (s *summary) report() {
	byReason := map[string][]string{}
	var pass, fail, skip int
	var bad []string
	for _, id := range slices.SortedFunc(maps.Keys(s.tallies), byName) {
		t := s.tallies[id]
		pass, fail, skip = pass+t.pass, fail+t.fail, skip+t.skip
		if t.skip > 0 {
			byReason[s.skips[id]] = append(byReason[s.skips[id]], id.pkg+"."+id.test)
		}
		if t.fail > 0 {
			bad = append(bad, fmt.Sprintf("%s.%s (%d of %d)", id.pkg, id.test, t.fail, t.pass+t.fail+t.skip))
		}
	}
	for _, why := range slices.Sorted(maps.Keys(byReason)) {
		fmt.Fprintf(s.out, "skipped, %s:\n  %s\n", why, strings.Join(byReason[why], "\n  "))
	}
	if len(bad) > 0 {
		fmt.Fprintf(s.out, "failed:\n  %s\n", strings.Join(bad, "\n  "))
	}
	if len(s.second) > 0 {
		fmt.Fprintf(s.out, "passed in a second run only, mend them:\n  %s\n", strings.Join(s.second, "\n  "))
	}
	for _, f := range s.figures() {
		fmt.Fprintf(s.out, "%-60s %3d times: p50 %.3f s, p95 %.3f s, max %.3f s\n", f.What, f.Times, f.P50, f.P95, f.Max)
	}
	if slow := s.slowest(slowShown); len(slow) > 0 {
		fmt.Fprintf(s.out, "slowest: %s\n", strings.Join(slow, ", "))
	}
	fmt.Fprintf(s.out, "%d packages: %d tests passed, %d failed, %d skipped\n", len(s.packages), pass, fail, skip)
}

// slowShown is how many tests the report names as the slowest, which took slowAfter seconds at least.
const (
	slowShown = 10
	slowAfter = 5
)

// slowest names the top-level tests that took the longest, with seconds.
func (s *summary) slowest(n int) (out []string) {
	top := slices.SortedFunc(maps.Keys(s.tallies), func(a, b testID) int { return cmp.Compare(s.tallies[b].slowest, s.tallies[a].slowest) })
	for _, id := range top {
		if t := s.tallies[id]; len(out) < n && t.slowest >= slowAfter && !strings.Contains(id.test, "/") {
			out = append(out, fmt.Sprintf("%s.%s %.0f s", id.pkg[strings.LastIndexByte(id.pkg, '/')+1:], id.test, t.slowest))
		}
	}
	return out
}
