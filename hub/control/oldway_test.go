package control

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/fleet"
	"causeway/protocol"
)

// Nodes that have proven themselves for a while are closed to those that do not: so the log
// says, once.
func TestCloseOldWay(t *testing.T) {
	w := newHelloWorld(t, 3)
	answers := []hello{w.hello(0), w.hello(1), w.hello(2)}
	w.server.recordBatch(t.Context(), slices.Clone(answers))
	now := time.Now()
	nodes := w.store.State().LiveNodes()
	for i, n := range nodes {
		w.fleet.Up(fleet.NewSession(n.Number, i != 2), protocol.Hello{})
	}
	proven := func() (out []string) {
		for _, n := range w.store.State().LiveNodes() {
			if !n.Proven.IsZero() {
				out = append(out, n.Name)
			}
		}
		return out
	}
	w.server.closeOldWay(t.Context(), now.Add(oldWayFor-1))
	require.False(t, w.server.closing.Load())
	require.Empty(t, proven())
	w.server.closeOldWay(t.Context(), now.Add(oldWayFor+time.Minute))
	require.Eventually(t, func() bool { return !w.server.closing.Load() }, 10*time.Second, time.Millisecond)
	require.Equal(t, []string{nodes[0].Name, nodes[1].Name}, proven())
	seq := w.store.State().Seq
	w.server.closeOldWay(t.Context(), now.Add(time.Hour))
	require.Equal(t, seq, w.store.State().Seq)
	require.False(t, w.server.closing.Load())
	require.True(t, w.fleet.ProvenNow(nodes[0].Number))
	require.False(t, w.fleet.ProvenNow(nodes[2].Number))
}
