package main

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEstimate(t *testing.T) {
	// Ranks from the table of the binomial distribution with one half.
	for n, k := range map[int]int{6: 0, 8: 0, 9: 1, 10: 1, 12: 2, 15: 3, 20: 5, 25: 7} {
		got, enough := rank(n)
		require.Equal(t, k, got, "n %d", n)
		require.True(t, enough, "n %d", n)
	}
	require.Equal(t, estimate{N: 1, Median: 4, Low: 4, High: 4}, estimateOf([]float64{4}))
	require.Equal(t, estimate{N: 2, Median: 3, Low: 1, High: 5}, estimateOf([]float64{5, 1}))
	require.Equal(t, estimate{N: 5, Median: 3, Low: 1, High: 9}, estimateOf([]float64{9, 1, 3, 2, 4}))
	ten := []float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}
	require.Equal(t, estimate{N: 10, Median: 5.5, Low: 2, High: 9, Enough: true}, estimateOf(ten))
	require.Equal(t, 10.0, ten[0], "the caller's values stay in place")
	require.True(t, math.IsNaN(estimateOf(nil).Median))
}

func TestHighest(t *testing.T) {
	// A path that carries limit and drops the rest; a sender that can offer
	// most datagrams a second.
	path := func(limit, most float64) func(float64) (probed, error) {
		return func(pps float64) (probed, error) {
			p := probed{offered: min(pps, most)}
			p.received = min(p.offered, limit)
			p.loss = 1 - p.received/p.offered
			return p, nil
		}
	}
	for _, limit := range []float64{5e3, 39e3, 41e3, 100e3, 300e3} {
		got, err := highest(firstRate, path(limit, math.Inf(1)))
		require.NoError(t, err)
		require.InEpsilon(t, limit, got, 0.07, "limit %v", limit)
	}
	got, err := highest(firstRate, path(math.Inf(1), 120e3))
	require.NoError(t, err)
	require.Equal(t, 120e3, got)
	got, err = highest(firstRate, func(pps float64) (probed, error) { return probed{offered: pps, loss: 1}, nil })
	require.NoError(t, err)
	require.Zero(t, got)
	_, err = highest(firstRate, func(float64) (probed, error) { return probed{}, errors.New("no count") })
	require.EqualError(t, err, "no count")
}

func TestParseStat(t *testing.T) {
	f := make([]string, 50)
	for i := range f {
		f[i] = "0"
	}
	f[11], f[12], f[21] = "150", "50", "1000" // fields 14, 15 and 24
	u, err := parseStat("42 (a b) c) "+strings.Join(f, " "), 4096)
	require.NoError(t, err)
	require.Equal(t, usage{cpu: 2, rss: 4.096}, u)
	_, err = parseStat("42 (x) S 1", 4096)
	require.Error(t, err)
}

func TestTable(t *testing.T) {
	r := &result{Options: options{Rounds: 2, Mode: modeVeth, Columns: []string{colWGDirect, colInlineDirect}}}
	for round := range 2 {
		for i, c := range r.Options.Columns {
			r.Samples = append(r.Samples, sample{Round: round, Column: c, Figures: map[string]float64{
				figTCP1: float64(2 + 2*i + round*(1+i)), figCPU1 + roleSender: 1, figLoadedMB + roleSender: 50, figIdleMB + roleSender: 20,
			}})
		}
	}
	r.summarise()
	out := r.table()
	require.Contains(t, out, "2.00", out)
	require.Contains(t, out, ">= 1.7", out)
	require.NotContains(t, out, "NaN", out)
	for line := range strings.Lines(out) {
		require.LessOrEqual(t, len(line), 143, line)
	}
}
