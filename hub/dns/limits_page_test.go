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
		fmt.Sprintf("| public names, questions by UDP | each /24 or /56 | %d a second, %d at once |", perNetwork, burst),
		fmt.Sprintf("| public names, networks told apart | all | %d; the others together %d a second |", maxSources, forOthers),
		fmt.Sprintf("| public names, questions by TCP | each /24 or /56 | %d a second, %d at once; %d a connection |", perNetwork*tcpFactor, burst*tcpFactor, perConn),
		fmt.Sprintf("| public names, one question | each | %d bytes |", maxQuery),
		fmt.Sprintf("| %d bytes by UDP, %d to who does not say EDNS0 |", maxUDP, dns.MinMsgSize),
		fmt.Sprintf("| public names, TCP connections | all, each source | %d and %d, each %.0f s without a question |", maxConns, connsOf, questionWait.Seconds()),
	} {
		require.Contains(t, string(b), want)
	}
}
