package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m",
		2 * time.Hour: "2h", 47 * time.Hour: "47h", 49 * time.Hour: "2d",
	} {
		require.Equal(t, want, span(d))
	}
	for d, want := range map[time.Duration]string{
		time.Hour: "1h", 30 * time.Minute: "30m", 90 * time.Minute: "1h30m", 90 * time.Second: "1m30s", 10 * time.Second: "10s", time.Hour + time.Second: "1h0m1s",
	} {
		require.Equal(t, want, short(d))
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 30: "3.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		require.Equal(t, want, size(n))
	}
	require.Equal(t, "-", millis(0))
	require.Equal(t, "0.04 ms", millis(42*time.Microsecond))
	require.Equal(t, "-", age(time.Time{}))
	require.Equal(t, "0s", age(time.Now().Add(time.Hour)))
}

// TestTableOnTerminal wraps the last column alone, and paints.
func TestTableOnTerminal(t *testing.T) {
	p := &page{colour: true, width: 40}
	p.table([]string{"NODE", "STATE", "WHY"}, [][]any{{"sh-1", cell{text: "ready", meaning: good}, "the quick brown fox jumps over\x1b[2J the lazy dog"}})
	require.Equal(t, "NODE  STATE  WHY\nsh-1  \x1b[32mready\x1b[0m  the quick brown fox jumps\n             over [2J the lazy dog\n", p.b.String())
}
