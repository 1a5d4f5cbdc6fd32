package fleet

import (
	"testing"
	"time"

	"github.com/rs/zerolog"

	"causeway/hub/facts/event"
	"causeway/hub/state"
	"causeway/protocol"
)

// A snapshot is taken some times a second, of all nodes.
func BenchmarkSnapshot2500(b *testing.B) {
	st := state.New()
	t := New(Config{State: func() *state.State { return st }, Proven: func(protocol.NodeNumber) time.Time { return time.Time{} }, Events: &event.Log{}, Log: zerolog.Nop()})
	for n := protocol.NodeNumber(2); n < 2502; n++ {
		t.Up(NewSession(n, true), protocol.Hello{})
	}
	b.ReportAllocs()
	for b.Loop() {
		t.Snapshot()
	}
}
