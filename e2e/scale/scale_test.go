package scale

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

// The benchmark in small: every figure is there, every agent comes back after the
// hub was killed, and what does not depend on the machine holds.
func TestScaleInSmall(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := Run(ctx, Config{Real: 20, Simulated: 50, Steady: 4 * time.Second, Dir: t.TempDir(), Progress: t.Logf})
	require.NoError(t, err)
	t.Log("\n" + r.Table())
	require.GreaterOrEqual(t, r.NetmapAll.Count, 2)
	require.Equal(t, 70*r.NetmapAll.Count, r.NetmapEach.Count)
	require.NotZero(t, r.Delta.Count)
	require.Less(t, r.Delta.P99, TargetDelta)
	require.Less(t, r.NetmapAll.P99, TargetNetmap)
	require.Less(t, r.HeapSession, 5*TargetSession, "what a hub has once weighs much with so few")
	require.NotZero(t, r.Reconnect.AllReady)
}
