package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// A snapshot is taken some times a second, of all nodes.
func BenchmarkSnapshot(b *testing.B) {
	for _, nodes := range []int{2500, 10_000} {
		b.Run(fmt.Sprint(nodes), func(b *testing.B) {
			st := state.New()
			t := New(Config{State: func() *state.State { return st }, Proven: func(protocol.NodeNumber) time.Time { return time.Time{} }, Events: &event.Log{}, Log: zerolog.Nop()})
			var last *Session
			for n := range protocol.NodeNumber(nodes) {
				last = NewSession(n+2, true)
				t.Up(last, protocol.Hello{})
			}
			b.ReportAllocs()
			done := statetest.Processor(b)
			for b.Loop() {
				t.Status(last, protocol.Status{})
				t.Snapshot()
			}
			done()
		})
	}
}
