package relay

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/LIMITS.md")
	require.NoError(t, err)
	for _, want := range []string{
		fmt.Sprintf("| UDP port, for the hub itself | each node | %.0f datagrams and %.0f MiB a second |", 1e9/hubRate.packets.cost, 1e9/hubRate.bytes.cost/(1<<20)),
		fmt.Sprintf("| UDP port, probes and handshakes for others | each node | %.0f and %.0f MiB a second |", 1e9/controlRate.packets.cost, 1e9/controlRate.bytes.cost/(1<<20)),
	} {
		require.Contains(t, string(b), want)
	}
}
