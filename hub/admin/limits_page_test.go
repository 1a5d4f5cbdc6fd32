package admin

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/object"
	"causeway/protocol"
)

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/LIMITS.md")
	require.NoError(t, err)
	require.Contains(t, string(b), fmt.Sprintf("| all, each node | %d nodes, %d at once, %.0f s; %d pairs of connections |", mostAsked, askedAtOnce, cutsTimeout.Seconds(), protocol.MaxConnections))
	require.Contains(t, string(b), fmt.Sprintf("| all | one, %.0fs to %.0fh |", object.ConfirmLeast.Seconds(), object.ConfirmMost.Hours()))
}
