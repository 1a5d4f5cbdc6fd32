package join

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
		fmt.Sprintf("`join_rate`, %d a second, for %d s at once", DefaultSourceRate, burstSeconds),
		fmt.Sprintf("| %d a second, %d of these for sources that were quiet |", overallRate, reserveRate),
		fmt.Sprintf("| HTTPS, connections | all, each source | %d and %d |", maxConns, maxConnsPerSource),
	} {
		require.Contains(t, string(b), want)
	}
}
