package bus

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
		fmt.Sprintf("%d lines a second, %d at once; %d KiB a second", NodeBudget.Lines, NodeBudget.LinesAtOnce, NodeBudget.Bytes>>10),
		fmt.Sprintf("%d streams, %d subscriptions each", nodeStreams, nodeSubs),
		fmt.Sprintf("| %d and %d connections; %d lines a second, %d at once |", maxReaders, maxReaderUser, readerLines, readerLinesAtOnce),
		fmt.Sprintf("| all together | %d MiB |", readersPending>>20),
		fmt.Sprintf("| NATS port | strangers, each source | %d and %d connections |", maxUnknown, maxUnknownSource),
	} {
		require.Contains(t, string(b), want)
	}
}
