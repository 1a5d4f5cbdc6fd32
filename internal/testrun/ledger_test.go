package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLedger(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cache", "testruns-e2e.jsonl")
	run := func(second ...string) []string {
		t.Helper()
		often, err := enter(file, ledgerRun{Started: time.Now(), Commit: "abc", Second: second})
		require.NoError(t, err)
		return often
	}
	require.Empty(t, run("p.TestA"))
	require.Empty(t, run("p.TestB"))
	require.Equal(t, []string{"p.TestA"}, run("p.TestC", "p.TestA"), "twice in 20")
	require.Empty(t, run(), "a run that needed none is no matter of what others did")
	for range ledgerRuns - 2 {
		require.Empty(t, run())
	}
	require.Empty(t, run("p.TestB"), "the other time is longer ago")

	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, append([]byte("\x00 torn\n"), b...), 0o644))
	require.Equal(t, []string{"p.TestB"}, run("p.TestB"), "a torn line takes nothing with it")
}

func TestLedgerFailsTheRun(t *testing.T) {
	t.Setenv("CAUSEWAY_LEDGER", t.TempDir())
	for i := range ledgerTwice {
		s, _ := feed(passing + failing)
		s.pardon("p", []string{"TestB"})
		err := s.remember("unit", time.Now())
		if i < ledgerTwice-1 {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, "p.TestB")
		require.ErrorContains(t, err, "testruns-unit.jsonl")
	}
}
