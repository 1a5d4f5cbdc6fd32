package dns

import (
	"fmt"
	"os"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// docs/LIMITS.md says what the code does.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/LIMITS.md")
	require.NoError(t, err)
	for _, want := range []string{
		fmt.Sprintf("| DNS, questions | each source address | %d a second, %d at once |", perSource, burst),
		fmt.Sprintf("| DNS, sources told apart | all | %d;", maxSources),
		fmt.Sprintf("| DNS, one question | each | %d bytes |", maxQuery),
		fmt.Sprintf("| %d bytes by UDP, %d to who does not say EDNS0; %d by TCP |", maxUDP, dns.MinMsgSize, maxAnswer),
		fmt.Sprintf("| DNS, TCP connections | all, each source | %d and %d, each %.0f s without a question |", maxConns, connsOf, questionWait.Seconds()),
	} {
		require.Contains(t, string(b), want)
	}
}
