package main

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// A hub that grows spends less on its collector, and one that shrinks more; one at the border does
// not change its mind all the time. What is live is measured.
func TestGCPercent(t *testing.T) {
	percent := gcSmall
	for _, c := range []struct {
		live uint64
		want int
	}{{0, gcSmall}, {80 << 20, gcSmall}, {96 << 20, gcLarge}, {80 << 20, gcLarge}, {300 << 20, gcLarge}, {71 << 20, gcSmall}} {
		percent = gcPercent(c.live, percent)
		require.Equal(t, c.want, percent, c.live>>20)
	}
	before := live()
	kept := make([]byte, largeHeap)
	runtime.GC()
	require.GreaterOrEqual(t, live(), before+largeHeap)
	runtime.KeepAlive(kept)
}
