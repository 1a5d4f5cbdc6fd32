package session

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/hub/fleet"
	"causeway/protocol"
)

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/LIMITS.md")
	require.NoError(t, err)
	for _, want := range []string{
		fmt.Sprintf("| %d at once, asked for or open; 256 KiB", maxBulkNode),
		fmt.Sprintf("| %d at once, %d MiB, %d s; a frame of %d KiB |", maxUnproven, maxUnprovenNode>>20, unprovenTimeout/time.Second, protocol.MaxProof>>10),
		fmt.Sprintf("| %d open in a session, %d anew and %d a second |", maxStreams, fleet.StreamsBurst, fleet.StreamsRate),
	} {
		require.Contains(t, string(b), want)
	}
}
