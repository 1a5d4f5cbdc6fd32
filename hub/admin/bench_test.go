package admin

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/facts/event"
	"causeway/hub/facts/inventory"
	"causeway/hub/fleet"
	"causeway/hub/plan"
	"causeway/hub/state"
	"causeway/hub/state/statetest"
	"causeway/protocol"
)

// largeServer shows 10,000 nodes, all of them connected.
func largeServer(b *testing.B) *Server {
	d := statetest.Large(b)
	st := d.State
	now := time.Now()
	t := fleet.New(fleet.Config{State: func() *state.State { return st }, Proven: func(protocol.NodeNumber) time.Time { return now }, Events: &event.Log{}, Log: zerolog.Nop()})
	live := map[protocol.NodeNumber]plan.Live{}
	for _, n := range st.LiveNodes() {
		ses := fleet.NewSession(n.Number, true)
		t.Up(ses, protocol.Hello{AgentVersion: "1.0.0", Engine: "inline"})
		t.Status(ses, protocol.Status{Conditions: []protocol.Condition{{Name: "hub", OK: true}, {Name: "engine", OK: true}}})
		live[n.Number] = plan.Live{Online: true}
	}
	t.SetNetmaps(plan.Compute(st, live, nil, nil, nil), live, now)
	return &Server{cfg: Config{Fleet: t, Inventory: &inventory.Store{}, Bound: func(n protocol.NodeNumber) []netip.AddrPort { return nil }}}
}

func BenchmarkLargeList(b *testing.B) {
	s := largeServer(b)
	b.Run("nodes", func(b *testing.B) {
		b.ReportAllocs()
		done := statetest.Processor(b)
		for b.Loop() {
			require.Len(b, s.nodes(), statetest.LargeNodes)
		}
		done()
	})
	b.Run("nodes in JSON", func(b *testing.B) {
		l := s.nodes()
		b.ReportAllocs()
		done := statetest.Processor(b)
		for b.Loop() {
			j, err := json.Marshal(l)
			require.NoError(b, err)
			b.ReportMetric(float64(len(j)), "bytes")
		}
		done()
	})
	b.Run("routes", func(b *testing.B) {
		b.ReportAllocs()
		done := statetest.Processor(b)
		for b.Loop() {
			require.Len(b, s.allRoutes(), statetest.LargeRoutes)
		}
		done()
	})
}
