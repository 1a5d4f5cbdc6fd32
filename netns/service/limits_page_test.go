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
	require.Contains(t, string(b), fmt.Sprintf("A host's table of services has %d slots of %d services, %d dead backends and %d prefixes of each kind, %d backends that are blocked and as many left ones; clients of dead ones are prodded %d times a second. Of flows that may soon have to go elsewhere %d are noted. What backends do with connections is counted by %d pairs of client and backend of each family.",
		MaxSlots, MaxServices, MaxDead, MaxPrefixes, MaxFences, prodRate, MaxNoted, MaxSigns))
	require.Contains(t, string(b), fmt.Sprintf("A host exposes services at %d addresses and ports; a service at %d places.", MaxExposed, protocol.MaxServiceExpose))
}
