package probe

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../../docs/LIMITS.md")
	require.NoError(t, err)
	for _, want := range []string{
		fmt.Sprintf("| one peer, at most %d addresses | %.0f | %.0f a second |", maxCandidates, peerAllowance.burst, peerAllowance.perSecond),
		fmt.Sprintf("| one host, an IPv4 address or IPv6 /64 | %.0f | %.0f a second |", hostAllowance.burst, hostAllowance.perSecond),
		fmt.Sprintf("| all | %.0f | %.0f a second |", agentAllowance.burst, agentAllowance.perSecond),
	} {
		require.Contains(t, string(b), want)
	}
}
