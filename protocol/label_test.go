package protocol

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheckLabel(t *testing.T) {
	long := strings.Repeat("x", MaxLabelLength)
	for _, l := range [][2]string{{"a", ""}, {"topology.kubernetes.io/zone", "eu 1, a=b"}, {long, long}, {"ä", "東京"}} {
		require.NoError(t, CheckLabel(l[0], l[1]), l)
	}
	for _, l := range [][2]string{{"", "a"}, {"a b", ""}, {"a=b", ""}, {"a,b", ""}, {"a\n", ""}, {"a", "b\nc"}, {"a", "b\x1b[2J"}, {"a\u202e", ""}, {long + "x", ""}, {"a", long + "x"}, {"a\xff", ""}} {
		require.Error(t, CheckLabel(l[0], l[1]), "%q", l)
	}
	many := map[string]string{}
	for i := range MaxNodeLabels + 1 {
		many[strings.Repeat("x", i+1)] = ""
	}
	require.ErrorContains(t, CheckLabels(many), "65 labels; at most 64")
}
