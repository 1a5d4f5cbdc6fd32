package reconcile

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/state"
	"causeway/protocol"
)

// Nodes hear of a change that changes no netmap, those alone whose agents take it, and not twice.
func TestMarksAreTold(t *testing.T) {
	w := newWorld(t, 2, nil)
	takes := w.up(2, protocol.Hello{Features: []string{protocol.FeatureMark}})
	w.up(3, protocol.Hello{})
	require.NoError(t, w.step("mark", time.Now()))
	require.Len(t, w.told, 1)
	first := w.told[0]
	require.Equal(t, w.store.State().Seq, first.Sequence)
	require.NoError(t, first.Check(w.cfg.Cluster.Public().Pin()))
	require.NoError(t, w.step("mark", time.Now()))
	require.Len(t, w.told, 1, "nothing is new")
	w.update("a site", func(d *state.Draft) error { return d.Add(state.SiteCreated{Name: "b"}) })
	require.NoError(t, w.step("mark", time.Now()))
	require.Equal(t, first.Sequence+1, w.told[1].Sequence)
	require.Equal(t, 2, w.to[takes])
	require.Len(t, w.to, 1, "an agent of before")
}

// A hub that never had a node may have been set back to before its first, unless it is new: who
// joins is told to come again meanwhile.
func TestHubWithoutNodesWaits(t *testing.T) {
	w := newWorld(t, 0, nil)
	began := w.fleet.Started()
	require.False(t, w.heard(began))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, w.Heard(ctx), context.DeadlineExceeded)
	require.False(t, w.heard(began.Add(witnessTime-1)))
	require.True(t, w.heard(began.Add(witnessTime)), "nobody knew better")
	w.cfg.New = true
	require.NoError(t, w.Heard(t.Context()))
	require.False(t, newWorld(t, 1, nil).heard(began), "one whose agent ran has not come")
}
