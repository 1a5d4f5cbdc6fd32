package admin

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// What it costs that five watch the nodes, 10,000 of them.
func BenchmarkLargeWatch(b *testing.B) {
	s := largeServer(b)
	s.cfg.Store = &state.Store{}
	s.registerWatches(&routes{ServeMux: http.NewServeMux()})
	f := s.watches.feeds["nodes"]
	for range 5 {
		leave, err := f.join(b.Context())
		require.NoError(b, err)
		defer leave()
	}
	last := func() (seq uint64, news <-chan struct{}) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.seq, f.news
	}
	sessions := s.cfg.Fleet.Snapshot()
	ses := func(n protocol.NodeNumber) *fleet.Session { return sessions.Node(n).Session }
	conditions := []protocol.Condition{{Name: "hub", OK: true}, {Name: "engine", OK: true}}
	b.Run("idle second", func(b *testing.B) {
		done := statetest.Processor(b)
		for b.Loop() {
			time.Sleep(time.Second)
		}
		done()
	})
	b.Run("second of statuses", func(b *testing.B) { // that say nothing new
		n, done := 0, statetest.Processor(b)
		for b.Loop() {
			for range 20 {
				for range 100 {
					n = (n + 1) % statetest.LargeNodes
					s.cfg.Fleet.Status(ses(protocol.NodeNumber(n+2)), protocol.Status{Conditions: conditions})
				}
				time.Sleep(50 * time.Millisecond)
			}
		}
		done()
	})
	b.Run("change", func(b *testing.B) {
		var waited time.Duration
		n, done := 0, statetest.Processor(b)
		for b.Loop() {
			time.Sleep(feedEvery + feedEvery/10) // the feed has rested
			_, news := last()
			begin := time.Now()
			n++
			s.cfg.Fleet.Status(ses(77), protocol.Status{Conditions: append([]protocol.Condition{{Name: fmt.Sprint(n)}}, conditions...)})
			<-news
			waited += time.Since(begin)
		}
		done()
		b.ReportMetric(float64(waited.Microseconds())/1e3/float64(b.N), "ms-delay")
	})
}
