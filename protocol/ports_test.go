package protocol

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
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

// A port is in what is left of two sets, and in what is joined of some, as it is in the sets themselves.
func TestPortSets(t *testing.T) {
	one := rapid.Custom(func(t *rapid.T) Ports {
		p := Ports{Proto: rapid.SampledFrom([]Proto{ProtoICMP, ProtoTCP, ProtoUDP, ProtoTCP}).Draw(t, "proto")}
		if p.Proto != ProtoICMP {
			p.First = rapid.SampledFrom([]uint16{1, 2, 5, 9, 65534, 65535}).Draw(t, "first")
			p.Last = max(p.First, rapid.SampledFrom([]uint16{1, 3, 4, 8, 65534, 65535}).Draw(t, "last"))
		}
		return p
	})
	has := func(l []Ports, x Ports) bool { return slices.ContainsFunc(l, func(p Ports) bool { return p.Has(x) }) }
	rapid.Check(t, func(t *rapid.T) {
		l := rapid.SliceOfN(one, 0, 6).Draw(t, "l")
		p, q := one.Draw(t, "p"), one.Draw(t, "q")
		joined := JoinPorts(slices.Clone(l))
		for i, a := range joined {
			if i > 0 {
				b := joined[i-1]
				require.True(t, b.Proto < a.Proto || b.Proto == a.Proto && int(b.Last)+1 < int(a.First), "%s and %s", b, a)
			}
		}
		for _, n := range []uint16{1, 2, 3, 4, 5, 6, 8, 9, 65533, 65534, 65535} {
			for _, x := range []Ports{{ProtoTCP, n, n}, {ProtoUDP, n, n}, {Proto: ProtoICMP}} {
				require.Equal(t, has(l, x), has(joined, x), "%s", x)
				require.Equal(t, p.Has(x) && !q.Has(x), has(p.Less(q), x), "%s of %s less %s", x, p, q)
			}
		}
	})
	all, tcp := Ports{}, Ports{ProtoTCP, 1, 65535}
	require.Equal(t, []Ports{all}, JoinPorts([]Ports{tcp, all}))
	require.Equal(t, []Ports{all}, all.Less(tcp))
	require.Empty(t, tcp.Less(all))
}

func TestLessPorts(t *testing.T) {
	ports := func(s string) Ports {
		p, err := ParsePorts(s)
		require.NoError(t, err)
		return p
	}
	for _, tt := range []struct{ p, q, want string }{
		{"tcp/80", "tcp/80", "[]"}, {"tcp", "any", "[]"}, {"any", "tcp", "[any]"}, {"icmp", "icmp", "[]"}, {"icmp", "tcp", "[icmp]"},
		{"tcp", "tcp/80", "[tcp/1-79 tcp/81-65535]"}, {"tcp/1-80", "tcp/80-90", "[tcp/1-79]"}, {"tcp/80-90", "tcp/1-80", "[tcp/81-90]"}, {"udp/80", "tcp/80", "[udp/80]"},
	} {
		require.Equal(t, tt.want, fmt.Sprint(ports(tt.p).Less(ports(tt.q))), tt)
	}
}
