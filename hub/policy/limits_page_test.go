package policy

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
	require.Contains(t, string(b), fmt.Sprintf("| rules of policies | all | %d, that tell %d classes of addresses apart | refused |", MaxRules, MaxClasses))
	require.Contains(t, string(b), fmt.Sprintf("| pods' labels in rules | each node; all | %d classes beside all others; %d of all, of which those go first whose pods tell most apart; looked at 5 times a second, and for a fifth of the time |", MaxPodClasses, MaxClasses))
	require.Contains(t, string(b), fmt.Sprintf("| each node, each policy | %d pairs of classes, by ports; %d KiB | refused |", protocol.MaxPolicyPairs, protocol.MaxItemBody>>10))
}

func TestTooMuch(t *testing.T) {
	in := bank()
	for i := range MaxRules {
		r := in.Policies[0].Rules[0]
		r.Name = fmt.Sprintf("r%d", i)
		in.Policies[0].Rules = append(in.Policies[0].Rules, r)
	}
	_, err := Compile(in, nil)
	require.EqualError(t, err, fmt.Sprintf("policy main: %d rules in all; at most %d", MaxRules+1, MaxRules))

	in = bank()
	for i := range 1000 { // each opens something else to all classes
		r := in.Policies[0].Rules[0]
		r.Name, r.Allow = fmt.Sprintf("rule-%d", i), []string{fmt.Sprintf("tcp/%d", 1+2*i), fmt.Sprintf("udp/%d", 1+2*i)}
		in.Policies[0].Rules = append(in.Policies[0].Rules, r)
	}
	require.ErrorContains(t, compile(t, in, nil).Enforce().Check(), "is too much: policy main: ")
	require.NoError(t, compile(t, bank(), nil).Enforce().Check())
}
