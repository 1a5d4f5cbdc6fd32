package event

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
		fmt.Sprintf("as news, %d at once and one in %.0f s", nodeAtOnce, nodeEvery.Seconds()),
	} {
		require.Contains(t, string(b), want)
	}
}
