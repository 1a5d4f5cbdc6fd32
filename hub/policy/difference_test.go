package policy

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/api"
	"causeway/protocol"
)

// What differs is what another verdict is given on.
func TestDifferencesSayWhatVerdictsSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, err := Compile(generated(t), nil)
		require.NoError(t, err)
		after, err := Compile(generated(t), before)
		require.NoError(t, err)
		c := NewChange(before.All(), after)
		d := c.Differences(1 << 20)
		counted := [2]int{}
		for _, x := range d.List {
			require.NotEmpty(t, slices.Concat(x.Opens, x.Closes))
			counted[0] += min(1, len(x.Opens))
			counted[1] += min(1, len(x.Closes))
		}
		require.Equal(t, [2]int{d.Opens, d.Closes}, counted)
		for i, a := range c.Kinds {
			for j, b := range c.Kinds {
				if a.only != 0 && a.only == b.only {
					continue
				}
				at := slices.IndexFunc(d.List, func(x Difference) bool { return x.From == i && x.To == j })
				var x Difference
				if at >= 0 {
					x = d.List[at]
				}
				for _, text := range []string{"tcp/80", "tcp/85", "tcp/75", "tcp/1", "udp/80", "udp/81", "icmp"} {
					p := ports(text)
					was, is := openTo(before, a.Before, b.Before, p), openTo(after, a.After, b.After, p)
					has := func(l []Allow, whole bool) bool {
						return slices.ContainsFunc(l, func(y Allow) bool { return y.Has(p) && (!whole || y.Proto != protocol.ProtoAny) })
					}
					require.False(t, !was && is && !has(x.Opens, false), "%s to %s, %s opens", a, b, text)
					require.False(t, was && !is && !has(x.Closes, false), "%s to %s, %s closes", a, b, text)
					require.False(t, has(x.Opens, true) && (was || !is), "%s to %s, %s does not open", a, b, text)
					require.False(t, has(x.Closes, true) && (is || !was), "%s to %s, %s does not close", a, b, text)
				}
			}
		}
	})
}

func openTo(c *Compiled, a, b ClassID, p protocol.Ports) bool {
	return slices.ContainsFunc(c.Allows(Pair{a, b}), func(x Allow) bool { return x.Has(p) })
}

// A person reads who is meant: no number of a class.
func TestDifferencesInWords(t *testing.T) {
	in := bank()
	before := compile(t, in, nil)
	in = bank()
	in.Policies[0].Rules[0].Allow = []string{"tcp/5432-5433"}
	c := NewChange(before.All(), compile(t, in, before))
	d := c.Differences(10)
	require.Equal(t, 1, d.Opens)
	x := d.List[0]
	require.Equal(t, "10.1.1.0/24 and 4 more at sh, segment prod", c.Kinds[x.From].String())
	require.Equal(t, []string{"site sh, labels app=web"}, c.Kinds[x.From].Sides)
	require.Equal(t, "10.2.1.2/32 at db-1 of eu, segment prod", c.Kinds[x.To].String())
	require.Equal(t, []Allow{{ports("tcp/5433"), "main/web-to-db"}}, x.Opens)
	require.Equal(t, []Allow{{ports("icmp"), "main/web-to-db"}}, x.Closes)

	open := compile(t, Input{Now: today}, nil)
	c = NewChange(open.All(), before)
	d = c.Differences(1000)
	require.Zero(t, d.Opens)
	i := slices.IndexFunc(d.List, func(x Difference) bool { return len(x.Stays) > 0 })
	require.Equal(t, []Allow{{}}, d.List[i].Closes)
	require.Len(t, c.Differences(1).List, 1)
	require.Equal(t, d.Closes, c.Differences(1).Closes)
}

// BenchmarkDifferences has 10,000 nodes, 2,000 rules and more than 500 classes; it counts both compilations.
func BenchmarkDifferences(b *testing.B) {
	in := large()
	for i := range in.Nodes {
		in.Nodes[i].Labels["app"] = fmt.Sprintf("a%d", i/300%34)
	}
	was := compile(b, in, nil)
	next := in
	spec := in.Policies[0].PolicySpec
	spec.Rules = slices.Clone(spec.Rules)
	for i := range 200 {
		spec.Rules[i*10].Allow = []string{"tcp/1-65000"}
	}
	for i := range 50 {
		spec.Rules = append(spec.Rules, api.PolicyRule{Name: fmt.Sprintf("more%d", i), Allow: []string{"icmp"}, From: api.PolicyEndpoint{Labels: map[string]string{"app": fmt.Sprintf("a%d", 17+i%5)}},
			To: api.PolicyEndpoint{Site: fmt.Sprintf("s%d", 15+i%10)}})
	}
	next.Policies = []Policy{{"main", 0, spec}}
	var c *Change
	var d Differences
	var compiling time.Duration
	for b.Loop() {
		begin := time.Now()
		is := compile(b, next, was)
		compiling += time.Since(begin)
		c = NewChange(was.All(), is)
		d = c.Differences(1000)
	}
	b.ReportMetric(float64(len(c.After.Classes)), "classes")
	b.ReportMetric(float64(len(c.Kinds)), "kinds")
	b.ReportMetric(float64(d.Opens+d.Closes), "pairs")
	b.ReportMetric(compiling.Seconds()*1e3/float64(b.N), "compile-ms/op")
}
