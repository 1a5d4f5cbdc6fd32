package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// results is the JSON that -results writes. Field names are stable: runs of
// different commits are compared by them.
type results struct {
	Commit   string       `json:"commit"`
	Modified bool         `json:"modified"` // the tree differed from the commit
	Go       string       `json:"go"`
	OS       string       `json:"os"`
	Arch     string       `json:"arch"`
	CPUs     int          `json:"cpus"`
	Started  time.Time    `json:"started"`
	Seconds  float64      `json:"seconds"`
	Args     []string     `json:"args"` // of go test
	Runs     int          `json:"runs"`
	Passed   int          `json:"passed"`
	Failed   int          `json:"failed"`
	Skipped  int          `json:"skipped"`
	Tests    []testResult `json:"tests"`
	Measured []figure     `json:"measured"`
}

type testResult struct {
	Package string  `json:"package"`
	Test    string  `json:"test"`
	Passed  int     `json:"passed"`
	Failed  int     `json:"failed"`
	Skipped int     `json:"skipped"`
	Slowest float64 `json:"slowest_seconds"`
}

func (s *summary) results(args []string, runs int, started time.Time) results {
	r := results{
		Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(),
		Started: started.UTC(), Seconds: time.Since(started).Seconds(), Args: args, Runs: runs,
		Failed: s.failed(), Tests: []testResult{},
	}
	r.Measured = s.figures()
	r.Commit, r.Modified = commit()
	for _, id := range slices.SortedFunc(maps.Keys(s.tallies), byName) {
		t := s.tallies[id]
		r.Passed += t.pass
		r.Skipped += t.skip
		r.Tests = append(r.Tests, testResult{id.pkg, id.test, t.pass, t.fail, t.skip, t.slowest})
	}
	return r
}

// commit names what was tested; empty outside a git tree.
func commit() (hash string, modified bool) {
	b, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		return "", false
	}
	status, err := exec.Command("git", "status", "--porcelain", "--untracked-files=no").Output()
	return strings.TrimSpace(string(b)), err != nil || len(status) > 0
}

func writeResults(file string, r results) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make directory of results: %w", err)
	}
	if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
