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

// What a status costs that changes nothing but load: 2,000 come each second from 10,000 nodes.
func BenchmarkLargeStatus(b *testing.B) {
	st := state.New()
	t := New(Config{State: func() *state.State { return st }, Proven: func(protocol.NodeNumber) time.Time { return time.Time{} }, Events: &event.Log{}, Log: zerolog.Nop()})
	var sessions []*Session
	for n := range protocol.NodeNumber(10_000) {
		sessions = append(sessions, NewSession(n+2, true))
		t.Up(sessions[n], protocol.Hello{})
	}
	paths := make([]protocol.PathStatus, 20)
	run := func(b *testing.B) {
		b.ReportAllocs()
		done := statetest.Processor(b)
		for i := 0; b.Loop(); i++ {
			ses := sessions[i%len(sessions)]
			t.Word(ses)
			t.Status(ses, protocol.Status{Paths: paths})
		}
		done()
	}
	b.Run("nobody watches", run)
	news := t.Notices(make(chan struct{}, 1))
	defer news.Leave()
	b.Run("watched", run)
}

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
