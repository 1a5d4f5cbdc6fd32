package statetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Processor has a benchmark report the processor time of the process for each turn of its loop, that of the garbage
// collector included: other programs on the machine do not change it. done is called behind the loop.
func Processor(b *testing.B) (done func()) {
	before := processor(b)
	return func() { b.ReportMetric(float64(processor(b)-before)/1e6/float64(b.N), "cpu-ms/op") }
}

func processor(b *testing.B) time.Duration {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
