package service

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/protocol"
)

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/LIMITS.md")
	require.NoError(t, err)
	for _, want := range []string{
		fmt.Sprintf("asks %d backends beside it whether they are ready, %d at once, and takes %d KiB of an answer", maxQuestions, maxProbes, maxHealthAnswer>>10),
		fmt.Sprintf("answers %d questions of services a second of each node, %d at once, and asks %d a second itself", askRate, askBurst, mostAsks),
		fmt.Sprintf("Of backends that were taken from their services %d are drained at one time.", maxDrains),
		fmt.Sprintf("%d pages of %d", protocol.MaxServicePages, protocol.MaxServiceWords),
	} {
		require.Contains(t, string(b), want)
	}
}
