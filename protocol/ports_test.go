package protocol

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What is read is written the same, and nothing else is read.
func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"tcp/5432", "udp/5000-5100", "tcp", "icmp", "any", "tcp/0", "tcp/1-65535", "icmp/8", "tcp/9-2", "tcp/+1", "tcp/", "/", "tcp/1-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePorts(s)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		again, err := ParsePorts(p.String())
		require.NoError(t, err)
		require.Equal(t, p, again)
		require.True(t, p.Has(p))
		require.LessOrEqual(t, p.First, p.Last)
	})
}

// Openings that no table could hold are refused before they are unfolded.
func TestOpeningsAreBounded(t *testing.T) {
	many := make([]uint32, 400)
	for i := range many {
		many[i] = uint32(i + 1)
	}
	ok := Opening{Rule: "web", From: []uint32{1}, To: []uint32{2}, Allow: []string{"tcp/80"}}
	require.NoError(t, Openings{[]Opening{ok}}.Check())
	for want, o := range map[string]Opening{
		"names no rule":          {Rule: "Web", From: ok.From, To: ok.To, Allow: ok.Allow},
		"rule web: 0 is":         {Rule: "web", From: []uint32{0}, To: ok.To, Allow: ok.Allow},
		"rule web: 2147483647 ":  {Rule: "web", From: ok.From, To: []uint32{MaxAddressClass}, Allow: ok.Allow},
		"rule web: \"gre\" is":   {Rule: "web", From: ok.From, To: ok.To, Allow: []string{"gre"}},
		"more than 100000 pairs": {Rule: "web", From: many, To: many, Allow: ok.Allow},
	} {
		require.ErrorContains(t, Openings{[]Opening{ok, o}}.Check(), want)
	}
}
