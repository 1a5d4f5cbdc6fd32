package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/netns"
)

func TestShields(t *testing.T) {
	c, err := Parse("a.yaml", []byte("shields: {state: up, allow: [tcp/22, udp/53, tcp/8000-8010]}\n"))
	require.NoError(t, err)
	ports := []netns.Port{{Proto: "tcp", First: 22, Last: 22}, {Proto: "udp", First: 53, Last: 53}, {Proto: "tcp", First: 8000, Last: 8010}}
	require.Equal(t, Shields{State: "up", Allow: ports}, c.Shields)
	// The configuration counts, and where it is silent what the host joined with.
	for state, want := range map[string][2]bool{"up": {true, true}, "down": {false, false}, "": {false, true}} {
		require.Equal(t, want, [2]bool{Shields{State: state}.On(false).Up, Shields{State: state}.On(true).Up}, state)
	}
	many := make([]string, MaxShieldPorts+1)
	for i := range many {
		many[i] = fmt.Sprintf("tcp/%d", i+1)
	}
	for in, want := range map[string]string{
		"shields: up\n":                                 "config a.yaml:1:",
		"shields: {state: on}\n":                        `config a.yaml:1:18: shields.state: "on" is neither up nor down`,
		"shields: {allow: [22]}\n":                      `config a.yaml:1:19: shields.allow[0]: "22" is no port; write for example tcp/22`,
		"shields: {allow: [tcp/22, tcp/22]}\n":          "shields.allow[1]: tcp/22 is there twice; remove one",
		"shields: {allow: [tcp/0]}\n":                   "is no port",
		"shields: {alow: [tcp/1]}\n":                    `unknown field "alow"`,
		"shields: {allow: [" + list(many) + "]}\n":      "65 ports are more than 64; write ranges",
		"shields: {allow: [icmp/8]}\n":                  "is no port",
		"shields: {allow: [tcp/65536]}\n":               "is no port",
		"shields: {allow: [\"tcp/22; accept\"]}\n":      "is no port",
		"shields: {allow: [tcp/9-8]}\n":                 "is no port",
		"shields: {allow: [tcp/022]}\n":                 "is no port",
		"shields: {allow: [\"tcp/1-2-3\", \"tcp/+1\"]}": "is no port",
	} {
		_, err := Parse("a.yaml", []byte(in))
		require.ErrorContains(t, err, want, in)
		require.NotContains(t, err.Error(), "\n")
	}
}

func list(l []string) string { return strings.Join(l, ", ") }

// FuzzParsePort: what is taken goes into nftables as it prints, and reads again.
func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"tcp/22", "udp/5000-5010", "tcp/0", "tcp/1-1", "udp/65535", "tcp/22\n", "tcp/٣"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePort(s)
		if err != nil {
			return
		}
		if p.String() != s || p.First == 0 || p.First > p.Last {
			t.Fatalf("%q is %+v", s, p)
		}
	})
}
