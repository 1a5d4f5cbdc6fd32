package netns

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../docs/LIMITS.md")
	require.NoError(t, err)
	require.Contains(t, string(b), fmt.Sprintf("Of %d backends at most a bridge's port is put into hairpin mode.", maxHairpin))
}
