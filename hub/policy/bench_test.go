package policy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/protocol"
)

// large is 10,000 nodes of 300 sites with 30,000 prefixes, in some 500 classes, and 2,000 rules with 200 tests.
func large() Input {
	in := Input{Now: today, Segments: []Segment{{"prod", 0, api.SegmentSpec{Labels: map[string]string{"env": "prod"}}}, {"dev", 0, api.SegmentSpec{Labels: map[string]string{"env": "dev"}}}}}
	for i := range 10_000 {
		n := Node{Number: protocol.NodeNumber(i + 2), Name: fmt.Sprintf("n%d", i), Site: fmt.Sprintf("s%d", i%300),
			Labels: map[string]string{"app": fmt.Sprintf("a%d", i%17), "env": []string{"prod", "dev"}[i%2]},
			Own:    []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32)}}
		for r := range 3 {
			k := i*3 + r
			n.Carries = append(n.Carries, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(k >> 8), byte(k), 0}), 24))
		}
		in.Nodes = append(in.Nodes, n)
	}
	var spec api.PolicySpec
	for i := range 2000 {
		r := api.PolicyRule{Name: fmt.Sprintf("r%d", i), Allow: []string{fmt.Sprintf("tcp/%d", 1000+i)},
			From: api.PolicyEndpoint{Labels: map[string]string{"app": fmt.Sprintf("a%d", i%17)}}, To: api.PolicyEndpoint{Site: fmt.Sprintf("s%d", i%15)}}
		if i%100 == 0 {
			r.To.CIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i * 3 >> 8), byte(i * 3), 7}), 32)
			r.To.Site = ""
		}
		if i%10 == 1 {
			r.Across, r.From = []string{"dev", "prod"}, api.PolicyEndpoint{Segment: "dev"}
		}
		spec.Rules = append(spec.Rules, r)
	}
	for i := range 200 {
		spec.Tests = append(spec.Tests, api.PolicyTest{From: fmt.Sprintf("n%d", 9_000+i), To: fmt.Sprintf("n%d", 8_000+i), Port: "udp/1", Want: "closed"})
	}
	in.Policies = []Policy{{"main", 0, spec}}
	return in
}

func BenchmarkLarge(b *testing.B) {
	in := large()
	c := compile(b, in, nil)
	groups := 0
	b.ReportAllocs()
	for b.Loop() {
		c = compile(b, in, c)
		require.NoError(b, c.Test(in.Policies[0].Tests, false))
		groups = c.Enforce().Len()
	}
	b.ReportMetric(float64(len(c.Classes)), "classes")
	b.ReportMetric(float64(groups), "groups")
}

// BenchmarkLargeChange is a change of that size from compiling to what nodes are told, with its tests: one rule opens another port
// beside, and one opens something between all of a segment.
func BenchmarkLargeChange(b *testing.B) {
	was, is := large(), large()
	rules := is.Policies[0].Rules
	rules[2].Allow = append(rules[2].Allow, "udp/7")
	for _, wide := range []bool{false, true} {
		b.Run(map[bool]string{false: "port", true: "segment"}[wide], func(b *testing.B) {
			after := is
			if wide {
				all := api.PolicyEndpoint{Segment: "prod"}
				after.Policies = []Policy{{"main", 0, api.PolicySpec{Rules: append(rules[:len(rules):len(rules)], api.PolicyRule{Name: "wide", From: all, To: all, Allow: []string{"udp/1-9"}})}}}
			}
			before := compile(b, was, nil).All()
			stages := 0
			for b.Loop() {
				c := compile(b, after, before.Compiled)
				require.NoError(b, c.Test(after.Policies[0].Tests, false))
				l := NewChange(before, c).Stages()
				stages = len(l)
				require.NoError(b, l[0].Enforce().Check())
			}
			b.ReportMetric(float64(stages), "stages")
		})
	}
}
