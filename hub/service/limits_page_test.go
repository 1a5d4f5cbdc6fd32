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
	require.Contains(t, string(b), fmt.Sprintf("| %d, by site and address, %d KiB of an item; %d and %d MiB, what was declared first stays |", protocol.MaxServiceEndpoints, protocol.MaxItemBody>>10, MaxItems, MaxBytes>>20))
	require.Less(t, MaxItems, protocol.MaxItems)
	require.LessOrEqual(t, MaxBytes, protocol.MaxToAgent/2)
}
