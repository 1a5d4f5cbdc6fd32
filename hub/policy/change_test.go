package policy

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"causeway/hub/api"
)

// Each address is of the kind that both compilations say.
func TestKinds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, err := Compile(generated(t), nil)
		require.NoError(t, err)
		after, err := Compile(generated(t), before)
		require.NoError(t, err)
		c := NewChange(before.All(), after)
		for _, u := range slices.Concat(before.Units, after.Units) {
			for _, n := range u.At {
				var a, b ClassID
				if x, ok := before.UnitAt(n, u.Prefix.Addr()); ok {
					a = x.Class
				}
				if x, ok := after.UnitAt(n, u.Prefix.Addr()); ok {
					b = x.Class
				}
				require.True(t, slices.ContainsFunc(c.Kinds, func(k Kind) bool { return a == 0 || k.Before == a && (b == 0 || k.After == b) }), "%s at %d: %d then %d", u.Prefix, n, a, b)
				require.True(t, slices.ContainsFunc(c.Kinds, func(k Kind) bool { return b == 0 || k.After == b && (a == 0 || k.Before == a) }), "%s at %d: %d then %d", u.Prefix, n, a, b)
			}
		}
	})
}

// What a rule newly tells apart was of one class.
func TestKindsOfASplit(t *testing.T) {
	in := bank()
	before := compile(t, in, nil)
	in.Policies[0].Rules = append(slices.Clone(in.Policies[0].Rules), api.PolicyRule{Name: "more", From: api.PolicyEndpoint{CIDR: pfx("10.3.1.7/32")}, To: api.PolicyEndpoint{Segment: "dev"}, Allow: []string{"icmp"}})
	after := compile(t, in, before)
	u, err := after.only(addr("10.3.1.7"))
	require.NoError(t, err)
	was, err := before.only(addr("10.3.1.7"))
	require.NoError(t, err)
	require.Equal(t, []ClassID{was.Class}, NewChange(before.All(), after).Was(u.Class))
	open := compile(t, Input{Now: today}, nil)
	require.Equal(t, []ClassID{0}, NewChange(open.All(), after).Was(u.Class))
}
