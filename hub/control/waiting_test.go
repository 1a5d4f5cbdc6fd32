package control

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A node pays for what it changes in the log, and not for what the log did not take.
func TestChangesAreChargedOnce(t *testing.T) {
	w := newHelloWorld(t, 1)
	half := changesBurst/2 + 1
	for range 100 { // the log is away
		back, ok := w.server.mayStore(2, "n1", announcement{}, half)
		require.True(t, ok)
		back()
	}
	_, ok := w.server.mayStore(2, "n1", announcement{}, half)
	require.True(t, ok)
	for range 2 {
		_, ok = w.server.mayStore(2, "n1", announcement{}, half)
		require.False(t, ok)
		require.True(t, w.server.Late(2))
	}
	_, ok = w.server.mayStore(2, "n1", announcement{}, half-10)
	require.True(t, ok, "what it may not do costs nothing")
	_, ok = w.server.mayStore(2, "n1", announcement{}, changesBurst+1)
	require.False(t, ok)
}
