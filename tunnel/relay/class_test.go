package relay

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestClasses(t *testing.T) {
	require.True(t, Everybody.Allows(Everybody))
	require.False(t, Everybody.Allows(Alone))
	require.False(t, Alone.Allows(Everybody))
	require.False(t, Alone.Allows(Alone))
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "classes")
		all, want := NewClasses(n), map[[2]int]bool{}
		for range rapid.IntRange(0, 50).Draw(t, "pairs") {
			a, b := rapid.IntRange(0, n-1).Draw(t, "a"), rapid.IntRange(0, n-1).Draw(t, "b")
			all[a].Allow(all[b])
			want[[2]int{a, b}], want[[2]int{b, a}] = true, true
		}
		for a := range n {
			for b := range n {
				require.Equal(t, want[[2]int{a, b}], all[a].Allows(all[b]))
			}
		}
	})
}
