package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/api"
)

func seen(from, to string, proto uint8, port uint16) Seen {
	return Seen{From: netip.MustParseAddr(from), To: netip.MustParseAddr(to), Proto: proto, Port: port, Count: 1}
}

// openNodes is a cluster without any policy.
func openNodes() Input {
	in := bank()
	in.Policies, in.Segments = nil, nil
	return in
}

func rulesOf(t *testing.T, in Input, l ...Seen) (out []string) {
	t.Helper()
	nodes := in.Nodes
	s, err := Suggest("first", in, nodes, l, today, today)
	require.NoError(t, err)
	for _, r := range s.Document.Rules {
		across := ""
		if len(r.Across) > 0 {
			across = fmt.Sprintf(" across %s", r.Across)
		}
		out = append(out, fmt.Sprintf("%s: %s -> %s %s%s", r.Name, sideText(r.From), sideText(r.To), r.Allow, across))
	}
	return out
}

// Sides are as wide as what was seen, and named for people.
func TestSuggest(t *testing.T) {
	in := openNodes()
	require.Equal(t, []string{"sh-to-eu: site sh, cidr 10.1.1.0/24 -> site eu, cidr 10.2.1.0/24 [tcp/443 tcp/5432-5433 icmp]"},
		rulesOf(t, in, seen("10.1.1.2", "10.2.1.2", 6, 5432), seen("10.1.1.3", "10.2.1.2", 6, 5433), seen("10.1.1.3", "10.2.1.9", 6, 443), seen("10.1.1.3", "10.2.1.9", 1, 0)), "one rule for two sides")
	require.Equal(t, []string{"gw-1-to-db-1: node gw-1 -> node db-1 [udp/53]"}, rulesOf(t, in, seen("198.18.0.3", "198.18.0.5", 17, 53)), "a host is itself")
	require.Equal(t, []string{"web-to-db-1: labels app=web -> node db-1 [tcp/22]"},
		rulesOf(t, in, seen("198.18.0.2", "198.18.0.5", 6, 22), seen("198.18.0.4", "198.18.0.5", 6, 22)), "all nodes that share a label")
	require.Equal(t, []string{"gw-2-to-db-1: node gw-2 -> node db-1 [tcp/22]", "web-1-to-db-1: node web-1 -> node db-1 [tcp/22 tcp/80]"},
		rulesOf(t, in, seen("198.18.0.2", "198.18.0.5", 6, 22), seen("198.18.0.2", "198.18.0.5", 6, 80), seen("198.18.0.4", "198.18.0.5", 6, 22)), "they do not reach the same")
	require.Equal(t, []string{"eu-to-web-1: site eu -> node web-1 [any]"},
		rulesOf(t, in, seen("198.18.0.5", "198.18.0.2", 47, 0), seen("10.2.1.7", "198.18.0.2", 47, 0)), "all that a site has")

	var many []Seen
	for i := range 40 {
		many = append(many, seen("198.18.0.2", "198.18.0.5", 6, uint16(1000+2*i)))
	}
	require.Equal(t, []string{"web-1-to-db-1: node web-1 -> node db-1 [tcp]"}, rulesOf(t, in, many...))

	// Across segments, rules say so.
	in = bank()
	require.Equal(t, []string{"lab-1-to-db-1: node lab-1 -> node db-1 [tcp/443] across [dev prod]"}, rulesOf(t, in, seen("198.18.0.6", "198.18.0.5", 6, 443)))
}

// What is in no rule is said.
func TestSuggestLeavesOut(t *testing.T) {
	in := openNodes()
	refused, midway := seen("10.1.1.2", "10.2.1.2", 6, 22), seen("10.2.1.2", "10.1.1.2", 17, 40000)
	refused.Refused, midway.Midway = true, true
	_, err := Suggest("x", in, in.Nodes, []Seen{refused, midway}, today, today)
	require.ErrorIs(t, err, ErrNothingSeen)
	s, err := Suggest("x", in, in.Nodes, []Seen{refused, midway, seen("10.99.0.1", "10.2.1.2", 6, 22), seen("10.1.1.2", "10.2.1.2", 6, 5432)}, today, today)
	require.NoError(t, err)
	require.Equal(t, []string{"1 flow refused", "1 flow seen in their middle alone, so that it is not sure who began them", "1 flow with an address that no node has now, such as 10.99.0.1 to 10.2.1.2"}, s.LeftOut)
	require.Equal(t, 1, s.Flows)
	require.Contains(t, s.YAML, "# Made of 1 flow since ")
	in.Segments = []Segment{{"dev", 0, api.SegmentSpec{Sites: []string{"lab"}}}}
	s, err = Suggest("x", in, in.Nodes, []Seen{seen("10.3.1.2", "10.2.1.2", 6, 22), seen("10.1.1.2", "10.2.1.2", 6, 5432)}, today, today)
	require.NoError(t, err)
	require.Contains(t, s.LeftOut[0], "1 flow between a segment and what is in none, such as 10.3.1.2 to 10.2.1.2")
}

// Whatever was seen is open by what is suggested, which is taken as it is written.
func TestSuggestedIsOpen(t *testing.T) {
	in := bank()
	addrs := []string{"10.1.1.2", "10.1.1.3", "10.1.2.2", "192.168.7.9", "10.2.1.2", "10.3.1.2", "10.3.2.2", "198.18.0.2", "198.18.0.3", "198.18.0.4", "198.18.0.5", "198.18.0.6", "198.18.0.7"}
	rapid.Check(t, func(t *rapid.T) {
		in := in
		if rapid.Bool().Draw(t, "open") {
			in = openNodes()
		}
		l := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Seen {
			f := seen(rapid.SampledFrom(addrs).Draw(t, "from"), rapid.SampledFrom(addrs).Draw(t, "to"), rapid.SampledFrom([]uint8{1, 6, 17, 47}).Draw(t, "proto"), 0)
			if f.Proto == 6 || f.Proto == 17 {
				f.Port = rapid.Uint16Range(1, 6).Draw(t, "port")
			}
			return f
		}), 1, 40).Draw(t, "seen")
		s, err := Suggest("suggested", in, in.Nodes, l, today, today)
		require.NoError(t, err)
		b, err := yaml.YAMLToJSON([]byte(s.YAML))
		require.NoError(t, err, s.YAML)
		var read api.PolicyDocument
		require.NoError(t, json.Unmarshal(b, &read), "%s", b)
		require.Equal(t, s.Document, read)
		in.Policies = []Policy{{Name: "suggested", PolicySpec: read.PolicySpec}}
		c, err := Compile(in, nil)
		require.NoError(t, err)
		require.NoError(t, c.Met(0))
		require.NoError(t, c.Test(read.Tests, false))
		for _, f := range l {
			p := ports(allowOf(f))
			v, err := c.Decide(f.From, f.To, p)
			require.NoError(t, err)
			require.True(t, v.Open, "%s to %s, %s: %s\n%s", f.From, f.To, p, v, s.YAML)
		}
		names := map[string]bool{}
		for _, r := range read.Rules {
			require.False(t, names[r.Name], r.Name)
			names[r.Name] = true
		}
		require.Equal(t, strings.Count(s.YAML, "\n- {name: "), len(read.Rules))
	})
}
