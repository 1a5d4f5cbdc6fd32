package main

import (
	"math"
	"slices"
)

// estimate is the median of several values with an interval that holds the
// true one with 95 % confidence, whatever the values' distribution.
type estimate struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	// Enough is false where the values are too few for 95 %: Low and High are
	// then the smallest and the largest.
	Enough bool `json:"is_95_percent"`
}

// estimateOf uses order statistics: the number of values below the true median
// is binomial with one half (Conover, Practical Nonparametric Statistics, 3.2).
func estimateOf(values []float64) estimate {
	n := len(values)
	if n == 0 {
		return estimate{Median: math.NaN(), Low: math.NaN(), High: math.NaN()}
	}
	v := slices.Sorted(slices.Values(values))
	k, enough := rank(n)
	return estimate{N: n, Median: (v[(n-1)/2] + v[n/2]) / 2, Low: v[k], High: v[n-1-k], Enough: enough}
}

// rank is how many values to leave out at each end of n sorted ones.
func rank(n int) (k int, enough bool) {
	term := math.Pow(0.5, float64(n)) // chance that exactly i values are below
	below := 0.0
	for i := 0; i < n/2; i++ {
		if below += term; below > 0.025 {
			return max(0, i-1), i > 0
		}
		term *= float64(n-i) / float64(i+1)
	}
	return max(0, n/2-1), n >= 6
}
