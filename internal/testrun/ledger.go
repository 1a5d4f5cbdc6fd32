package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A second run hides a test that fails now and then, unless somebody remembers. The
// ledger does: a file of the last ledgerRuns runs, a line each, outside of the tree, so
// that runs on fresh clones of one machine are in it. A test that needed a second run
// ledgerTwice times in these fails the run.
const (
	ledgerRuns  = 20
	ledgerTwice = 2
)

// ledgerRun is a line of the ledger: one run, and the tests that passed in its second run only.
type ledgerRun struct {
	Started time.Time `json:"started"`
	Commit  string    `json:"commit"`
	Second  []string  `json:"second,omitempty"`
}

// ledgerFile is where the ledger of a suite is: in the directory that CAUSEWAY_LEDGER
// names, for a CI whose machines are new each time, or else in the user's cache.
func ledgerFile(suite string) (string, error) {
	dir := os.Getenv("CAUSEWAY_LEDGER")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the ledger: %w: name a directory by CAUSEWAY_LEDGER", err)
		}
		dir = filepath.Join(cache, "causeway")
	}
	return filepath.Join(dir, "testruns-"+suite+".jsonl"), nil
}

// enter adds a run to the ledger and returns the tests that needed a second run too
// often. Lines that cannot be read are left out.
func enter(file string, run ledgerRun) (often []string, err error) {
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read ledger: %w", err)
	}
	var runs []ledgerRun
	for line := range bytes.Lines(b) {
		var r ledgerRun
		if json.Unmarshal(line, &r) == nil {
			runs = append(runs, r)
		}
	}
	runs = append(runs, run)
	runs = runs[max(0, len(runs)-ledgerRuns):]
	var out bytes.Buffer
	times := map[string]int{}
	for _, r := range runs {
		for _, test := range r.Second {
			times[test]++
		}
		line, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("write ledger: %w", err)
		}
		out.Write(append(line, '\n'))
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, fmt.Errorf("write ledger: %w", err)
	}
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		return nil, fmt.Errorf("write ledger: %w", err)
	}
	for _, test := range slices.Sorted(slices.Values(run.Second)) {
		if times[test] >= ledgerTwice {
			often = append(often, test)
		}
	}
	return often, nil
}

// remember enters this run of a suite and says whether its second runs can be let pass.
func (s *summary) remember(suite string, started time.Time) error {
	file, err := ledgerFile(suite)
	if err != nil {
		return err
	}
	hash, _ := commit()
	often, err := enter(file, ledgerRun{Started: started.UTC(), Commit: hash, Second: s.second})
	if err != nil {
		return err
	}
	if len(often) > 0 {
		return fmt.Errorf("needed a second run %d times or more in the last %d runs, mend them, then take them out of %s: %s", ledgerTwice, ledgerRuns, file, strings.Join(often, ", "))
	}
	return nil
}
