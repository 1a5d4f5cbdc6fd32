package main

import (
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
)

// figure is what tests measured under one name in all runs, in seconds.
type figure struct {
	What  string  `json:"what"`
	Times int     `json:"times"`
	P50   float64 `json:"p50_seconds"`
	P95   float64 `json:"p95_seconds"`
	Max   float64 `json:"max_seconds"`
}

// A test says what it measured by a line of its log.
var measuredLine = regexp.MustCompile(`^ +[^ ]+\.go:\d+: measured (\S+) (\d+(?:\.\d+)?) s\n?$`)

func (s *summary) measure(line string) {
	if m := measuredLine.FindStringSubmatch(line); m != nil {
		if v, err := strconv.ParseFloat(m[2], 64); err == nil {
			s.measured[m[1]] = append(s.measured[m[1]], v)
		}
	}
}

func (s *summary) figures() []figure {
	out := []figure{}
	for _, what := range slices.Sorted(maps.Keys(s.measured)) {
		l := slices.Sorted(slices.Values(s.measured[what]))
		out = append(out, figure{what, len(l), rank(l, 0.5), rank(l, 0.95), l[len(l)-1]})
	}
	return out
}

// rank is the smallest value that a share of all are not above.
func rank(sorted []float64, share float64) float64 {
	return sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)]
}
