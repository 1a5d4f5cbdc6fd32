package inventory

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
		fmt.Sprintf("| %d messages of each subject, %d MiB |", maxPerSubject, nodeShare>>20),
		fmt.Sprintf("| present facts in the bucket | each node | %d KiB a second |", writeRate>>10),
	} {
		require.Contains(t, string(b), want)
	}
}
